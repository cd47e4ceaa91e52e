"""Client certificates in the place of tokens."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.certificates import (
    CertificateGrants,
    GrantError,
    fingerprintOf,
    grant,
)
from tests.listening.pems import chain, leaf

NOW = datetime.now(UTC).timestamp()


def der(*names: str, ends: datetime | None = None) -> bytes:
    """A certificate for these names."""
    return x509.load_pem_x509_certificate(chain(leaf(*names, ends=ends))).public_bytes(Encoding.DER)


def runner(name: str, *patterns: str) -> Any:
    return grant(subjectAltName=name, kind="runner", patterns=patterns or ("wolf-1",))


class GrantTests(SynchronousTestCase):
    """L{grant}."""

    def test_fingerprint(self) -> None:
        """Any usual way of writing one is the same."""
        digits = hashlib.sha256(b"x").hexdigest()
        pairs = ":".join(digits[i : i + 2] for i in range(0, 64, 2)).upper()
        for text in (f"sha256:{digits}", f"SHA256:{pairs}", f" sha256:{digits} "):
            made = grant(fingerprint=text, kind="runner", patterns=("wolf-*",))
            self.assertEqual(made.names, fingerprintOf(b"x"))

    def test_principal(self) -> None:
        """A grant stands for what a token's record would."""
        made = grant(
            subjectAltName="email:Ann@Example.org", kind="user", user="ann", role="operator"
        ).principal
        self.assertEqual(
            (made.kind, made.user, made.roles, made.tenant),
            ("user", "ann", frozenset({"operator"}), "default"),
        )
        self.assertEqual(made.family, made.tokenId)
        self.assertTrue(made.family.startswith("crt_"))

    def test_familyIsStable(self) -> None:
        """The family comes from what is named and the tenant, nothing else."""
        family = runner("dns:wolf-1.example").principal.family
        self.assertEqual(runner("dns:WOLF-1.example", "wolf-*").principal.family, family)
        self.assertNotEqual(runner("dns:wolf-2.example").principal.family, family)
        other = grant(
            subjectAltName="dns:wolf-1.example", kind="runner", patterns=("a",), tenant="b"
        )
        self.assertNotEqual(other.principal.family, family)

    def test_refused(self) -> None:
        """What would mean nothing, or two things."""
        wanted: tuple[tuple[dict[str, Any], str], ...] = (
            ({}, "by fingerprint or by subject_alt_name"),
            ({"fingerprint": "sha256:" + "0" * 64, "subjectAltName": "dns:x"}, "or by"),
            ({"fingerprint": "md5:00"}, "is no fingerprint"),
            ({"subjectAltName": "wolf-1.example"}, "is no name"),
            ({"subjectAltName": "cn:wolf-1"}, "is no name"),
            ({"subjectAltName": "ip:1.2.3.999"}, "no IP address"),
            ({"subjectAltName": "dns:x", "patterns": ()}, "1 to 64 patterns"),
            ({"subjectAltName": "dns:x", "patterns": ("a b",)}, "is no pattern"),
            ({"subjectAltName": "dns:x", "user": "ann"}, "only a user's certificate"),
            ({"subjectAltName": "dns:x", "role": "admin"}, "only a user token has a role"),
            ({"subjectAltName": "dns:x", "kind": "session"}, "kind is runner or user"),
            (
                {"subjectAltName": "dns:x", "kind": "user", "user": "a", "role": "viewer"},
                "only a runner",
            ),
            (
                {"subjectAltName": "dns:x", "kind": "user", "user": "ann", "patterns": ()},
                "role is one of",
            ),
        )
        for parameters, text in wanted:
            with self.assertRaises(GrantError, msg=str(parameters)) as caught:
                grant(**{"kind": "runner", "patterns": ("wolf-1",), **parameters})
            self.assertIn(text, str(caught.exception), parameters)


class GrantsTests(SynchronousTestCase):
    """L{CertificateGrants}."""

    def test_everyKindOfName(self) -> None:
        """DNS names in any letter case, URIs, mail addresses, IP addresses."""
        for text, name in (
            ("dns:Wolf-1.example", "wolf-1.example"),
            ("ip:2001:db8:0::1", "2001:db8::1"),
            ("email:ann@example.org", "ann@example.org"),
        ):
            grants = CertificateGrants([runner(text)])
            self.assertIsNotNone(grants.principalOf(der(name), NOW), text)
            self.assertIsNone(grants.principalOf(der("other.example"), NOW), text)

    def test_exactlyThatName(self) -> None:
        """A part of a name, a wildcard certificate and another kind of name are others."""
        grants = CertificateGrants([runner("dns:wolf-1.example")])
        for name in ("a.wolf-1.example", "*.example", "example", "wolf-1.example.org"):
            self.assertIsNone(grants.principalOf(der(name), NOW), name)
        grants = CertificateGrants([runner("dns:192.0.2.7")])
        self.assertIsNone(grants.principalOf(der("192.0.2.7"), NOW))

    def test_order(self) -> None:
        """A fingerprint goes before names; of names, the certificate's first."""
        certificate = der("a.example", "b.example")
        first, second = runner("dns:a.example", "a"), runner("dns:b.example", "b")
        whole = grant(fingerprint=fingerprintOf(certificate), kind="runner", patterns=("c",))
        for grants, pattern in (([second, first], "a"), ([second], "b"), ([first, whole], "c")):
            found = CertificateGrants(grants).principalOf(certificate, NOW)
            assert found is not None
            self.assertEqual(found.patterns, (pattern,))

    def test_expired(self) -> None:
        """One that has expired since its connection was made is nobody's."""
        ends = datetime.fromtimestamp(int(NOW) + 3600, UTC)
        certificate = der("wolf-1.example", ends=ends)
        grants = CertificateGrants([runner("dns:wolf-1.example")])
        found = grants.principalOf(certificate, NOW)
        assert found is not None
        self.assertEqual(found.expires, ends.timestamp())
        self.assertTrue(grants.stillValid(found))
        later = (ends + timedelta(seconds=1)).timestamp()
        self.assertIsNone(grants.principalOf(certificate, later))

    def test_notACertificate(self) -> None:
        """Bytes that are none are nobody's."""
        self.assertIsNone(CertificateGrants([runner("dns:x")]).principalOf(b"x", NOW))
        self.assertIsNone(CertificateGrants().principalOf(der("x.example"), NOW))

    def test_twice(self) -> None:
        """Two grants for one name are refused."""
        with self.assertRaises(GrantError) as caught:
            CertificateGrants([runner("dns:x"), runner("dns:X", "other")])
        self.assertIn("dns:x: there are two grants", str(caught.exception))

    def test_ended(self) -> None:
        """What is gone or other in a later table has ended; what is the same has not."""
        same, gone, other = (runner(f"dns:{name}") for name in ("same", "gone", "other"))
        before = CertificateGrants([same, gone, other])
        after = CertificateGrants([runner("dns:same"), runner("dns:other", "wolf-2")])
        self.assertEqual(before.endedIn(after), {gone.principal.family, other.principal.family})
        self.assertTrue(after.stillValid(same.principal))
        self.assertFalse(after.stillValid(gone.principal))
        self.assertFalse(after.stillValid(other.principal))
