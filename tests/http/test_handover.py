"""Handing a connection over to another protocol."""

from __future__ import annotations

import gc
import weakref
from typing import cast

import txaio
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from helix_revdial.http.head import HeadReader
from helix_revdial.http.limits import HTTPLimits
from helix_revdial.http.problem import Problem
from helix_revdial.http.request import ConnectionGone, Request
from helix_revdial.http.response import HANDED_OVER, HandedOver, Response
from tests.http.exchange import Exchange

HEAD = (
    b"GET /api/v1/revdial?runnerid=a HTTP/1.1\r\nhOST: a\r\nConnection: keep-alive, Upgrade\r\n"
    b"Upgrade: revdial\r\nX-Long:  value \r\n\r\n"
)
REPLAYED = HEAD.replace(b":  value ", b": value")
TRAILING = b"\x00\x01first\r\n\r\nGET / HTTP/1.1\r\n\r\n\xff"


class Successor(Protocol):
    """Records what it gets."""

    def __init__(self) -> None:
        self.data = b""
        self.lost: list[Failure] = []
        self.made = 0

    def connectionMade(self) -> None:
        self.made += 1

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008
        self.lost.append(reason)


@implementer(IHalfCloseableProtocol)
class HalfCloseableSuccessor(Successor):
    """Records the ends of the directions, too."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[str] = []

    def readConnectionLost(self) -> None:
        self.ends.append("read after " + str(len(self.data)))

    def writeConnectionLost(self) -> None:
        self.ends.append("write")


class Gate:
    """A dispatch that hands over when told; other paths are answered."""

    def __init__(self, successor: Protocol, *, replayHead: bool = False) -> None:
        self.successor = successor
        self.replayHead = replayHead
        self.waiting: Deferred[None] | None = None
        self.asynchronous = False
        self.requests: list[Request] = []

    async def __call__(self, request: Request) -> Response | HandedOver:
        self.requests.append(request)
        if request.path != "/api/v1/revdial":
            return Response(200, [], request.path.encode())
        if self.asynchronous:
            self.waiting = Deferred()
            await self.waiting
        return request.handOver(self.successor, replayHead=self.replayHead)


class KeepsNothingTests(SynchronousTestCase):
    """A connection that was handed over may live for months, beside thousands of others."""

    def test_theRequestIsFreed(self) -> None:
        """D16: Neither the request nor its parser is held by the connection."""
        successor = Successor()
        gate = Gate(successor)
        exchange = Exchange(gate)
        exchange.send(HEAD + b"first")
        self.assertEqual(successor.data, b"first")
        request = weakref.ref(gate.requests.pop())
        gc.collect()
        self.assertIsNone(request(), "somebody holds the request")
        held = [*vars(exchange.protocol).values(), *_slotsOf(exchange.protocol)]
        kinds = {type(each).__module__.partition(".")[0] for each in held}
        self.assertNotIn("h11", kinds)
        self.assertFalse(any(isinstance(each, HeadReader | bytes) for each in held), held)
        exchange.send(b" last")
        self.assertEqual(successor.data, b"first last")


def _slotsOf(thing: object) -> list[object]:
    names = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    return [getattr(thing, name) for name in names if hasattr(thing, name)]


class HandOverTests(SynchronousTestCase):
    def test_atEverySplit(self) -> None:
        """C5: each byte after the head reaches the successor once and in order."""
        data = HEAD + TRAILING
        for position in range(len(data) + 1):
            successor = Successor()
            exchange = Exchange(Gate(successor))
            exchange.send(data[:position])
            exchange.send(data[position:])
            self.assertEqual(successor.data, TRAILING, position)
            self.assertEqual(successor.made, 1)
            self.assertIs(successor.transport, exchange.transport)
            self.assertEqual(exchange.written, b"")

    def test_byteByByte(self) -> None:
        """C5: the same for one byte at a time."""
        successor = Successor()
        exchange = Exchange(Gate(successor))
        for at in range(len(HEAD + TRAILING)):
            exchange.send((HEAD + TRAILING)[at : at + 1])
        self.assertEqual(successor.data, TRAILING)

    def test_replayAtEverySplit(self) -> None:
        """The head is replayed once, with the letter case of its names, then the rest."""
        data = HEAD + TRAILING
        for position in range(len(data) + 1):
            successor = Successor()
            exchange = Exchange(Gate(successor, replayHead=True))
            exchange.send(data[:position])
            exchange.send(data[position:])
            self.assertEqual(successor.data, REPLAYED + TRAILING, position)

    def test_asynchronouslyAtEverySplit(self) -> None:
        """
        C5: while the dispatch waits, bytes are held; those before the hand-over and
        those after it arrive in order.
        """
        data = HEAD + TRAILING
        for position in range(len(HEAD), len(data) + 1):
            successor = Successor()
            gate = Gate(successor)
            gate.asynchronous = True
            exchange = Exchange(gate)
            exchange.send(data[: len(HEAD) - 3])
            exchange.send(data[len(HEAD) - 3 : position])
            self.assertEqual(successor.made, 0)
            assert gate.waiting is not None
            gate.waiting.callback(None)
            exchange.send(data[position:])
            self.assertEqual(successor.data, TRAILING, position)

    def test_held(self) -> None:
        """While the dispatch waits a peer that goes on sending is paused, then resumed."""
        successor = Successor()
        gate = Gate(successor)
        gate.asynchronous = True
        exchange = Exchange(gate, limits=HTTPLimits(holdBuffer=1000))
        exchange.send(HEAD + b"x" * 999)
        self.assertFalse(exchange.transport.paused)
        exchange.send(b"y")
        self.assertTrue(exchange.transport.paused)
        exchange.send(b"z" * 50)
        assert gate.waiting is not None
        gate.waiting.callback(None)
        self.assertFalse(exchange.transport.paused)
        self.assertEqual(successor.data, b"x" * 999 + b"y" + b"z" * 50)

    def test_successorThatPauses(self) -> None:
        """A successor that pauses the transport as it is connected is not overruled."""

        class Pausing(Successor):
            def connectionMade(self) -> None:
                assert isinstance(self.transport, StringTransport)
                self.transport.pauseProducing()

        gate = Gate(Pausing())
        gate.asynchronous = True
        exchange = Exchange(gate, limits=HTTPLimits(holdBuffer=10))
        exchange.send(HEAD + b"x" * 100)
        self.assertTrue(exchange.transport.paused)
        assert gate.waiting is not None
        gate.waiting.callback(None)
        self.assertTrue(exchange.transport.paused)

    def test_nothingOfHTTPIsLeft(self) -> None:
        """The producer slot is free and no timer runs; D18: an idle stream lives on."""
        successor = Successor()
        exchange = Exchange(Gate(successor))
        exchange.send(HEAD)
        self.assertIsNone(exchange.transport.producer)
        self.assertEqual(exchange.clock.getDelayedCalls(), [])
        exchange.clock.advance(100000)
        self.assertFalse(exchange.closed)

    def test_pipelinedRequestsFirst(self) -> None:
        """Requests before it are answered before the successor is connected."""
        successor = Successor()
        exchange = Exchange(Gate(successor))
        get = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n"
        exchange.send(get + get.replace(b"1 ", b"2 ") + HEAD + TRAILING)
        self.assertEqual([body for _, _, body in exchange.answers()], [b"/1", b"/2"])
        self.assertEqual(successor.data, TRAILING)

    def test_afterAnyRequestOfAConnection(self) -> None:
        """A request after a body can be handed over; the body is not replayed."""
        successor = Successor()
        exchange = Exchange(Gate(successor))
        exchange.send(b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" + HEAD)
        self.assertEqual(exchange.statuses(), [200])
        exchange.send(TRAILING)
        self.assertEqual(successor.data, TRAILING)

    def test_halfCloseIsForwarded(self) -> None:
        """D1: the ends of both directions reach a successor that knows them, once."""
        successor = HalfCloseableSuccessor()
        exchange = Exchange(Gate(successor))
        exchange.send(HEAD + b"abc")
        exchange.protocol.readConnectionLost()
        exchange.protocol.readConnectionLost()
        exchange.protocol.writeConnectionLost()
        self.assertEqual(successor.ends, ["read after 3", "write"])
        self.assertFalse(exchange.closed)

    def test_halfCloseBeforeTheHandOver(self) -> None:
        """A direction that ended while the dispatch waited ends after its bytes."""
        successor = HalfCloseableSuccessor()
        gate = Gate(successor)
        gate.asynchronous = True
        exchange = Exchange(gate)
        exchange.send(HEAD + b"abc")
        exchange.protocol.readConnectionLost()
        assert gate.waiting is not None
        gate.waiting.callback(None)
        self.assertEqual(successor.data, b"abc")
        self.assertEqual(successor.ends, ["read after 3"])

    def test_halfCloseForOthers(self) -> None:
        """A successor that does not know half-close is closed, after what it wrote."""
        successor = Successor()
        exchange = Exchange(Gate(successor))
        exchange.send(HEAD)
        exchange.transport.registerProducer(successor, True)
        exchange.protocol.readConnectionLost()
        self.assertIsNone(exchange.transport.producer)
        self.assertTrue(exchange.transport.disconnecting)
        exchange.protocol.writeConnectionLost()
        exchange.lose()
        self.assertEqual(len(successor.lost), 1)
        self.assertEqual(exchange.clock.getDelayedCalls(), [])

    def test_lossIsForwardedOnce(self) -> None:
        """The successor hears of the loss, with its reason."""
        successor = Successor()
        exchange = Exchange(Gate(successor))
        exchange.send(HEAD)
        exchange.lose(clean=False)
        self.assertEqual(len(successor.lost), 1)
        self.assertEqual(exchange.factory.connections, 0)

    def test_lostMeanwhile(self) -> None:
        """
        C1: a connection that is lost while the dispatch waits is not handed over:
        the dispatch is cancelled, and handOver says so if it goes on.
        """
        seen: list[BaseException] = []
        waiting: Deferred[None] = Deferred()
        built: list[Successor] = []

        def build() -> Successor:
            built.append(Successor())
            return built[-1]

        async def dispatch(request: Request) -> Response | HandedOver:
            try:
                await waiting
            except BaseException as error:
                seen.append(error)
            try:
                return request.handOver(build)
            except ConnectionGone as error:
                seen.append(error)
                raise

        exchange = Exchange(dispatch)
        exchange.send(HEAD)
        exchange.lose()
        self.assertEqual(
            [type(error).__name__ for error in seen], ["CancelledError", "ConnectionGone"]
        )
        self.assertEqual(built, [])

    def test_builtByACallable(self) -> None:
        """A callable builds the successor when it is certain to be used."""
        built: list[Successor] = []

        async def dispatch(request: Request) -> Response | HandedOver:
            def build() -> Successor:
                built.append(Successor())
                return built[-1]

            return request.handOver(build)

        Exchange(dispatch).send(HEAD + b"x")
        self.assertEqual([successor.data for successor in built], [b"x"])

    def test_requestWithABody(self) -> None:
        """A request that carries a body nobody read cannot be handed over: 400."""
        successor = Successor()
        exchange = Exchange(Gate(successor))
        exchange.send(HEAD[:-2] + b"Content-Length: 3\r\n\r\nab")
        self.assertEqual(exchange.statuses(), [400])
        self.assertEqual(successor.made, 0)

    def test_bodyReadFirst(self) -> None:
        """A body that was read leaves what follows it, in the same segment, to the successor."""
        successor = Successor()

        async def dispatch(request: Request) -> Response | HandedOver:
            await request.body.read(10)
            return request.handOver(successor)

        data = HEAD[:-2] + b"Content-Length: 3\r\n\r\nabcTRAILING"
        for position in range(len(data)):
            successor = Successor()
            exchange = Exchange(dispatch)
            exchange.send(data[:position])
            exchange.send(data[position:])
            self.assertEqual(successor.data, b"TRAILING", position)

    def test_successorThatFails(self) -> None:
        """A successor that raises as it is connected costs its connection only; it is logged."""

        class Failing(Successor):
            def connectionMade(self) -> None:
                raise ZeroDivisionError

        successor = Failing()
        exchange = Exchange(Gate(successor))
        exchange.send(HEAD)
        self.assertTrue(exchange.transport.aborted)
        exchange.lose()
        self.assertEqual(len(successor.lost), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_refusedUpgradeGoesOnAsHTTP(self) -> None:
        """
        An upgrade that is refused leaves the connection as it was: the requests behind
        it are answered, at every split.
        """

        async def dispatch(request: Request) -> Response:
            if b"upgrade" in request.headers:
                raise Problem(409, "Held by another.")
            return Response(200, [], request.path.encode())

        data = HEAD + b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
        for position in range(len(data)):
            exchange = Exchange(dispatch)
            exchange.send(data[:position])
            exchange.send(data[position:])
            self.assertEqual(exchange.statuses(), [409, 200], position)
            self.assertFalse(exchange.closed)

    def test_handedOverButNot(self) -> None:
        """A dispatch that says so without doing so is a fault: logged, connection dropped."""

        async def dispatch(request: Request) -> HandedOver:
            return HANDED_OVER

        exchange = Exchange(dispatch)
        exchange.send(HEAD)
        self.assertTrue(exchange.transport.aborted)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_autobahnTakesTheReplayedHead(self) -> None:
        """Autobahn completes its handshake from the replayed head and reads what followed."""
        clock = Clock()
        self.patch(txaio.config, "loop", clock)  # type: ignore[attr-defined]
        messages: list[bytes] = []

        class Echo(WebSocketServerProtocol):
            def onMessage(self, payload: bytes, isBinary: bool) -> None:
                messages.append(payload)

            @classmethod
            def made(cls, factory: WebSocketServerFactory) -> WebSocketServerProtocol:
                return cast(WebSocketServerProtocol, factory.buildProtocol(None))

        factory = WebSocketServerFactory()
        factory.protocol = Echo

        async def dispatch(request: Request) -> HandedOver:
            return request.handOver(lambda: Echo.made(factory), replayHead=True)

        head = (
            b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade"
            b"\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        frame = b"\x82\x83\0\0\0\0abc"
        exchange = Exchange(dispatch)
        exchange.send(head[:50])
        exchange.send(head[50:] + frame)
        self.assertIn(b" 101 ", exchange.written)
        self.assertIn(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", exchange.written)
        self.assertEqual(messages, [b"abc"])
