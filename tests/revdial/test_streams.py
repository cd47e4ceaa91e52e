"""Tests for L{helix_revdial.revdial.streams}."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone, NoProtocol
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from helix_revdial.revdial.interfaces import ICarrierTransport
from helix_revdial.revdial.streams import (
    IStreamTransport,
    RunnerAddress,
    Stream,
    StreamOwner,
    StreamProtocol,
    TargetAddress,
)
from tests.revdial.carriers import MemoryCarrier


class Ordinary(Protocol):
    """A protocol that knows no half-close."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def connectionMade(self) -> None:
        self.heard.append("made")

    def dataReceived(self, data: bytes) -> None:
        self.heard.append(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.heard.append(reason.value.__class__)


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Ordinary):
    """One that does."""

    def readConnectionLost(self) -> None:
        self.heard.append("read lost")

    def writeConnectionLost(self) -> None:
        self.heard.append("write lost")


class Owner(StreamOwner):
    """Has a test case told."""

    def __init__(self, case: StreamCase) -> None:
        self._case = case

    def streamConnected(self, protocol: Any) -> None:
        self._case.connected.append(protocol)

    def streamFailed(self, failure: Failure) -> None:
        self._case.failed.append(failure)

    def streamEnded(self, stream: StreamProtocol, reason: Failure) -> None:
        self._case.ended.append(reason)


class StreamCase(SynchronousTestCase):
    """A dialled stream on a carrier in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.stream = Stream(self.clock, "5" * 32, "wolf-1", "api")
        self.connected: list[Any] = []
        self.failed: list[Failure] = []
        self.ended: list[Failure] = []
        self.owner = Owner(self)

    def carry(self, protocol: Any, *, dialled: bool = True, **options: Any) -> MemoryCarrier:
        factory = Factory()
        factory.buildProtocol = lambda addr: protocol  # type: ignore[method-assign]
        return MemoryCarrier(**options).connect(
            StreamProtocol(
                factory,
                RunnerAddress("wolf-1", "api"),
                stream=self.stream if dialled else None,
                owner=self.owner,
            )
        )


class StreamProtocolTests(StreamCase):
    def test_theTransport(self) -> None:
        """It provides what it says, and passes everything to the carrier."""
        protocol = Ordinary()
        carrier = self.carry(protocol, responseHeaders=((b"a", b"b"),), canPing=True)
        transport: Any = protocol.transport
        verifyObject(ICarrierTransport, transport)
        verifyObject(IStreamTransport, transport)
        self.assertIs(transport.stream, self.stream)
        self.assertEqual(transport.getPeer(), RunnerAddress("wolf-1", "api"))
        self.assertEqual(transport.getHost(), carrier.getHost())
        self.assertEqual(transport.responseHeaders, ((b"a", b"b"),))
        self.assertEqual((transport.carrier, transport.halfClose), ("raw", True))
        transport.writeSequence([b"a", b"b"])
        carrier.deliver(b"xyz")
        self.assertEqual(carrier.value(), b"ab")
        self.assertEqual((transport.bytesSent, transport.bytesReceived), (2, 3))
        self.assertEqual((self.stream.bytesOut, self.stream.bytesIn), (2, 3))
        transport.pauseProducing()
        self.assertEqual(carrier.producerState, "paused")
        transport.resumeProducing()
        self.assertEqual(carrier.producerState, "producing")
        transport.registerProducer(self, True)
        self.assertIs(carrier.producer, self)
        transport.unregisterProducer()
        self.assertIsNone(carrier.producer)
        self.assertIsNotNone(transport.ping())
        transport.loseWriteConnection()
        self.assertTrue(carrier.writeEnded)
        carrier.pings.pop().callback(0.0)
        transport.closeWith(4000, "enough")
        self.assertEqual(carrier.closedWith, (4000, "enough"))

    def test_theAgentsSide(self) -> None:
        """There the peer is the server, and there is no record."""
        protocol = Ordinary()
        carrier = self.carry(protocol, dialled=False)
        transport: Any = protocol.transport
        self.assertIsNone(transport.stream)
        self.assertEqual(transport.getPeer(), carrier.getPeer())
        transport.write(b"x")
        carrier.lose()
        self.assertEqual(protocol.heard, ["made", ConnectionDone])

    def test_phases(self) -> None:
        """Each phase is timed from the start of the dial, and the first time counts."""
        protocol = HalfCloseable()
        self.clock.advance(1)
        carrier = self.carry(protocol)
        transport: Any = protocol.transport
        for _ in range(2):
            self.clock.advance(1)
            transport.write(b"x")
            carrier.deliver(b"y")
        self.clock.advance(1)
        transport.loseWriteConnection()
        self.clock.advance(1)
        carrier.protocol.readConnectionLost()
        self.assertEqual(self.stream.carrier, "raw")
        carrier.lose()
        self.assertEqual(
            self.stream.phases,
            {
                "dialBack": 1.0,
                "firstByteOut": 2.0,
                "firstByteIn": 2.0,
                "endOut": 4.0,
                "endIn": 5.0,
                "ended": 5.0,
            },
        )
        self.assertEqual(self.stream.reason, "closed")
        self.assertIsNone(self.stream.carrier)
        self.assertEqual((self.stream.bytesIn, self.stream.bytesOut), (2, 2))

    def test_halfClose(self) -> None:
        """A protocol that knows half-close hears of it, and the stream goes on."""
        protocol = HalfCloseable()
        carrier = self.carry(protocol)
        carrier.protocol.readConnectionLost()
        self.assertFalse(carrier.ended)
        carrier.protocol.writeConnectionLost()
        carrier.lose()
        self.assertEqual(protocol.heard, ["made", "read lost", "write lost", ConnectionDone])

    def test_anOrdinaryProtocolAtTheEndOfTheStream(self) -> None:
        """It hears connectionLost, once, and what it wrote is flushed."""
        protocol = Ordinary()
        carrier = self.carry(protocol, stuck=True)
        transport: Any = protocol.transport
        transport.write(b"last words")
        transport.registerProducer(self, True)
        carrier.protocol.readConnectionLost()
        self.assertEqual(protocol.heard, ["made", ConnectionDone])
        self.assertFalse(carrier.aborted)
        self.assertEqual(self.ended, [], "the carrier still flushes")
        carrier.lose()
        self.assertEqual(protocol.heard, ["made", ConnectionDone])
        self.assertEqual(len(self.ended), 1)

    def test_noProtocol(self) -> None:
        """A factory may decline: the carrier is aborted, and the dialler told."""
        carrier = self.carry(None)
        self.assertTrue(carrier.aborted)
        self.assertEqual([failure.type for failure in self.failed], [NoProtocol])
        self.assertEqual(self.connected, [])

    def test_connectionMadeFails(self) -> None:
        """A protocol that cannot start is told nothing more."""
        protocol = Ordinary()
        protocol.connectionMade = lambda: 1 / 0  # type: ignore[method-assign,assignment]
        carrier = self.carry(protocol)
        self.assertTrue(carrier.aborted)
        self.assertEqual([failure.type for failure in self.failed], [ZeroDivisionError])
        self.assertEqual(self.stream.reason, "the protocol could not be connected")

    def test_everyCallbackIsGuarded(self) -> None:
        """D13: whichever call of the caller's code fails, the carrier is let go."""
        for method, event in (
            ("dataReceived", lambda carrier: carrier.deliver(b"x")),
            ("readConnectionLost", lambda carrier: carrier.protocol.readConnectionLost()),
            ("writeConnectionLost", lambda carrier: carrier.protocol.writeConnectionLost()),
            ("connectionLost", lambda carrier: carrier.lose()),
        ):
            protocol = HalfCloseable()
            setattr(protocol, method, lambda *_: 1 / 0)
            carrier = self.carry(protocol)
            event(carrier)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1, method)
            self.assertTrue(carrier.ended, method)

    def test_cut(self) -> None:
        """A stream that is cut says why, not just that it was aborted."""
        protocol = Ordinary()
        carrier = self.carry(protocol)
        carrier.protocol.cut("revoked")
        self.assertEqual(protocol.heard, ["made", ConnectionAborted])
        self.assertEqual(self.stream.reason, "revoked")

    def test_aLineReceiverStopsWhenItCloses(self) -> None:
        """Twisted's protocols look at C{disconnecting} in the middle of their input."""
        lines: list[bytes] = []

        class Lines(LineReceiver):
            def lineReceived(self, line: bytes) -> None:
                lines.append(line)
                if line == b"quit":
                    self.transport.loseConnection()  # type: ignore[union-attr]

        self.carry(Lines(), stuck=True).deliver(b"one\r\nquit\r\ntwo\r\n")
        self.assertEqual(lines, [b"one", b"quit"])

    def test_addresses(self) -> None:
        """Two addresses of one place are equal."""
        self.assertEqual(TargetAddress("api"), TargetAddress("api"))
        self.assertNotEqual(RunnerAddress("a"), RunnerAddress("a", "api"))
