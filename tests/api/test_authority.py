"""Who asks: tokens (tests.api.test_operations has more of them) and client certificates."""

from __future__ import annotations

from typing import Any

from cryptography import x509
from OpenSSL.crypto import X509
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import INegotiated
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from helix_revdial.access.certificates import CertificateGrants, fingerprintOf, grant
from helix_revdial.api.authority import Authority
from helix_revdial.api.document import operationTable
from helix_revdial.http.factory import HTTPFactory, IdentifyingFactory
from tests.listening.pems import chain, leaf

from .harness import NOW, Answer, Server, Wire, parse, request

PEER = IPv4Address("TCP", "192.0.2.7", 4000)


@implementer(INegotiated)
class SecureWire(Wire):
    """A TLS transport, as far as HTTP looks at it."""

    negotiatedProtocol = None

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def setTcpKeepAlive(self, enabled: bool) -> None:
        pass

    def getTcpNoDelay(self) -> bool:
        return True

    def getTcpKeepAlive(self) -> bool:
        return True

    def loseWriteConnection(self) -> None:
        pass

    def __init__(self, certificate: x509.Certificate | None) -> None:
        super().__init__(peerAddress=PEER)
        self.certificate = certificate

    def getPeerCertificate(self) -> X509 | None:
        return None if self.certificate is None else X509.from_cryptography(self.certificate)


class CertificateTests(SynchronousTestCase):
    """A verified client certificate in the place of a token."""

    def setUp(self) -> None:
        self.server = server = Server()
        self.certificate = x509.load_pem_x509_certificate(chain(leaf("ann.example")))
        self.grants = CertificateGrants(
            [grant(subjectAltName="dns:ann.example", kind="user", user="ann", role="operator")]
        )
        authority = Authority(
            server.tokens,
            server.sessions,
            server.audit,
            certificate=lambda der: self.grants.principalOf(der, NOW - 1e8),
        )
        factory = HTTPFactory(
            operationTable(server.services, authority), server.clock, wallClock=server.wallClock
        )
        self.door = IdentifyingFactory(factory, True)

    def ask(
        self,
        certificate: x509.Certificate | None,
        token: str | None = None,
        **headers: str,
    ) -> Answer:
        protocol: Any = self.door.buildProtocol(PEER)
        wire = SecureWire(certificate)
        protocol.makeConnection(wire)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        protocol.dataReceived(request("GET", "/api/v1/sessions", token, headers=named))
        return parse(wire.value())

    def test_granted(self) -> None:
        """It stands for whom the settings say."""
        self.assertEqual(self.ask(self.certificate).status, 200)
        self.assertEqual(self.ask(None).status, 401)

    def test_unknown(self) -> None:
        """One that is not granted is nobody; its fingerprint is in the audit log."""
        other = x509.load_pem_x509_certificate(chain(leaf("bob.example")))
        self.assertEqual(self.ask(other).status, 401)
        (entry,) = [e for e in self.server.events() if e.event == "unknown-certificate"]
        der = X509.from_cryptography(other)
        self.assertEqual(
            entry.subject,
            "sha256:" + der.digest("sha256").decode().replace(":", "").lower(),
        )
        self.assertEqual(fingerprintOf(b"").partition(":")[0], "sha256")

    def test_tokenGoesBefore(self) -> None:
        """A header that is there decides, even if it names nobody."""
        self.assertEqual(self.ask(self.certificate, "nobodys-token").status, 401)
        own = self.server.user("bob", "admin")
        self.assertEqual(self.ask(None, own).status, 200)
        self.assertEqual(self.ask(self.certificate, own).status, 200)

    def test_doorThatDoesNotIdentify(self) -> None:
        """Where certificates only let in, they do not say who asks."""
        self.door.identifies = False
        self.assertEqual(self.ask(self.certificate).status, 401)

    def test_pagesOfOthers(self) -> None:
        """A browser that acts for another site's page brings its certificate in vain."""
        for headers, status in (
            ({"Origin": "https://evil.example"}, 401),
            ({"Origin": "null"}, 401),
            ({"Origin": "http://cp.example"}, 401),
            ({"Origin": "https://cp.example"}, 200),
            ({"Sec_Fetch_Site": "cross-site"}, 401),
            ({"Sec_Fetch_Site": "same-site"}, 401),
            ({"Sec_Fetch_Site": "same-origin"}, 200),
            ({"Sec_Fetch_Site": "none"}, 200),
        ):
            self.assertEqual(self.ask(self.certificate, **headers).status, status, headers)
