"""
Doors on real sockets, in this process: whole tunnels through PROXY headers and TLS,
certificates replaced under living streams, unix sockets, and peers that stall.
"""

from __future__ import annotations

import os
import socket
from typing import Any, cast

from cryptography import x509
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    UNIXClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from helix_revdial.agent.targets import LocalTarget, parseTarget
from helix_revdial.http.limits import HTTPLimits
from helix_revdial.http.request import Request
from helix_revdial.http.response import Response
from helix_revdial.listening.door import Door, DoorSettings
from helix_revdial.listening.errors import ListenError, NeedsRestart
from helix_revdial.listening.tls import TLSSettings
from helix_revdial.revdial.client import ServerPath, ServerURL
from helix_revdial.revdial.features import ALL, RAW
from helix_revdial.revdial.listener import Listener
from tests.directories import shortDirectory
from tests.integration.test_tunnel import Hasher
from tests.integration.tunnels import Collector, Echo, Server, collector, listen, reactor, until
from tests.listening.pems import authority, leaf, whole, write

CALLER = "203.0.113.7"
HEADER = b"PROXY TCP4 203.0.113.7 198.51.100.1 50000 443\r\n"


def trust(name: str) -> Any:
    """TLS that believes the tests' authority."""
    root = Certificate.loadPEM(authority().cert_pem.bytes())
    return optionsForClientTLS(name, trustRootFromCertificates([root]))


@implementer(IStreamClientEndpoint)
class Prefixed:
    """A proxy: what it passes on begins with a header."""

    def __init__(self, endpoint: IStreamClientEndpoint, header: bytes) -> None:
        self._endpoint = endpoint
        self._header = header

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        header = self._header

        class Prefixing(Factory):
            noisy = False

            def buildProtocol(self, addr: Any) -> Any:
                protocol: Any = factory.buildProtocol(addr)
                makeConnection = protocol.makeConnection

                def prefixed(transport: Any) -> None:
                    transport.write(header)
                    makeConnection(transport)

                protocol.makeConnection = prefixed
                return protocol

        return self._endpoint.connect(Prefixing())


class DoorServer(Server):
    """A server of whole tunnels behind a door."""

    door: Door

    async def behind(self, settings: DoorSettings, limits: HTTPLimits | None = None) -> DoorServer:
        """Close the plain port; open this door."""
        stopped = self.port.stopListening()
        if stopped is not None:
            await stopped
        if limits is not None:
            self.factory.setLimits(limits)
        self.door = Door(
            reactor,
            settings,
            self.factory,
            self.factory.admission,
            lambda: self.factory.limits.headTimeout,
        )
        self.door.startService()
        return self

    async def _dispatch(self, request: Request) -> Any:
        if request.path == "/":
            return Response(200, [], request.clientHost.encode())
        return await super()._dispatch(request)

    @property
    def number(self) -> int:
        assert self.door.port is not None
        return int(cast(Any, self.door.port.getHost()).port)

    async def stop(self) -> None:
        await self.door.stopService()
        await super().stop()


class DoorTestCase(TestCase):
    """Makes servers and files."""

    timeout = 30

    def setUp(self) -> None:
        self.directory = shortDirectory(self)

    def certificate(self, *names: str) -> TLSSettings:
        """TLS with a certificate for these names, in a file of its own."""
        return TLSSettings(str(write(self.directory / "one.pem", whole(leaf(*names)))))

    async def server(
        self, settings: DoorSettings, form: str = "raw", limits: HTTPLimits | None = None
    ) -> DoorServer:
        server = DoorServer(form)
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        await server.behind(settings, limits)
        return server

    def connect(self, number: int) -> socket.socket:
        """A caller who says nothing yet."""
        made = socket.create_connection(("127.0.0.1", number), timeout=5)
        made.setblocking(False)
        self.addCleanup(made.close)
        return made

    async def ended(self, peer: socket.socket, limit: float = 5.0) -> bytes:
        """All that the server says until it closes."""
        received = b""
        end = reactor.seconds() + limit
        while reactor.seconds() < end:
            try:
                data = peer.recv(65536)
            except BlockingIOError:
                await deferLater(reactor, 0.02)
                continue
            except OSError:
                return received
            if not data:
                return received
            received += data
        raise AssertionError(f"the server did not close the connection; it said {received!r}")


LOCAL = "tcp:0:interface=127.0.0.1"


class TunnelTests(DoorTestCase):
    """A whole tunnel through a door: control, data, backpressure, ends."""

    async def tunnel(self, secure: bool, proxied: bool, form: str) -> None:
        """
        An agent behind a proxy, with or without TLS: 3 MiB through an echo, then
        the end of one direction, the answer, the end of the other.
        """
        server = await self.server(
            DoorSettings(
                LOCAL,
                self.certificate("localhost") if secure else None,
                ("127.0.0.0/8",) if proxied else None,
            ),
            form,
        )

        def endpoint() -> IStreamClientEndpoint:
            made: Any = TCP4ClientEndpoint(reactor, "127.0.0.1", server.number)
            if proxied:
                made = Prefixed(made, HEADER)
            return wrapClientTLS(trust("localhost"), made) if secure else made

        scheme = "https" if secure else "http"
        path = ServerPath(
            reactor,
            ServerURL.parse(f"{scheme}://localhost:{server.number}"),
            lambda: "token",
            key="wolf-1",
            features=ALL - {RAW} if form == "websocket" else ALL,
            endpoint=endpoint,
        )
        echoPort, echoAddress = listen(Echo)
        hashPort, hashAddress = listen(Hasher)
        for port in (echoPort, hashPort):
            self.addCleanup(port.stopListening)
        targets: dict[str, Any] = {
            "echo": LocalTarget(reactor, parseTarget(echoAddress)),
            "hash": LocalTarget(reactor, parseTarget(hashAddress)),
        }
        listener = Listener(reactor, path, targets, default="echo")
        self.addCleanup(lambda: Deferred.fromCoroutine(listener.stop()))
        await path.connectControl(listener)
        await until(lambda: server.connections.status("wolf-1") == "connected", "registered")
        detail = server.connections.detail("wolf-1")
        assert detail is not None
        self.assertEqual(detail.remoteAddress, CALLER if proxied else "127.0.0.1")
        self.assertEqual(detail.carrier, "websocket" if form == "websocket" else "raw")

        stream = cast(
            Collector, await server.connections.endpoint("wolf-1", "echo").connect(collector())
        )
        data = os.urandom(3 * 1024 * 1024)
        stream.write(data)
        self.assertTrue(await stream.read(len(data)) == data, "the echo changed something")
        cast(Any, stream.transport).loseConnection()
        await stream.ended

        stream = cast(
            Collector, await server.connections.endpoint("wolf-1", "hash").connect(collector())
        )
        stream.write(b"abc")
        transport = cast(Any, stream.transport)
        self.assertTrue(transport.halfClose, "this carrier forwards the end of one direction")
        transport.loseWriteConnection()
        self.assertTrue((await stream.read(64)).startswith(b"ba7816bf8f01cfea414140de5dae2223"))
        await stream.ended

    def test_plain(self) -> Deferred[None]:
        """Nothing in between."""
        return Deferred.fromCoroutine(self.tunnel(False, False, "raw"))

    def test_proxied(self) -> Deferred[None]:
        """A PROXY header: the real address; half-close as on a plain socket."""
        return Deferred.fromCoroutine(self.tunnel(False, True, "raw"))

    def test_proxiedWebSocket(self) -> Deferred[None]:
        """The same by WebSocket: Autobahn sees the real address from its first moment."""
        return Deferred.fromCoroutine(self.tunnel(False, True, "websocket"))

    def test_secure(self) -> Deferred[None]:
        """TLS; half-close by empty messages."""
        return Deferred.fromCoroutine(self.tunnel(True, False, "raw"))

    def test_securedAndProxied(self) -> Deferred[None]:
        """A PROXY header, then TLS."""
        return Deferred.fromCoroutine(self.tunnel(True, True, "raw"))

    def test_securedAndProxiedWebSocket(self) -> Deferred[None]:
        """The same, with the control connection by WebSocket too."""
        return Deferred.fromCoroutine(self.tunnel(True, True, "websocket"))


class Recorder(Collector):
    """A TLS client: remembers the server's certificate."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def dataReceived(self, data: bytes) -> None:
        if not self.names:
            certificate = cast(Any, self.transport).getPeerCertificate().to_cryptography()
            extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            self.names = extension.value.get_values_for_type(x509.DNSName)
        super().dataReceived(data)


REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class ReloadTests(DoorTestCase):
    """What is replaced while somebody is connected."""

    async def caller(self, server: DoorServer) -> Recorder:
        plain = TCP4ClientEndpoint(reactor, "127.0.0.1", server.number)
        made: Any = wrapClientTLS(trust("localhost"), plain)
        caller = cast(Recorder, await made.connect(Factory.forProtocol(Recorder)))
        self.addCleanup(lambda: caller.ended)
        self.addCleanup(lambda: cast(Any, caller.transport).loseConnection())
        return caller

    async def answered(self, caller: Recorder) -> int:
        """Ask, and wait for the whole answer; its length."""
        before = len(caller.received)
        caller.write(REQUEST)
        await until(lambda: caller.received[before:].count(b"\r\n\r\n") > 0, "an answer", limit=5)
        await deferLater(reactor, 0.05)
        return len(caller.received) - before

    async def test_certificateUnderALivingStream(self) -> None:
        """
        A new certificate is for who comes after; a tunnel's stream and a kept-alive
        connection that were there before go on, byte for byte.
        """
        settings = DoorSettings(LOCAL, self.certificate("localhost", "old.example"))
        server = await self.server(settings)
        path = ServerPath(
            reactor,
            ServerURL.parse(f"https://localhost:{server.number}"),
            lambda: "token",
            key="wolf-1",
            tlsOptions=trust("localhost"),
        )
        port, address = listen(Echo)
        self.addCleanup(port.stopListening)
        target = LocalTarget(reactor, parseTarget(address))
        listener = Listener(reactor, path, {"echo": target}, default="echo")
        self.addCleanup(lambda: Deferred.fromCoroutine(listener.stop()))
        await path.connectControl(listener)
        stream = cast(Collector, await server.connections.endpoint("wolf-1").connect(collector()))
        stream.write(b"before ")
        await stream.read(7)
        kept = await self.caller(server)
        await self.answered(kept)
        write(self.directory / "one.pem", whole(leaf("localhost", "new.example")))
        server.door.prepare(settings)()
        stream.write(b"after")
        self.assertEqual(await stream.read(12), b"before after")
        await self.answered(kept)
        later = await self.caller(server)
        await self.answered(later)
        self.assertEqual(kept.names, ["localhost", "old.example"])
        self.assertEqual(later.names, ["localhost", "new.example"])
        generation = server.connections.detail("wolf-1")
        assert generation is not None
        self.assertEqual(generation.generation, 1, "the agent had to connect again")

    async def test_brokenFileChangesNothing(self) -> None:
        """G4: a certificate that cannot be read is refused, and the old one goes on."""
        settings = DoorSettings(LOCAL, self.certificate("localhost", "old.example"))
        server = await self.server(settings)
        (self.directory / "one.pem").write_bytes(b"half of a certif")
        with self.assertRaises(ListenError) as caught:
            server.door.prepare(settings)
        self.assertIn("one.pem: there is no certificate in it", str(caught.exception))
        caller = await self.caller(server)
        await self.answered(caller)
        self.assertEqual(caller.names, ["localhost", "old.example"])

    async def test_needsRestart(self) -> None:
        """What a door is cannot change while it is open."""
        settings = DoorSettings(LOCAL, None, ("10.0.0.0/8",))
        server = await self.server(settings)
        for other in (
            DoorSettings("tcp:1", None, ("10.0.0.0/8",)),
            DoorSettings(LOCAL, self.certificate("localhost"), ("10.0.0.0/8",)),
            DoorSettings(LOCAL, None, None),
        ):
            self.assertRaises(NeedsRestart, server.door.prepare, other)

    async def test_proxies(self) -> None:
        """Who is believed can change: forged before, taken after."""
        server = await self.server(DoorSettings(LOCAL, None, ("10.0.0.0/8",)))
        forged = self.connect(server.number)
        try:
            forged.send(HEADER + REQUEST)
        except OSError:
            pass
        self.assertEqual(await self.ended(forged), b"")
        server.door.prepare(DoorSettings(LOCAL, None, ("127.0.0.1",)))()
        taken = self.connect(server.number)
        taken.send(HEADER + REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        self.assertTrue((await self.ended(taken)).endswith(CALLER.encode()))


class StallTests(DoorTestCase):
    """E4, E5: callers who begin and do not go on."""

    limits = HTTPLimits(headTimeout=0.4, maxUnauthenticated=3, maxUnauthenticatedPerAddress=2)

    async def test_header(self) -> None:
        """A stalled PROXY header is cut off; meanwhile its place is taken, and then free."""
        server = await self.server(DoorSettings(LOCAL, None, ("127.0.0.1",)), limits=self.limits)
        silent = [self.connect(server.number) for _ in range(3)]
        silent[1].send(HEADER[:10])
        await until(lambda: server.factory.admission.total == 3, "three wait")
        self.assertEqual(await self.ended(self.connect(server.number), 0.3), b"")
        for each in silent:
            self.assertEqual(await self.ended(each, 1.5), b"")
        self.assertEqual(server.factory.admission.total, 0)
        served = self.connect(server.number)
        served.send(HEADER + REQUEST)
        await until(
            lambda: list(server.factory.admission._perAddress) == [CALLER],
            "counted by its own address",
        )

    async def test_hello(self) -> None:
        """A stalled ClientHello is cut off, behind a PROXY header or not; it counts."""
        for proxies in (None, ("127.0.0.1",)):
            server = await self.server(
                DoorSettings(LOCAL, self.certificate("localhost"), proxies), limits=self.limits
            )
            callers = [self.connect(server.number) for _ in range(2)]
            for caller in callers:
                caller.send((HEADER if proxies else b"") + b"\x16\x03\x01\x02\x00\x01")
            await until(lambda server=server: server.factory.admission.total == 2, "two wait")
            for caller in callers:
                self.assertEqual(await self.ended(caller, 1.5), b"")
            await until(lambda server=server: server.factory.admission.total == 0, "places free")

    async def test_turnedAway(self) -> None:
        """E5: one too many, who stalls its handshake besides, is not kept for long."""
        limits = HTTPLimits(headTimeout=40, lingerTimeout=0.3, maxUnauthenticated=1)
        server = await self.server(
            DoorSettings(LOCAL, self.certificate("localhost")), limits=limits
        )
        self.connect(server.number)
        await until(lambda: server.factory.admission.total == 1, "one waits")
        began = reactor.seconds()
        self.assertEqual(await self.ended(self.connect(server.number), 30), b"")
        self.assertLess(reactor.seconds() - began, 15)

    async def test_countedByTheRealAddress(self) -> None:
        """E5: the caps are the callers', not the proxy's."""
        server = await self.server(DoorSettings(LOCAL, None, ("127.0.0.1",)), limits=self.limits)
        for host in (b"203.0.113.7", b"203.0.113.7", b"203.0.113.8"):
            self.connect(server.number).send(HEADER.replace(CALLER.encode(), host))
        await until(lambda: server.factory.connections == 3, "three are served")
        self.assertEqual(server.factory.admission.total, 3)


class UnixTests(DoorTestCase):
    """Unix sockets."""

    async def test_modeAndEnd(self) -> None:
        """It has the mode that was asked for, no lock file, and is removed at the end."""
        path = self.directory / "s"
        server = await self.server(DoorSettings(f"unix:{path}:mode=660"))
        self.assertEqual(path.stat().st_mode & 0o777, 0o660)
        self.assertEqual([each.name for each in self.directory.iterdir()], ["s"])
        await server.door.stopService()
        self.assertEqual(list(self.directory.iterdir()), [])

    async def test_stale(self) -> None:
        """One that a killed server left behind is replaced."""
        path = self.directory / "s"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
            left.listen()
        self.assertTrue(path.exists())
        await self.server(DoorSettings(f"unix:address={path}"))
        endpoint = UNIXClientEndpoint(reactor, str(path))
        caller = cast(Collector, await endpoint.connect(collector()))
        caller.write(REQUEST)
        await caller.read(10)
        cast(Any, caller.transport).loseConnection()
        await caller.ended

    async def test_taken(self) -> None:
        """One that somebody listens on, even with a full queue, and a file are left alone."""
        path = self.directory / "s"
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            other.listen(0)
            callers = []
            for _ in range(3):
                callers.append(socket.socket(socket.AF_UNIX))
                callers[-1].setblocking(False)
                callers[-1].connect_ex(str(path))
            with self.assertRaises(ListenError) as caught:
                await self.server(DoorSettings(f"unix:{path}"))
            for caller in callers:
                caller.close()
        self.assertIn("another process listens there", str(caught.exception))
        path.unlink()
        path.write_text("precious")
        with self.assertRaises(ListenError) as caught:
            await self.server(DoorSettings(f"unix:{path}"))
        self.assertIn("no socket is in its place", str(caught.exception))
        self.assertEqual(path.read_text(), "precious")

    async def test_proxied(self) -> None:
        """A proxy on the same machine: its header is believed where C{unix} is named."""
        path = self.directory / "s"
        server = await self.server(DoorSettings(f"unix:{path}", None, ("unix",)))
        endpoint = Prefixed(UNIXClientEndpoint(reactor, str(path)), HEADER)
        caller = cast(Collector, await endpoint.connect(collector()))
        caller.write(REQUEST[:10])
        await until(lambda: server.factory.connections == 1, "served")
        self.assertEqual(list(server.factory.admission._perAddress), [CALLER])
        cast(Any, caller.transport).loseConnection()
        await caller.ended

    async def test_secure(self) -> None:
        """TLS on a unix socket, behind a proxy: what stands before it passes bytes on."""
        path = self.directory / "s"
        await self.server(DoorSettings(f"unix:{path}", self.certificate("localhost"), ("unix",)))
        proxied = Prefixed(UNIXClientEndpoint(reactor, str(path)), HEADER)
        endpoint: Any = wrapClientTLS(trust("localhost"), proxied)
        caller = cast(Collector, await endpoint.connect(collector()))
        caller.write(REQUEST)
        await until(lambda: caller.received.endswith(CALLER.encode()), "the answer")
        cast(Any, caller.transport).loseConnection()
        await caller.ended

    async def test_noDirectory(self) -> None:
        """A path that cannot be is said with the reason; a taken port is, too."""
        with self.assertRaises(ListenError) as caught:
            await self.server(DoorSettings(f"unix:{self.directory}/no/s"))
        self.assertIn("No such file or directory", str(caught.exception))
        taken = await self.server(DoorSettings(LOCAL))
        endpoint = f"tcp:{taken.number}:interface=127.0.0.1"
        with self.assertRaises(ListenError) as caught:
            await self.server(DoorSettings(endpoint))
        self.assertEqual(
            str(caught.exception), f"cannot listen on {endpoint}: Address already in use"
        )
