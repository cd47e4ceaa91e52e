"""The HTTP connection on real sockets, with curl and with peers that misbehave."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any, cast

import trustme
from twisted.internet import reactor as installedReactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    UNIXClientEndpoint,
    connectProtocol,
    wrapClientTLS,
)
from twisted.internet.interfaces import IHalfCloseableProtocol, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import (
    Certificate,
    PrivateCertificate,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from helix_revdial.http.factory import HTTPFactory
from helix_revdial.http.limits import HTTPLimits
from helix_revdial.http.request import Request
from helix_revdial.http.response import HandedOver, Response
from tests.needs import needsProgram

reactor = cast(Any, installedReactor)

LIMITS = HTTPLimits(
    headTimeout=1.0, bodyWindow=1.0, bodyRate=1000, stallTimeout=5, lingerTimeout=0.2
)


@implementer(IHalfCloseableProtocol)
class Echo(Protocol):
    """Sends back what it gets, then ends its direction when the peer does."""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def readConnectionLost(self) -> None:
        assert self.transport is not None
        self.transport.write(b"[end]")
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        pass


class Client(Protocol):
    """Collects what the server sends."""

    transport: Any

    def __init__(self) -> None:
        self.data = b""
        self.closed: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed.callback(self.data)


async def dispatch(request: Request) -> Response | HandedOver:
    """What the server of these tests does."""
    if request.path == "/sum":
        digest = hashlib.sha256()
        size = 0
        async for piece in request.body.pieces():
            digest.update(piece)
            size += len(piece)
        return Response(200, [], f"{size} {digest.hexdigest()}".encode())
    if request.path == "/small":
        return Response(200, [], await request.body.read(1000))
    if request.path == "/upgrade":
        await deferLater(reactor, 0.05, lambda: None)
        return request.handOver(Echo())
    if request.path == "/large":

        async def body() -> AsyncIterator[bytes]:
            for _ in range(320):
                yield b"\xa5" * 65536

        return Response(200, [], body())
    return Response(200, [], f"{request.path} {request.secure} {request.clientHost}\n".encode())


class ServerTestCase(TestCase):
    """A server on a port of its own."""

    timeout = 20

    def setUp(self) -> None:
        self.factory = HTTPFactory(dispatch, cast(IReactorTime, reactor), LIMITS)
        self.port = self.listen(reactor.listenTCP(0, self.factory, interface="127.0.0.1"))
        self.number = self.port.getHost().port
        self.url = f"http://127.0.0.1:{self.number}"

    def listen(self, port: Any) -> Any:
        async def stop() -> None:
            await port.stopListening()
            await self.factory.stop(1)

        self.addCleanup(lambda: Deferred.fromCoroutine(stop()))
        return port

    def listenTLS(self) -> tuple[int, Any]:
        """
        @return: The port, and what a client needs to verify it.
        """
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        private = PrivateCertificate.loadPEM(
            issued.private_key_pem.bytes() + issued.cert_chain_pems[0].bytes()
        )
        factory = TLSMemoryBIOFactory(private.options(), False, self.factory)
        port = self.listen(reactor.listenTCP(0, factory, interface="127.0.0.1"))
        roots = trustRootFromCertificates([Certificate.loadPEM(authority.cert_pem.bytes())])
        options = optionsForClientTLS("localhost", trustRoot=roots)
        return port.getHost().port, options

    async def curl(self, *arguments: str) -> bytes:
        out, err, status = await getProcessOutputAndValue(
            "curl", ["-sS", "--max-time", "15", *arguments], env=os.environ
        )
        self.assertEqual(status, 0, (arguments, out[-500:], err))
        return cast(bytes, out)

    async def connect(self, number: int | None = None) -> Client:
        endpoint = HostnameEndpoint(reactor, b"127.0.0.1", number or self.number)
        return cast(Client, await connectProtocol(endpoint, Client()))

    def file(self, size: int) -> str:
        """A file to upload."""
        path = str(self.mktemp())
        with open(path, "wb") as file:
            file.write(b"0123456789abcdef" * (size // 16))
        return path

    async def sleep(self, seconds: float) -> None:
        await deferLater(reactor, seconds, lambda: None)


@needsProgram("curl", package="curl")
class CurlTests(ServerTestCase):
    """What an ordinary client makes of it."""

    async def test_keepAlive(self) -> None:
        """Two requests share one connection."""
        out = await self.curl("-w", "%{num_connects}\n", f"{self.url}/1", f"{self.url}/2")
        self.assertEqual(
            out.split(b"\n")[:4], [b"/1 False 127.0.0.1", b"1", b"/2 False 127.0.0.1", b"0"]
        )

    async def test_largeUpload(self) -> None:
        """D4: an upload is streamed; with and without Content-Length; 100-continue is met."""
        size = 32_000_000
        path = self.file(size)
        digest = hashlib.sha256(b"0123456789abcdef" * (size // 16))
        expected = f"{size} {digest.hexdigest()}".encode()
        for extra in ([], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]):
            out = await self.curl("-X", "POST", "-T", path, *extra, f"{self.url}/sum")
            self.assertEqual(out, expected, extra)

    async def test_expectContinueRefused(self) -> None:
        """A body that is too large is refused before it is sent."""
        path = self.file(2_000_000)
        out = await self.curl(
            "-H",
            "Expect: 100-continue",
            "--expect100-timeout",
            "10",
            "-T",
            path,
            "-w",
            "\n%{http_code} %{size_upload}",
            f"{self.url}/small",
        )
        self.assertEqual(out.split(b"\n")[-1], b"413 0")

    async def test_refusalSurvivesUnreadInput(self) -> None:
        """The answer arrives although the peer's body was not read."""
        path = self.file(5_000_000)
        for _ in range(3):
            out = await self.curl(
                "-H", "Expect:", "-T", path, "-w", "\n%{http_code}", f"{self.url}/small"
            )
            self.assertEqual(out.split(b"\n")[-1], b"413")

    async def test_largeDownload(self) -> None:
        """A streamed answer arrives whole."""
        out = await self.curl(f"{self.url}/large")
        self.assertEqual(len(out), 320 * 65536)

    async def test_unixSocket(self) -> None:
        """The same on a unix socket."""
        path = os.path.join("/tmp", f"helix-http-{os.getpid()}.sock")
        self.listen(reactor.listenUNIX(path, self.factory))
        out = await self.curl("--unix-socket", path, "http://localhost/u")
        self.assertEqual(out, b"/u False unix\n")


class SlowPeerTests(ServerTestCase):
    """E4: one stalled peer never delays another."""

    async def test_slowHead(self) -> None:
        """A head at a byte at a time is cut off while others are served."""
        slow = await self.connect()
        others = 0
        sent = 0
        while not slow.closed.called:
            if sent < 14:
                slow.transport.write(b"GET / HTTP/1.1"[sent : sent + 1])
                sent += 1
            other = await self.connect()
            other.transport.write(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            self.assertIn(b"200 OK", await other.closed)
            others += 1
            await self.sleep(0.1)
        self.assertTrue(slow.data.startswith(b"HTTP/1.1 408 "), slow.data)
        self.assertGreater(others, 5)

    async def test_slowBody(self) -> None:
        """A body below the least pace is cut off with 408."""
        slow = await self.connect()
        slow.transport.write(b"POST /small HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n")
        for _ in range(40):
            if slow.closed.called:
                break
            slow.transport.write(b"x")
            await self.sleep(0.1)
        self.assertIn(b"408 Request Timeout", await slow.closed)

    async def test_silentPeers(self) -> None:
        """Peers that connect and say nothing are gone after the head's deadline."""
        peers = [await self.connect() for _ in range(20)]
        for peer in peers:
            self.assertEqual(await peer.closed, b"")
        self.assertEqual(self.factory.connections, 0)
        self.assertEqual(self.factory.admission.total, 0)

    async def test_handshakeThatStops(self) -> None:
        """A TLS handshake that is begun and left is cut off by the same deadline."""
        number, _ = self.listenTLS()
        silent = await self.connect(number)
        begun = await self.connect(number)
        begun.transport.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        await silent.closed
        await begun.closed
        self.assertEqual(self.factory.connections, 0)

    async def test_readerThatStops(self) -> None:
        """D4: a reader that stops is cut off in the end, and costs a bounded buffer."""
        plain = socket.create_connection(("127.0.0.1", self.number))
        self.addCleanup(plain.close)
        plain.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        other = await self.connect()
        other.transport.write(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        self.assertIn(b"200 OK", await other.closed)
        for _ in range(100):
            if not self.factory.connections:
                break
            await self.sleep(0.1)
        self.assertEqual(self.factory.connections, 0)


class HandOverTests(ServerTestCase):
    """C5 and D1 on real transports."""

    async def exchange(self, client: Client) -> None:
        # The second half arrives while the dispatch waits, the third after it.
        client.transport.write(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /upgr")
        client.transport.write(b"ade HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\n\r\none ")
        await self.sleep(0.02)
        client.transport.write(b"two ")
        await self.sleep(0.1)
        client.transport.write(b"three")

    async def test_tcp(self) -> None:
        """All bytes arrive once; half-close is forwarded both ways."""
        client = await self.connect()
        await self.exchange(client)
        client.transport.loseWriteConnection()
        data = await client.closed
        self.assertTrue(data.endswith(b"\n" + b"one two three[end]"), data)

    async def test_tls(self) -> None:
        """The same over TLS, which has no half-close; closing works although we produced."""
        number, options = self.listenTLS()
        endpoint = wrapClientTLS(options, HostnameEndpoint(reactor, b"127.0.0.1", number))
        plain = await connectProtocol(endpoint, Client())
        plain.transport.write(b"GET /s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        self.assertIn(b"/s True 127.0.0.1", await plain.closed)
        large = await connectProtocol(endpoint, Client())
        large.transport.write(b"GET /large HTTP/1.0\r\n\r\n")
        data = await large.closed
        self.assertEqual(len(data.partition(b"\r\n\r\n")[2]), 320 * 65536)
        client = await connectProtocol(endpoint, Client())
        await self.exchange(client)
        await self.sleep(0.05)
        self.assertTrue(client.data.endswith(b"one two three"), client.data)
        client.transport.loseConnection()
        await client.closed

    async def test_unix(self) -> None:
        """The same over a unix socket."""
        path = os.path.join("/tmp", f"helix-handover-{os.getpid()}.sock")
        self.listen(reactor.listenUNIX(path, self.factory))
        client = await UNIXClientEndpoint(reactor, path).connect(Factory.forProtocol(Client))
        await self.exchange(client)
        client.transport.loseWriteConnection()
        self.assertTrue((await client.closed).endswith(b"one two three[end]"))
