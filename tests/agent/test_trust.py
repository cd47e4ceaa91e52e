"""
Tests for L{helix_revdial.agent.trust}: whole handshakes in memory, between what
the policy makes and a server of Python's own C{ssl} module.
"""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from weakref import ref

import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL, crypto
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.agent.trust import (
    NotTrusted,
    Trust,
    TrustPolicy,
    TrustUnusable,
    certificatesBelow,
    certificatesIn,
    formatPin,
    parsePin,
    pinOf,
)


class Refusals:
    """What stands in for the TLS protocol: keeps why it was failed."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def failVerification(self, failure: Failure) -> None:
        failure.trap(NotTrusted)
        self.reasons.append(str(failure.value))


def pinOfIssued(issued: trustme.LeafCert) -> bytes:
    """The pin of what C{issued} certifies."""
    return pinOf(crypto.load_certificate(crypto.FILETYPE_PEM, issued.cert_chain_pems[0].bytes()))


class TrustTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.authority = trustme.CA()

    def write(self, content: bytes, name: str | None = None) -> str:
        path: str = os.path.abspath(name or self.mktemp())
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        return path

    def caFile(self, authority: trustme.CA | None = None) -> str:
        return self.write((authority or self.authority).cert_pem.bytes())

    def server(self, issued: trustme.LeafCert, clients: trustme.CA | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issued.configure_cert(context)
        if clients is not None:
            clients.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def handshake(
        self, creator: Any, server: ssl.SSLContext
    ) -> tuple[Refusals, ssl.SSLObject, SSL.Connection]:
        """
        Shake hands, and then send a byte each way.

        @return: Why it was refused, if it was, and the two ends.
        """
        refusals = Refusals()
        client = creator.clientConnectionForTLS(refusals)
        client.set_connect_state()
        toServer, toClient = ssl.MemoryBIO(), ssl.MemoryBIO()
        end = server.wrap_bio(toServer, toClient, server_side=True)
        served = asked = False
        for _ in range(10):
            try:
                client.do_handshake()
                if not asked:
                    client.send(b"?")
                    asked = True
            except SSL.WantReadError:
                pass
            except SSL.Error:
                return refusals, end, client
            try:
                toServer.write(client.bio_read(2**16))
            except SSL.WantReadError:
                pass
            try:
                if not served:
                    end.do_handshake()
                    served = True
                end.write(end.read(1))
            except ssl.SSLWantReadError:
                pass
            sent = toClient.read()
            if sent:
                client.bio_write(sent)
            try:
                client.recv(1)
                return refusals, end, client
            except (SSL.WantReadError, SSL.Error):
                pass
        raise AssertionError("the handshake does not end")

    def verdict(self, policy: TrustPolicy, server: ssl.SSLContext, host: str = "cp.test") -> str:
        """C{""}, or why the server is not trusted."""
        refusals, _, _ = self.handshake(Trust(policy).towards(host), server)
        self.assertLessEqual(len(refusals.reasons), 1)
        return "".join(refusals.reasons)


class VerificationTests(TrustTestCase):
    """F8: what is verified, under each kind of policy."""

    def test_authority(self) -> None:
        """Signed by an authority that was named, for the host: trusted."""
        server = self.server(self.authority.issue_cert("cp.test", "192.0.2.7", "2001:db8::7"))
        policy = TrustPolicy(caFile=self.caFile())
        for host in ("cp.test", "192.0.2.7", "2001:db8::7"):
            self.assertEqual(self.verdict(policy, server, host), "")

    def test_unknownAuthority(self) -> None:
        """Not by another authority, and not by one that the system does not know."""
        server = self.server(self.authority.issue_cert("cp.test"))
        for policy in (TrustPolicy(), TrustPolicy(caFile=self.caFile(trustme.CA()))):
            self.assertIn(
                "signed by an authority that is not trusted", self.verdict(policy, server)
            )

    def test_otherName(self) -> None:
        """A certificate for another name or address is refused, naming what was wanted."""
        server = self.server(self.authority.issue_cert("other.test"))
        policy = TrustPolicy(caFile=self.caFile())
        for host in ("cp.test", "192.0.2.7"):
            self.assertEqual(
                self.verdict(policy, server, host),
                f"the server's certificate is for another name than {host}",
            )

    def test_expired(self) -> None:
        """A certificate of yesterday is refused, and the day is said."""
        yesterday = datetime.now(UTC) - timedelta(days=1)
        issued = self.authority.issue_cert("cp.test", not_after=yesterday)
        self.assertEqual(
            self.verdict(TrustPolicy(caFile=self.caFile()), self.server(issued)),
            f"the server's certificate expired on {yesterday:%Y-%m-%d}",
        )

    def test_notYetValid(self) -> None:
        """One of tomorrow makes one think of clocks."""
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        issued = self.authority.issue_cert("cp.test", not_before=tomorrow)
        self.assertIn(
            "not valid yet; is a clock wrong?",
            self.verdict(TrustPolicy(caFile=self.caFile()), self.server(issued)),
        )

    def test_directory(self) -> None:
        """Every authority of a directory is trusted, and no other."""
        directory = self.mktemp()
        os.mkdir(directory)
        others = trustme.CA(), trustme.CA()
        self.write(self.authority.cert_pem.bytes(), f"{directory}/a.pem")
        self.write(others[0].cert_pem.bytes(), f"{directory}/b.crt")
        self.write(others[1].cert_pem.bytes(), f"{directory}/c.txt")
        policy = TrustPolicy(caDirectory=directory)
        for authority, trusted in ((self.authority, True), (others[0], True), (others[1], False)):
            said = self.verdict(policy, self.server(authority.issue_cert("cp.test")))
            self.assertEqual(said == "", trusted, said)

    def test_pinAlone(self) -> None:
        """
        A pin alone accepts exactly that key: whoever signed it, whatever its name
        and dates.
        """
        yesterday = datetime.now(UTC) - timedelta(days=1)
        issued = self.authority.issue_cert("other.test", not_after=yesterday)
        pin = pinOfIssued(issued)
        self.assertEqual(self.verdict(TrustPolicy(pins=(b"x" * 32, pin)), self.server(issued)), "")
        another = self.authority.issue_cert("cp.test")
        said = self.verdict(TrustPolicy(pins=(pin,)), self.server(another))
        self.assertEqual(
            said,
            f"the server's key is {formatPin(pinOfIssued(another))}, which is not a pinned one",
        )

    def test_pinAndAuthority(self) -> None:
        """With both, either one that does not fit refuses."""
        issued = self.authority.issue_cert("cp.test")
        pin, server = pinOfIssued(issued), self.server(issued)
        right, other = self.caFile(), self.caFile(trustme.CA())
        self.assertEqual(self.verdict(TrustPolicy(caFile=right, pins=(pin,)), server), "")
        self.assertIn(
            "not a pinned one",
            self.verdict(TrustPolicy(caFile=right, pins=(b"x" * 32,)), server),
        )
        self.assertIn("not trusted", self.verdict(TrustPolicy(caFile=other, pins=(pin,)), server))
        self.assertIn(
            "another name", self.verdict(TrustPolicy(caFile=right, pins=(pin,)), server, "x.test")
        )

    def test_insecure(self) -> None:
        """Everybody is trusted, and every connection says so."""
        observer = EventLoggingObserver.createWithCleanup(cast(Any, self), globalLogPublisher)
        trust = Trust(TrustPolicy(insecure=True)).towards("cp.test")
        server = self.server(self.authority.issue_cert("other.test"))
        for count in (1, 2):
            refusals, _, _ = self.handshake(trust, server)
            self.assertEqual(refusals.reasons, [])
            said = [formatEvent(event) for event in observer]
            self.assertEqual(len(said), count)
            self.assertIn("without verifying that it is cp.test", said[-1])

    def test_oldVersion(self) -> None:
        """A server that speaks nothing newer than TLS 1.1 is refused."""
        server = self.server(self.authority.issue_cert("cp.test"))
        server.minimum_version = ssl.TLSVersion.TLSv1_1
        server.maximum_version = ssl.TLSVersion.TLSv1_1
        with self.assertRaises(ssl.SSLError):
            self.handshake(Trust(TrustPolicy(caFile=self.caFile())).towards("cp.test"), server)

    def test_fault(self) -> None:
        """A certificate that makes the verification fail is refused, and the fault logged."""
        trust = Trust(TrustPolicy(caFile=self.caFile()))
        self.patch(trust, "refusal", lambda *_: 1 / 0)
        refusals, _, _ = self.handshake(
            trust.towards("cp.test"), self.server(self.authority.issue_cert("cp.test"))
        )
        self.assertEqual(refusals.reasons, ["the server's certificate cannot be understood"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class ResumptionTests(TrustTestCase):
    """TLS sessions."""

    def test_resumed(self) -> None:
        """The second connection to a host resumes the first one's session."""
        server = self.server(self.authority.issue_cert("cp.test"))
        trust = Trust(TrustPolicy(caFile=self.caFile()))
        creator = trust.towards("cp.test")
        first = self.handshake(creator, server)
        second = self.handshake(creator, server)
        self.assertEqual((first[1].session_reused, second[1].session_reused), (False, True))
        second[2].shutdown()
        del first, second
        third = self.handshake(creator, server)
        self.assertTrue(third[1].session_reused, "a connection that ended leaves its session")
        other = trust.towards("cp.test")
        self.assertFalse(self.handshake(other, server)[1].session_reused)

    def test_carriesNothing(self) -> None:
        """A connection that is kept for its session does not keep what it carried."""
        creator = Trust(TrustPolicy(caFile=self.caFile())).towards("cp.test")
        carried = Refusals()
        connection = creator.clientConnectionForTLS(cast(Any, carried))
        # As Twisted does for every connection.
        connection.set_app_data(carried)
        self.assertIs(connection.get_app_data(), carried)
        kept = ref(carried)
        del connection, carried
        self.assertIsNone(kept())

    def test_refusedIsNotResumed(self) -> None:
        """A connection that was refused leaves no session: the next is refused too."""
        server = self.server(self.authority.issue_cert("other.test"))
        creator = Trust(TrustPolicy(caFile=self.caFile())).towards("cp.test")
        for _ in range(3):
            refusals, _, _ = self.handshake(creator, server)
            self.assertEqual(len(refusals.reasons), 1)

    def test_changedFiles(self) -> None:
        """
        Authorities that were changed apply from the next connection on, to one
        that could resume too; unusable ones change nothing, and are logged once.
        """
        observer = EventLoggingObserver.createWithCleanup(cast(Any, self), globalLogPublisher)
        server = self.server(self.authority.issue_cert("cp.test"))
        path = self.caFile()
        creator = Trust(TrustPolicy(caFile=path)).towards("cp.test")
        self.assertEqual(self.handshake(creator, server)[0].reasons, [])
        self.write(b"damaged", path)
        for _ in range(2):
            self.assertEqual(self.handshake(creator, server)[0].reasons, [])
        errors = [formatEvent(each) for each in observer if each["log_level"].name == "error"]
        self.assertEqual(len(errors), 1)
        self.assertIn("holds no certificate", errors[0])
        self.write(trustme.CA().cert_pem.bytes() + b"\n", path)
        self.assertEqual(len(self.handshake(creator, server)[0].reasons), 1)


class ClientCertificateTests(TrustTestCase):
    """Who the agent says it is."""

    def test_shown(self) -> None:
        """The certificate reaches the server, with the key from the same file or another."""
        clients = trustme.CA()
        server = self.server(self.authority.issue_cert("cp.test"), clients)
        own = clients.issue_cert("agent@example.test", common_name="gpu7")
        certificate = self.write(b"".join(each.bytes() for each in own.cert_chain_pems))
        key = self.write(own.private_key_pem.bytes())
        both = self.write(own.private_key_and_cert_chain_pem.bytes())
        for policy in (
            TrustPolicy(self.caFile(), clientCertificate=certificate, clientKey=key),
            TrustPolicy(self.caFile(), clientCertificate=both),
        ):
            self.assertEqual(policy.warnings(), [])
            _, end, _ = self.handshake(Trust(policy).towards("cp.test"), server)
            shown = end.getpeercert()
            assert shown is not None
            self.assertIn((("commonName", "gpu7"),), shown["subject"])

    def test_keyThatOthersCanRead(self) -> None:
        """The mode of the key's file is looked at, unless the service manager guards it."""
        own = trustme.CA().issue_cert("agent@example.test")
        key = self.write(own.private_key_and_cert_chain_pem.bytes())
        os.chmod(key, 0o640)
        policy = TrustPolicy(clientCertificate=key)
        self.assertEqual(
            policy.warnings(), [f"the key {key}: mode 0640 lets others use it; chmod 0600 {key}"]
        )
        self.assertEqual(policy.warnings(os.path.dirname(key)), [])

    def test_unusable(self) -> None:
        """What is wrong with a key is said."""
        own, other = (trustme.CA().issue_cert("agent@example.test") for _ in range(2))
        certificate = self.write(own.cert_chain_pems[0].bytes())
        for content, words in (
            (other.private_key_pem.bytes(), "is not the key of"),
            (b"nothing", "holds no private key"),
            (
                b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA\n-----END ENCRYPTED PRIVATE KEY-----",
                "has a passphrase",
            ),
            (b"-----BEGIN PRIVATE KEY-----\nAA\n-----END PRIVATE KEY-----\n", "is damaged"),
        ):
            policy = TrustPolicy(clientCertificate=certificate, clientKey=self.write(content))
            error = self.assertRaises(TrustUnusable, Trust, policy)
            self.assertIn(words, str(error))
        error = self.assertRaises(TrustUnusable, Trust, TrustPolicy(clientCertificate=certificate))
        self.assertIn("--client-key", str(error))


class PinTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=50)
    @given(st.binary(min_size=32, max_size=32))
    def test_roundTrip(self, digest: bytes) -> None:
        """A pin that is written is read."""
        self.assertEqual(parsePin(formatPin(digest)), digest)

    def test_forms(self) -> None:
        """curl writes two slashes."""
        text = formatPin(b"a" * 32)
        self.assertEqual(parsePin(text.replace("sha256/", "sha256//")), b"a" * 32)
        self.assertEqual(parsePin(f" {text} "), b"a" * 32)

    def test_malformed(self) -> None:
        """Anything else is refused, and says how a pin looks."""
        for text in ("", "sha256/", "sha256/AAAA", "sha1/" + "A" * 43 + "=", "A" * 44, "sha256/é"):
            error = self.assertRaises(ValueError, parsePin, text)
            self.assertIn("44 characters", str(error))


class CertificatesInTests(TrustTestCase):
    def test_several(self) -> None:
        """All certificates of a file are read, whatever stands between them."""
        first, second = (trustme.CA().cert_pem.bytes() for _ in range(2))
        found = certificatesIn(self.write(b"# first\n" + first + b"\n# second\n" + second))
        self.assertEqual(len(found), 2)

    def test_unusable(self) -> None:
        """What is wrong is said, and with which file."""
        damaged = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        for content, words in ((b"nothing", "holds no certificate"), (damaged, "is damaged")):
            path = self.write(content)
            error = self.assertRaises(TrustUnusable, certificatesIn, path)
            self.assertIn(words, str(error))
            self.assertIn(path, str(error))
        error = self.assertRaises(TrustUnusable, certificatesIn, "/does/not/exist")
        self.assertEqual(str(error), "/does/not/exist: no such file or directory")

    def test_unusableDirectory(self) -> None:
        """An empty directory, and one that is none, trust nobody: refused."""
        directory = self.mktemp()
        os.mkdir(directory)
        error = self.assertRaises(TrustUnusable, certificatesBelow, directory)
        self.assertIn("holds no .pem or .crt file", str(error))
        error = self.assertRaises(TrustUnusable, certificatesBelow, "/does/not/exist")
        self.assertIn("no such file", str(error))

    def test_describe(self) -> None:
        """The policy in one line."""
        self.assertEqual(TrustPolicy().describe(), "the system's certificate authorities")
        self.assertIn("NOT verified", TrustPolicy(insecure=True).describe())
        text = TrustPolicy("/ca.pem", pins=(b"a" * 32,), clientCertificate="/own.pem").describe()
        self.assertEqual(
            text, f"/ca.pem and the pinned keys {formatPin(b'a' * 32)}; own certificate /own.pem"
        )
