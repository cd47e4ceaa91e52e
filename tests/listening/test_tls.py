"""TLS in memory: which certificate, which version, which clients."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from OpenSSL import SSL
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.listening.errors import ListenError
from helix_revdial.listening.tls import LoadedTLS, ServerTLS, TLSSettings, load

from .pems import authority, authorityFile, chain, key, leaf, otherAuthority, whole, write


def connection(tls: ServerTLS) -> SSL.Connection:
    """A server's side, as a port makes it."""
    factory = TLSMemoryBIOFactory(tls, False, ServerFactory.forProtocol(Protocol), clock=Clock())
    protocol: Any = factory.buildProtocol(None)
    made = tls.serverConnectionForTLS(protocol)
    made.set_app_data(protocol)
    made.set_accept_state()
    return made


def client(
    name: bytes | None = None,
    certificate: trustme.LeafCert | None = None,
    only: int | None = None,
) -> SSL.Connection:
    """A client's side, which believes the tests' authority."""
    context = SSL.Context(SSL.TLS_METHOD)
    authority().configure_trust(context)
    context.set_verify(SSL.VERIFY_PEER)
    if certificate is not None:
        certificate.configure_cert(context)
    if only is not None:
        context.set_max_proto_version(only)
    made = SSL.Connection(context)
    made.set_connect_state()
    if name is not None:
        made.set_tlsext_host_name(name)
    return made


def shake(server: SSL.Connection, caller: SSL.Connection) -> None:
    """
    The handshake, to its end on both sides.

    @raise SSL.Error: One of them refuses.
    """
    for _ in range(10):
        waiting = 0
        for here, there in ((caller, server), (server, caller)):
            try:
                here.do_handshake()
            except SSL.WantReadError:
                waiting += 1
            finally:
                try:
                    there.bio_write(here.bio_read(65536))
                except SSL.WantReadError:
                    pass
        if not waiting:
            break
    # A refusal of the client's certificate comes after a TLS 1.3 client is done.
    server.send(b"x")
    caller.bio_write(server.bio_read(65536))
    assert caller.recv(10) == b"x"


class TLSTests(SynchronousTestCase):
    """L{load} and L{ServerTLS}."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.one, self.two = leaf("one.example"), leaf("two.example", "*.two.example")
        self.clients = authorityFile(self.directory / "clients" / "ca.pem")
        self.certificates = self.directory / "certificates"
        write(self.certificates / "one.pem", whole(self.one))
        write(self.certificates / "two.pem", whole(self.two))

    def single(self, **more: Any) -> TLSSettings:
        certificate = write(self.directory / "c.pem", chain(self.one))
        return TLSSettings(
            str(certificate), str(write(self.directory / "k.pem", key(self.one))), **more
        )

    def shown(self, tls: ServerTLS, name: bytes | None) -> str:
        """The first name of the certificate that a client gets."""
        caller = client(name)
        shake(connection(tls), caller)
        certificate: Any = caller.get_peer_certificate(as_cryptography=True)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        first: str = names.value.get_values_for_type(x509.DNSName)[0]
        return first

    def test_byName(self) -> None:
        """Each caller gets the certificate for the name it asks for; the others the default."""
        tls = ServerTLS(load(TLSSettings(directory=str(self.certificates))))
        for name, expected in (
            (b"one.example", "one.example"),
            (b"two.example", "two.example"),
            (b"x.two.example", "two.example"),
            (b"three.example", "one.example"),
            (None, "one.example"),
        ):
            self.assertEqual(self.shown(tls, name), expected, name)

    def test_replaced(self) -> None:
        """A new reading is for new connections; those that there are go on with theirs."""
        settings = TLSSettings(directory=str(self.certificates))
        tls = ServerTLS(load(settings))
        caller, server = client(b"one.example"), connection(tls)
        shake(server, caller)
        halfWay, halfWayServer = client(b"one.example"), connection(tls)
        write(self.certificates / "one.pem", whole(leaf("one.example", "new.example")))
        tls.current = load(settings)
        shake(halfWayServer, halfWay)
        server.send(b"still here")
        caller.bio_write(server.bio_read(65536))
        self.assertEqual(caller.recv(100), b"still here")
        self.assertEqual(self.shown(tls, b"new.example"), "one.example")

    def test_minimumVersion(self) -> None:
        """F11, and TLS 1.2 at least; 1.3 at least where that is said; never compressed."""
        tls = ServerTLS(load(self.single()))
        for version, name in ((SSL.TLS1_2_VERSION, "TLSv1.2"), (SSL.TLS1_3_VERSION, "TLSv1.3")):
            caller = client(b"one.example", only=version)
            server = connection(tls)
            shake(server, caller)
            self.assertEqual(caller.get_protocol_version_name(), name)
        self.assertRaises(SSL.Error, shake, connection(tls), client(only=SSL.TLS1_1_VERSION))
        options = tls.current.options._options
        self.assertTrue(options & SSL.OP_NO_COMPRESSION)
        tls = ServerTLS(load(self.single(minimumVersion="1.3")))
        shake(connection(tls), client(only=SSL.TLS1_3_VERSION))
        self.assertRaises(SSL.Error, shake, connection(tls), client(only=SSL.TLS1_2_VERSION))

    def loadedForClients(self, how: Any) -> LoadedTLS:
        return load(
            TLSSettings(
                directory=str(self.certificates),
                clientCA=str(self.clients),
                clientCertificates=how,
            )
        )

    def test_clientCertificates(self) -> None:
        """
        Required or optional, whatever name the caller asks for; one of another
        authority is refused in both cases.
        """
        own = leaf("wolf-1.example")
        strange = otherAuthority().issue_cert("wolf-1.example")
        for how in ("required", "optional"):
            for name in (b"one.example", b"two.example", None):
                for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
                    tls = ServerTLS(self.loadedForClients(how))
                    server = connection(tls)
                    shake(server, client(name, own, only=version))
                    self.assertIsNotNone(server.get_peer_certificate())
                    stranger = client(name, strange, only=version)
                    self.assertRaises(SSL.Error, shake, connection(tls), stranger)
                    server, nobody = connection(tls), client(name, only=version)
                    if how == "required":
                        self.assertRaises(SSL.Error, shake, server, nobody)
                    else:
                        shake(server, nobody)
                        self.assertIsNone(server.get_peer_certificate())

    def test_protocolOffers(self) -> None:
        """Whatever application protocols a caller offers, it is served (as HTTP/1.1)."""
        for offered in ([b"h2", b"http/1.1"], [b"http/1.1"], [b"h2"], [b"revdial"]):
            caller = client(b"one.example")
            caller.set_alpn_protos(offered)
            shake(connection(ServerTLS(load(self.single()))), caller)
            expected = b"http/1.1" if b"http/1.1" in offered else b""
            self.assertEqual(caller.get_alpn_proto_negotiated(), expected)

    def test_noClientCertificateIsAskedFor(self) -> None:
        """Without authorities, a client's certificate is not even looked at."""
        server = connection(ServerTLS(load(self.single())))
        shake(server, client(b"one.example", leaf("wolf-1.example")))
        self.assertIsNone(server.get_peer_certificate())

    def test_refused(self) -> None:
        """Settings that say too little, or two things."""
        one = str(self.certificates / "one.pem")
        for settings, text in (
            (TLSSettings(), "either a certificate or a directory"),
            (TLSSettings(one, directory="x"), "either a certificate or a directory"),
            (TLSSettings(key=one, directory="x"), "a directory has its own keys"),
            (TLSSettings(one, minimumVersion="1.1"), "minimum_version is one of 1.2, 1.3"),
            (TLSSettings(one, clientCA="nowhere"), "nowhere: No such file"),
        ):
            with self.assertRaises(ListenError) as caught:
                load(settings)
            self.assertIn(text, str(caught.exception))

    def test_complaints(self) -> None:
        """What is out of its time is named for the log."""
        loaded = load(
            TLSSettings(directory=str(self.certificates)),
            now=lambda: datetime(3999, 1, 1, tzinfo=UTC),
        )
        self.assertEqual(len(loaded.complaints), 2)
        self.assertIn("one.pem: the certificate expired", loaded.complaints[0])
