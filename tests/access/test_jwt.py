"""Tests for L{helix_revdial.access.jwt}: JSON web tokens, and what attackers make of them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.jwks import KeySet
from helix_revdial.access.jwt import Issuer, JWTInvalid, JWTs
from helix_revdial.access.principals import Principal
from tests.access.signing import (
    AUDIENCE,
    ISSUER,
    SECRET,
    claims,
    ecKey,
    edKey,
    jwk,
    keySet,
    publicPEM,
    rsaKey,
    token,
)

NOW = 1_800_000_000.0


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def raw(head: object, payload: object, sign: bytes = b"") -> str:
    """A token by hand, whatever it says."""

    def part(value: object) -> str:
        return b64(value if isinstance(value, bytes) else json.dumps(value).encode())

    text = f"{part(head)}.{part(payload)}"
    return f"{text}.{b64(hmac.new(sign, text.encode(), hashlib.sha256).digest() if sign else b'')}"


class Reading(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.ended: list[str] = []
        self.jwts = JWTs(self.clock, self.wallClock, self.ended.extend, [self.shared()])
        self.addCleanup(self.jwts.stop)

    def wallClock(self) -> float:
        return NOW + self.clock.seconds()

    def shared(self, **more: Any) -> Issuer:
        given: dict[str, Any] = {
            "issuer": ISSUER,
            "audience": AUDIENCE,
            "algorithm": "HS256",
            "secret": SECRET,
        }
        found = Issuer(**given | more)
        found.check()
        return found

    def public(self, algorithm: str, *keys: dict[str, Any]) -> Issuer:
        async def fetch() -> bytes:
            return keySet(*keys)

        found = Issuer(ISSUER, AUDIENCE, algorithm, keys=KeySet(fetch, self.clock, algorithm, "id"))
        found.check()
        return found

    def principal(self, text: str) -> Principal:
        return self.successResultOf(Deferred.fromCoroutine(self.jwts.authenticate(text)))

    def refused(self, text: str) -> str:
        failure = self.failureResultOf(
            Deferred.fromCoroutine(self.jwts.authenticate(text)), JWTInvalid
        )
        for part in text.split("."):
            if len(part) > 8:
                self.assertNotIn(part, str(failure.value))
        return str(failure.value)

    def claims(self, **changed: Any) -> dict[str, Any]:
        return claims(self.wallClock(), **changed)


class ClaimTests(Reading):
    def test_principal(self) -> None:
        """A token stands for its subject, in its tenant and project, with its roles."""
        given = self.claims(tenant_id="acme", project_id="web", roles=["viewer", "admin", "boss"])
        found = self.principal(token(given))
        self.assertEqual(
            (found.kind, found.user, found.tenant, found.project, found.roles, found.expires),
            ("user", "ann", "acme", "web", {"viewer", "admin"}, NOW + 60),
        )
        self.assertTrue(found.family.startswith("jwt_"))
        plain = self.principal(token(self.claims()))
        self.assertEqual((plain.tenant, plain.project), ("default", None))
        self.assertNotEqual(plain.family, found.family)

    def test_algorithms(self) -> None:
        """Shared secrets and public keys of each kind."""
        kinds: list[tuple[str, Any]] = [
            ("RS256", rsaKey()),
            ("PS256", rsaKey()),
            ("ES256", ecKey()),
            ("EdDSA", edKey()),
        ]
        for algorithm, key in kinds:
            self.jwts.setIssuers([self.public(algorithm, jwk(key, kid="k"))])
            good = token(self.claims(), key, algorithm, kid="k")
            self.assertEqual(self.principal(good).user, "ann", algorithm)
            self.assertIn("unknown", self.refused(token(self.claims(), key, algorithm, kid="j")))

    def test_roles(self) -> None:
        """A token that names no role that we know is refused, unless there is a default."""
        for roles in (None, [], ["boss"]):
            self.assertIn("no role", self.refused(token(self.claims(roles=roles))))
        self.jwts.setIssuers([self.shared(defaultRole="viewer")])
        for roles in (None, [], ["boss"]):
            self.assertEqual(self.principal(token(self.claims(roles=roles))).roles, {"viewer"})
        for bad in ("admin", [1], {"admin": True}, 3):
            self.assertIn("roles", self.refused(token(self.claims(roles=bad))))

    def test_tenants(self) -> None:
        """An issuer that is confined to tenants speaks for no other."""
        self.jwts.setIssuers([self.shared(tenants=("acme",))])
        self.assertEqual(self.principal(token(self.claims())).tenant, "acme")
        self.assertEqual(self.principal(token(self.claims(tenant_id="acme"))).tenant, "acme")
        self.assertIn("tenant", self.refused(token(self.claims(tenant_id="default"))))
        self.jwts.setIssuers([self.shared(tenants=("acme", "beta"))])
        self.assertIn("tenant", self.refused(token(self.claims())))

    def test_emptyClaims(self) -> None:
        """F1: an empty project is not the whole tenant, nor an empty tenant the default one."""
        for name in ("tenant_id", "project_id"):
            for value in ("", " "):
                self.assertIn(name, self.refused(token(self.claims(**{name: value}))))
        self.assertEqual(self.principal(token(self.claims(project_id="p"))).project, "p")
        self.assertIsNone(self.principal(token(self.claims(project_id=None))).project)

    def test_required(self) -> None:
        """Issuer, audience, expiry and subject are required."""
        for name in ("iss", "aud", "exp", "sub"):
            self.refused(token(self.claims(**{name: None})))
        self.refused(token(self.claims(sub="")))

    def test_wrong(self) -> None:
        """Another issuer's, another audience's; a list of audiences needs ours."""
        self.assertIn("issuer", self.refused(token(self.claims(iss="https://evil.example/"))))
        self.assertIn("issuer", self.refused(token(self.claims(iss=ISSUER + "x"))))
        self.assertIn("audience", self.refused(token(self.claims(aud="other"))))
        self.assertIn("audience", self.refused(token(self.claims(aud=["a", "b"]))))
        self.assertEqual(self.principal(token(self.claims(aud=["a", AUDIENCE]))).user, "ann")

    def test_times(self) -> None:
        """An expiry is exact; a beginning may be a little ahead of our clock."""
        self.assertIn("expired", self.refused(token(self.claims(exp=NOW))))
        self.principal(token(self.claims(exp=NOW + 0.5)))
        for name in ("nbf", "iat"):
            self.principal(token(self.claims(**{name: NOW + 29})))
            self.assertIn("yet", self.refused(token(self.claims(**{name: NOW + 31}))))

    def test_noTimes(self) -> None:
        """What is no time is none."""
        moments: list[object] = ["soon", True, [1], {}, 1e300, 10**400, -1]
        for bad in moments:
            self.refused(token(self.claims(exp=bad)))
        for text in ("NaN", "Infinity", "1e999"):
            payload = json.dumps(self.claims()).replace(str(NOW + 60), text)
            self.refused(raw({"alg": "HS256"}, payload.encode(), SECRET))

    def test_subjects(self) -> None:
        """A subject is a word for people, of limited length."""
        for bad in ("x" * 256, "a\nb", "a\0b", None):
            self.refused(token(self.claims(sub=bad)))
        self.refused(raw({"alg": "HS256"}, self.claims(sub=7), SECRET))
        for wrong in (7, "x" * 129, "a\nb"):
            self.refused(token(self.claims(tenant_id=wrong)))
            self.refused(token(self.claims(project_id=wrong)))


class AttackTests(Reading):
    """Tokens of those who have no key."""

    def test_none(self) -> None:
        """The algorithm "none", in any letter case, with and without a signature."""
        for alg in ("none", "None", "NONE", "nOnE", "", None, 0, ["HS256"], "HS512", "hs256"):
            self.refused(raw({"alg": alg}, self.claims()))
            self.refused(raw({"alg": alg}, self.claims(), SECRET))

    def test_confusion(self) -> None:
        """A public key is no secret: HS256 signed with it is refused where RS256 is pinned."""
        self.jwts.setIssuers([self.public("RS256", jwk(rsaKey(), kid="k"))])
        pem = publicPEM(rsaKey())
        for secret in (pem, pem.strip(), json.dumps(jwk(rsaKey(), kid="k")).encode()):
            self.refused(raw({"alg": "HS256", "kid": "k"}, self.claims(), secret))
            self.refused(raw({"alg": "RS256", "kid": "k"}, self.claims(), secret))

    def test_otherAlgorithmOfTheKey(self) -> None:
        """Another algorithm of the same key is refused, too."""
        self.jwts.setIssuers([self.public("RS256", jwk(rsaKey(), kid="k"))])
        for algorithm in ("RS384", "RS512", "PS256"):
            self.refused(token(self.claims(), rsaKey(), algorithm, kid="k"))

    def test_ownKey(self) -> None:
        """A key that the token brings along, or says the address of, is not looked at."""
        mine = rsaKey(1)
        self.jwts.setIssuers([self.public("RS256", jwk(rsaKey(), kid="k"))])
        for head in (
            {"jwk": jwk(mine)},
            {"jku": "https://evil.example/keys"},
            {"x5u": "https://evil.example/chain"},
            {"x5c": ["AAAA"]},
        ):
            self.assertIn(
                "signature", self.refused(token(self.claims(), mine, "RS256", kid="k", **head))
            )

    def test_keyIds(self) -> None:
        """A key's id is looked up in a table: it is no path and no query."""
        self.jwts.setIssuers([self.public("RS256", jwk(rsaKey(), kid="k"))])
        for kid in (
            "../../dev/null",
            "k' OR '1'='1",
            "",
            "x" * 5000,
            "k\0",
            "https://evil.example",
        ):
            self.refused(token(self.claims(), rsaKey(), "RS256", kid=kid))
        for bad in (7, ["k"], {"k": 1}, True):
            self.refused(raw({"alg": "RS256", "kid": bad}, self.claims(), SECRET))

    def test_critical(self) -> None:
        """What a token says must be understood, and is not, is refused."""
        for head in ({"crit": ["exp"], "exp": 1}, {"crit": ["b64"], "b64": False}, {"b64": False}):
            self.refused(raw({"alg": "HS256", **head}, self.claims(), SECRET))

    def test_changed(self) -> None:
        """A token whose payload, head or signature was changed is refused."""
        head, payload, signature = token(self.claims()).split(".")
        other = token(self.claims(roles=["admin"])).split(".")
        self.refused(f"{head}.{other[1]}.{signature}")
        self.refused(f"{head}.{payload}.")
        self.refused(f"{head}.{payload}.{signature[:-4]}")
        self.refused(token(self.claims(), b"x" * 32))

    def test_huge(self) -> None:
        """Deep and large ones cost nothing but their reading."""
        for bad in (
            raw({"alg": "HS256"}, b"[" * 6000, SECRET),
            raw(b"[" * 6000, self.claims(), SECRET),
            raw({"alg": "HS256"}, b'{"iss":' + b"[" * 5000, SECRET),
            raw({"alg": "HS256"}, b"[]", SECRET),
            raw({"alg": "HS256"}, b"7", SECRET),
            raw({"alg": "HS256"}, b"\xff\xfe", SECRET),
            raw({"alg": "HS256"}, self.claims(iss={"a": 1}), SECRET),
            raw({"alg": "HS256"}, self.claims(iss=[ISSUER]), SECRET),
        ):
            self.refused(bad)

    @settings(deadline=None, max_examples=150)
    @given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=80))
    def test_anything(self, text: str) -> None:
        """Whatever is shown, it is refused with a word, and nothing breaks."""
        for shown in (text, "eyJ" + text, f"eyJhbGciOiJIUzI1NiJ9.{text}."):
            self.failureResultOf(Deferred.fromCoroutine(self.jwts.authenticate(shown)), JWTInvalid)

    def test_weakSettings(self) -> None:
        """Secrets that are too short, and settings that mix things, are refused at the start."""
        for bad in (
            Issuer(ISSUER, AUDIENCE, "HS256", secret=b"x" * 31),
            Issuer(ISSUER, AUDIENCE, "HS512", secret=SECRET),
            Issuer(ISSUER, AUDIENCE, "HS256"),
            Issuer(ISSUER, AUDIENCE, "RS256", secret=SECRET),
            Issuer(ISSUER, AUDIENCE, "none"),
            Issuer(ISSUER, AUDIENCE, "hs256", secret=SECRET),
        ):
            self.assertRaises(ValueError, bad.check)
        self.assertNotIn(SECRET.decode(), repr(self.shared()))


class EndTests(Reading):
    """What a token holds open ends with it."""

    def test_expiry(self) -> None:
        """At the moment a token expires its family ends; others do not; one timer is enough."""
        first = self.principal(token(self.claims(exp=NOW + 10)))
        second = self.principal(token(self.claims(exp=NOW + 20)))
        self.principal(token(self.claims(exp=NOW + 10)))
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(9.9)
        self.assertTrue(self.jwts.stillValid(first))
        self.assertEqual(self.ended, [])
        self.clock.advance(0.1)
        self.assertEqual(self.ended, [first.family])
        self.assertFalse(self.jwts.stillValid(first))
        self.assertTrue(self.jwts.stillValid(second))
        self.clock.advance(10)
        self.assertEqual(self.ended, [first.family, second.family])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.jwts.sizes(), {"json_web_tokens": 0})

    def test_issuerGone(self) -> None:
        """An issuer that is taken out, or has another secret, takes its tokens along."""
        found = self.principal(token(self.claims()))
        self.jwts.setIssuers([self.shared()])
        self.assertTrue(self.jwts.stillValid(found))
        self.jwts.setIssuers([self.shared(secret=b"y" * 32)])
        self.assertEqual(self.ended, [found.family])
        self.assertFalse(self.jwts.stillValid(found))
        self.refused(token(self.claims()))
        self.jwts.setIssuers([])
        self.assertFalse(self.jwts.looksLike(token(self.claims())))

    def test_issuerGoneMeanwhile(self) -> None:
        """Also while its keys are fetched for the token."""
        gate: Deferred[bytes] = Deferred()

        async def fetch() -> bytes:
            return await gate

        keys = KeySet(fetch, self.clock, "RS256", "id")
        self.jwts.setIssuers([Issuer(ISSUER, AUDIENCE, "RS256", keys=keys)])
        waiting = Deferred.fromCoroutine(
            self.jwts.authenticate(token(self.claims(), rsaKey(), "RS256", kid="k"))
        )
        self.jwts.setIssuers([])
        gate.callback(keySet(jwk(rsaKey(), kid="k")))
        self.failureResultOf(waiting, JWTInvalid)

    def test_bounded(self) -> None:
        """What is remembered is bounded; whoever is forgotten is cut."""
        jwts = JWTs(
            self.clock, self.wallClock, self.ended.extend, [self.shared()], maxRemembered=10
        )
        self.addCleanup(jwts.stop)
        shown = [token(self.claims(sub=f"user{number}")) for number in range(30)]
        found = [
            self.successResultOf(Deferred.fromCoroutine(jwts.authenticate(one))) for one in shown
        ]
        self.assertEqual(jwts.sizes(), {"json_web_tokens": 10})
        self.assertEqual(self.ended, [one.family for one in found[:20]])
        self.assertTrue(jwts.stillValid(found[-1]))

    def test_shownAgain(self) -> None:
        """A token that is shown a thousand times is remembered once."""
        shown = token(self.claims())
        for _ in range(1000):
            self.principal(shown)
        self.assertEqual((len(self.jwts._known), len(self.jwts._expiries)), (1, 1))

    def test_resume(self) -> None:
        """What a process before began ends at the same moment."""
        principal = self.principal(token(self.claims(exp=NOW + 10)))
        after = JWTs(self.clock, self.wallClock, self.ended.extend, [self.shared()])
        self.addCleanup(after.stop)
        self.assertTrue(after.resume(principal))
        self.jwts.stop()
        self.clock.advance(10)
        self.assertEqual(self.ended, [principal.family])
        self.assertFalse(after.resume(principal))
