"""Carriers over real sockets: what each can do, and that none loses a byte."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import trustme
from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from OpenSSL import SSL
from twisted.internet import error, ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
    wrapServerTLS,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from helix_revdial.revdial.data_websocket import DataWebSocketEndpoint
from helix_revdial.revdial.exchange import CarrierURL, endpointFor
from helix_revdial.revdial.relay import RelayEnd, relayPair
from helix_revdial.revdial.upgrade import RawUpgradeEndpoint, rawServer
from tests.revdial.wire import HalfRecorder, HeadThen, Recorder, dataHead

MEGABYTE = 1024 * 1024


class Hashing(HalfRecorder):
    """
    Keeps a hash of what it hears, and fires when it has heard the end of it.

    @ivar over: Fires with the reason when the connection is lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hash = hashlib.sha256()
        self.size = 0
        self.over: Deferred[Any] = Deferred()
        self.onEnd: Any = None

    def dataReceived(self, data: bytes) -> None:
        self.hash.update(data)
        self.size += len(data)

    def readConnectionLost(self) -> None:
        super().readConnectionLost()
        if self.onEnd is not None:
            self.onEnd()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.over.callback(self.reason)


class Source:
    """Writes a body, in chunks of any size, as fast as the transport takes it."""

    def __init__(self, transport: Any, size: int, seed: int, then: str) -> None:
        self.transport = transport
        self.left = size
        self.random = random.Random(seed)
        self.block = os.urandom(MEGABYTE)
        self.hash = hashlib.sha256()
        self.then = then
        self.paused = False
        transport.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        self.paused = False
        while self.left and not self.paused:
            size = min(self.left, self.random.choice((1, 500, 4096, 65536, 100_000)))
            data = self.block[:size]
            self.left -= size
            self.hash.update(data)
            self.transport.write(data)
        if not self.left and self.then:
            then, self.then = self.then, ""
            self.transport.unregisterProducer()
            getattr(self.transport, then)()

    def pauseProducing(self) -> None:
        self.paused = True

    def stopProducing(self) -> None:
        self.left = 0
        self.then = ""


class CarrierCase(TestCase):
    """Starts a server and dials it, over any carrier."""

    timeout = 25

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor

    async def open(self, kind: str, server: Any, client: Any) -> None:
        """
        Connect C{client} with C{server}.

        @param kind: Words: C{raw} or C{websocket}; C{tcp}, C{unix} or C{tls}; C{eof}.
        """
        words = kind.split()
        eof = "eof" in words

        def build() -> Any:
            if "raw" in words:
                return rawServer(server, clock=self.reactor)
            return dataHead(server, eof=eof, clock=self.reactor)

        def accept() -> Any:
            return HeadThen(build, replayHead=False) if "raw" in words else build()

        factory = Factory.forProtocol(accept)
        url, endpoint = await self.listen(words, factory)
        dial: Any
        if "raw" in words:
            dial = RawUpgradeEndpoint(self.reactor, endpoint, url)
        else:
            dial = DataWebSocketEndpoint(self.reactor, endpoint, url, eof=eof)
        await dial.connect(Factory.forProtocol(lambda: client))

    async def listen(self, words: list[str], factory: Any) -> tuple[CarrierURL, Any]:
        """Listen; where the server is, and the way to it."""
        endpoint: Any
        tlsOptions = None
        if "unix" in words:
            path = tempfile.mktemp(prefix="helix-carrier-", suffix=".sock")
            endpoint = UNIXServerEndpoint(self.reactor, path)
        else:
            endpoint = TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1")
        if "tls" in words:
            authority = trustme.CA()
            certificate = authority.issue_cert("127.0.0.1")
            context = SSL.Context(SSL.TLS_METHOD)
            certificate.configure_cert(context)
            options = ssl.CertificateOptions()
            options._context = context
            endpoint = wrapServerTLS(options, endpoint)
            root = ssl.Certificate.loadPEM(authority.cert_pem.bytes())
            tlsOptions = ssl.optionsForClientTLS("127.0.0.1", trustRoot=root)
        port = await endpoint.listen(factory)
        self.addCleanup(port.stopListening)
        if "unix" in words:
            return CarrierURL("localhost", 80, False, "/x"), UNIXClientEndpoint(self.reactor, path)
        number = port.getHost().port
        secure = "tls" in words
        url = CarrierURL("127.0.0.1", number, secure, "/api/v1/revdial")
        return url, endpointFor(self.reactor, "127.0.0.1", number, secure, tlsOptions)

    def sleep(self, seconds: float) -> Deferred[None]:
        """Let the reactor run."""
        return deferLater(self.reactor, seconds)


class MatrixTests(CarrierCase):
    """
    D1, D3: each carrier, each way to end.

    @ivar MATRIX: Each carrier, and whether the end of one direction leaves the
        other open.
    """

    MATRIX: ClassVar[dict[str, bool]] = {
        "raw tcp": True,
        "raw unix": True,
        "raw tls": False,
        "websocket tcp eof": True,
        "websocket tls eof": True,
        "websocket unix eof": True,
        "websocket tcp": False,
        "websocket tls": False,
    }

    NO_RESET = "raw unix"

    def test_theTableInTheDocs(self) -> None:
        """What the docs promise is what is proved here."""
        docs = Path(__file__).parents[2] / "docs" / "carriers.md"
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in docs.read_text().splitlines()
            if line.startswith(("| raw", "| websocket"))
        ]
        yes = {True: "yes", False: "no"}
        self.assertEqual(
            rows,
            [
                [kind, yes[half], yes[kind != self.NO_RESET], yes["websocket" in kind]]
                for kind, half in self.MATRIX.items()
            ],
        )

    async def test_everyByteArrivesBothWays(self) -> None:
        """Chunks of all sizes, both ways at once: the hashes are equal."""
        for kind, half in self.MATRIX.items():
            server, client = Hashing(), Hashing()
            await self.open(kind, server, client)
            self.assertEqual(client.wire.halfClose, half, kind)
            end = "loseWriteConnection" if half else ""
            one = Source(client.wire, 5 * MEGABYTE, 1, end)
            two = Source(server.wire, 5 * MEGABYTE, 2, end)
            if half:
                server.onEnd = client.onEnd = None
                while "end" not in server.heard or "end" not in client.heard:
                    await self.sleep(0.01)
            else:
                while server.size < 5 * MEGABYTE or client.size < 5 * MEGABYTE:
                    await self.sleep(0.01)
            client.wire.loseConnection()
            server.wire.loseConnection()
            reasons = (await server.over, await client.over)
            for reason in reasons:
                self.assertIsInstance(reason, error.ConnectionDone, kind)
            self.assertEqual(server.hash.digest(), one.hash.digest(), kind)
            self.assertEqual(client.hash.digest(), two.hash.digest(), kind)

    async def test_aCloseAfter20MBAndAReaderThatStops(self) -> None:
        """D3: The writer closes at once; the reader stops for a while; nothing is cut."""
        for kind in self.MATRIX:
            server, client = Hashing(), Hashing()
            await self.open(kind, server, client)
            client.onEnd = client.wire.loseConnection
            body = os.urandom(MEGABYTE)
            client.wire.pauseProducing()
            for _ in range(20):
                server.wire.write(body)
            server.wire.loseConnection()
            await self.sleep(0.5)
            client.wire.resumeProducing()
            await client.over
            await server.over
            self.assertEqual(client.size, 20 * MEGABYTE, kind)
            self.assertEqual(client.hash.digest(), hashlib.sha256(body * 20).digest(), kind)
            self.assertIsInstance(client.reason, error.ConnectionDone, kind)

    async def test_aReplyAfterTheEndOfTheRequest(self) -> None:
        """D1: Where the carrier can half-close, a reply to an ended request comes whole."""
        for kind, half in self.MATRIX.items():
            if not half:
                continue
            for who in ("client", "server"):
                server, client = Hashing(), Hashing()
                await self.open(kind, server, client)
                asks, answers = (client, server) if who == "client" else (server, client)
                reply = os.urandom(MEGABYTE)

                def answer(to: Any = answers, reply: bytes = reply) -> None:
                    to.wire.write(reply)
                    to.wire.loseWriteConnection()

                answers.onEnd = answer
                asks.onEnd = asks.wire.loseConnection
                asks.wire.write(b"request")
                asks.wire.loseWriteConnection()
                await asks.over
                answers.wire.loseConnection()
                await answers.over
                self.assertEqual(asks.hash.digest(), hashlib.sha256(reply).digest(), kind)
                self.assertEqual(answers.size, 7, kind)

    async def test_anAbortIsALossOnEveryCarrier(self) -> None:
        """
        D1: A reset never looks like an end.  (A unix socket knows no reset: raw bytes
        over one cannot tell an abort from an end.)
        """
        for kind in self.MATRIX:
            if kind == self.NO_RESET:
                continue
            server, client = Hashing(), Hashing()
            await self.open(kind, server, client)
            client.wire.write(b"cut")
            client.wire.abortConnection()
            await client.over
            reason = await server.over
            self.assertFalse(isinstance(reason, error.ConnectionDone), kind)

    async def test_anUnknownAuthorityIsNotTrusted(self) -> None:
        """F8: Without the right trust root there is no connection."""
        built: list[Any] = []
        factory = Factory.forProtocol(lambda: HeadThen(lambda: built.append(1), replayHead=True))
        url, _ = await self.listen(["tls"], factory)
        endpoint = endpointFor(self.reactor, url.host, url.port, True)
        dial = RawUpgradeEndpoint(self.reactor, endpoint, url)
        with self.assertRaises(SSL.Error):
            await dial.connect(Factory.forProtocol(Recorder))
        self.assertEqual(built, [])


class AutobahnPeerTests(CarrierCase):
    """Against a stock Autobahn, at either end."""

    async def test_ourServer(self) -> None:
        """A stock client sends fragments and a large message, and closes."""
        server = Hashing()
        factory = Factory.forProtocol(lambda: dataHead(server, eof=False, clock=self.reactor))
        url, _ = await self.listen([], factory)
        body = os.urandom(3 * MEGABYTE)

        class Client(WebSocketClientProtocol):
            def onOpen(self) -> None:
                self.sendMessage(body, isBinary=True, fragmentSize=4096)
                self.sendMessage(body, isBinary=True)
                self.sendClose(1000)

        stock = WebSocketClientFactory(f"ws://127.0.0.1:{url.port}", reactor=self.reactor)
        stock.protocol = Client
        stock.setProtocolOptions(openHandshakeTimeout=0, closeHandshakeTimeout=0)
        await endpointFor(self.reactor, "127.0.0.1", url.port, False).connect(stock)
        reason = await server.over
        self.assertIsInstance(reason, error.ConnectionDone)
        self.assertEqual(server.hash.digest(), hashlib.sha256(body * 2).digest())

    async def test_ourClient(self) -> None:
        """A stock server echoes our messages, and answers our close."""

        class Echo(WebSocketServerProtocol):
            def onMessage(self, payload: bytes, isBinary: bool) -> None:
                self.sendMessage(payload, isBinary)

        stock = WebSocketServerFactory(reactor=self.reactor)
        stock.protocol = Echo
        stock.setProtocolOptions(openHandshakeTimeout=0, closeHandshakeTimeout=0)
        url, endpoint = await self.listen([], stock)
        client = Hashing()
        await DataWebSocketEndpoint(self.reactor, endpoint, url, eof=False).connect(
            Factory.forProtocol(lambda: client)
        )
        body = os.urandom(MEGABYTE)
        client.wire.write(body)
        while client.size < len(body):
            await self.sleep(0.01)
        self.assertLess(await client.wire.ping(), 5)
        client.wire.loseConnection()
        self.assertIsInstance(await client.over, error.ConnectionDone)
        self.assertEqual(client.hash.digest(), hashlib.sha256(body).digest())


class RelayTests(CarrierCase):
    """The relay between a socket and a carrier."""

    def resident(self) -> int:
        """Bytes of this process in memory."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def test_aSlowReaderCostsABoundedAmount(self) -> None:
        """
        D4: 200 MB from a fast writer through a relay and a WebSocket to a reader that
        keeps stopping: memory grows by little, and every byte arrives.
        """
        ends: list[RelayEnd] = []
        left, right = relayPair(self.reactor, onEnd=ends.append)
        reader, writer = Hashing(), Hashing()
        await self.open("websocket tcp eof", left, reader)
        _, endpoint = await self.listen([], Factory.forProtocol(lambda: right))
        await endpoint.connect(Factory.forProtocol(lambda: writer))
        gc.collect()
        before = highest = self.resident()
        source = Source(writer.wire, 200 * MEGABYTE, 3, "loseWriteConnection")
        reader.onEnd = reader.wire.loseWriteConnection
        pauses = 0
        while "end" not in reader.heard:
            reader.wire.pauseProducing()
            await self.sleep(0.05)
            highest = max(highest, self.resident())
            pauses += 1
            reader.wire.resumeProducing()
            await self.sleep(0.1)
            highest = max(highest, self.resident())
        await reader.over
        writer.wire.loseConnection()
        await writer.over
        self.assertEqual(reader.hash.digest(), source.hash.digest())
        self.assertGreater(pauses, 2)
        self.assertLess(highest - before, 16 * MEGABYTE)
        while not ends:
            await self.sleep(0.01)
        self.assertEqual(ends[0].why, "done")
        self.assertEqual(ends[0].fromRight, 200 * MEGABYTE)

    async def test_aStoppedReaderStopsTheWriter(self) -> None:
        """D4: Nothing is read from the writer while nobody takes it."""
        left, right = relayPair(self.reactor)
        reader, writer = Hashing(), Hashing()
        await self.open("websocket tls eof", left, reader)
        _, endpoint = await self.listen([], Factory.forProtocol(lambda: right))
        await endpoint.connect(Factory.forProtocol(lambda: writer))
        reader.wire.pauseProducing()
        source = Source(writer.wire, 500 * MEGABYTE, 4, "")
        await self.sleep(0.5)
        stopped = source.left
        self.assertGreater(stopped, 400 * MEGABYTE)
        await self.sleep(0.3)
        self.assertEqual(source.left, stopped)
        writer.wire.abortConnection()
        await writer.over
        reader.wire.abortConnection()
        await reader.over
        while left.isOpen or right.isOpen:
            await self.sleep(0.01)
