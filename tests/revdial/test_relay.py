"""Tests for L{helix_revdial.revdial.relay}."""

from __future__ import annotations

import gc
import socket
import weakref
from typing import Any

from twisted.internet import error
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.relay import RelayEnd, relayPair
from helix_revdial.revdial.sockets import DELIVERY
from tests.revdial.wire import HalfRecorder, Recorder, Wire


class RelayCase(SynchronousTestCase):
    """A relay between two peers, each over a connection of its own."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.ends: list[RelayEnd] = []

    def relay(self, one: Any, two: Any, *, halfClosing: tuple[bool, bool] = (True, True)) -> None:
        """Join peers C{one} and C{two}; their transports are C{wires[n].left}."""
        self.left, self.right = relayPair(self.clock, linger=60.0, onEnd=self.ends.append)
        self.one, self.two = one, two
        self.wires: tuple[Wire, ...] = (
            Wire(one, self.left, halfClosing=halfClosing[0]).connect(),
            Wire(two, self.right, halfClosing=halfClosing[1]).connect(),
        )

    def settle(self, size: int = 65536) -> None:
        """Let everything move that can."""
        for _ in range(200):
            for wire in self.wires:
                wire.settle(size, self.clock)
            if not any(wire.move(end) for wire in self.wires for end in (wire.left, wire.right)):
                return
        raise AssertionError("the relay never settles")

    def nothingIsLeft(self) -> None:
        """No timer, no open connection, one end told."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        for wire in self.wires:
            self.assertFalse(wire.left.connected, wire.left.name)
            self.assertFalse(wire.right.connected, wire.right.name)
        self.assertEqual(len(self.ends), 1, self.ends)


class FlowTests(RelayCase):
    """Bytes, and the brakes on them."""

    def test_bytesPassBothWays(self) -> None:
        """What one peer writes the other receives, and it is counted."""
        self.relay(HalfRecorder(), HalfRecorder())
        self.one.wire.write(b"question")
        self.two.wire.write(b"long answer")
        self.settle()
        self.assertEqual(bytes(self.two.received), b"question")
        self.assertEqual(bytes(self.one.received), b"long answer")
        self.assertEqual((self.left.received, self.right.received), (8, 11))

    def test_theFirstSideWaitsForTheSecond(self) -> None:
        """
        C6: A peer that speaks first is not read until the other side is connected,
        and loses nothing.
        """
        left, right = relayPair(self.clock)
        one, two = HalfRecorder(), HalfRecorder()
        first = Wire(one, left).connect()
        one.wire.write(b"SSH-2.0-server\r\n")
        first.settle()
        self.assertEqual(len(first.left.out), 16, "it was read too early")
        second = Wire(two, right).connect()
        first.settle()
        second.settle()
        self.assertEqual(bytes(two.received), b"SSH-2.0-server\r\n")

    def test_bytesThatCameInSpiteOfThePauseAreKept(self) -> None:
        """
        C5: A transport may deliver what it had read already when it was paused; that,
        and an end behind it, waits for the other side.
        """
        left, right = relayPair(self.clock)
        one, two = HalfRecorder(), HalfRecorder()
        first = Wire(one, left).connect()
        left.dataReceived(b"already ")
        left.dataReceived(b"read")
        left.readConnectionLost()
        second = Wire(two, right).connect()
        second.settle()
        self.assertEqual(bytes(two.received), b"already read")
        self.assertEqual(two.heard, ["made", "data", "end"])
        two.wire.write(b"answer")
        second.settle()
        first.settle()
        self.assertEqual(bytes(one.received), b"answer")

    def test_aSlowReaderStopsTheWriter(self) -> None:
        """
        D4: While one peer does not read, the other is not read from; what the relay
        holds stays under the stated bound, and all of it arrives in the end.
        """
        self.relay(HalfRecorder(), HalfRecorder())
        body = bytes(range(256)) * 40960
        self.wires[1].left.pauseProducing()
        self.one.wire.write(body)
        self.settle()
        self.assertLessEqual(self.wires[1].right.highWater, 2 * 65536 + 1)
        self.assertGreater(len(self.wires[0].left.out), 10_000_000)
        self.wires[1].left.resumeProducing()
        self.settle()
        self.assertEqual(bytes(self.two.received), body)

    def test_bothDirectionsFullWithSlowReadersIsNoDeadlock(self) -> None:
        """D6: Each direction waits for its own reader only."""
        self.relay(HalfRecorder(), HalfRecorder())
        body = bytes(1_000_000)
        for wire in self.wires:
            wire.left.pauseProducing()
        self.one.wire.write(body)
        self.two.wire.write(body)
        self.settle()
        self.assertEqual((len(self.one.received), len(self.two.received)), (0, 0))
        self.wires[0].left.resumeProducing()
        self.settle()
        self.assertEqual(len(self.one.received), len(body))
        self.assertEqual(len(self.two.received), 0)
        self.wires[1].left.resumeProducing()
        self.settle()
        self.assertEqual(len(self.two.received), len(body))


class EndTests(RelayCase):
    """How a pair ends."""

    def test_anEndIsForwardedAndTheOtherDirectionGoesOn(self) -> None:
        """D1: A FIN passes through; data after it flows the other way; then all is closed."""
        self.relay(HalfRecorder(), HalfRecorder())
        self.one.wire.write(b"request")
        self.one.wire.loseWriteConnection()
        self.settle()
        self.assertEqual(self.two.heard, ["made", "data", "end"])
        self.two.wire.write(b"reply" * 100_000)
        self.two.wire.loseWriteConnection()
        self.settle()
        self.assertEqual(bytes(self.one.received), b"reply" * 100_000)
        self.assertEqual(self.one.heard[:3], ["made", "data", "end"])
        self.one.wire.loseConnection()
        self.two.wire.loseConnection()
        self.settle()
        self.nothingIsLeft()
        self.assertEqual(self.ends[0].why, "done")
        self.assertEqual((self.ends[0].fromLeft, self.ends[0].fromRight), (7, 500_000))
        self.assertEqual(self.ends[0].first, "left")

    def test_anEndBehindAFullBufferIsNotLost(self) -> None:
        """
        D3: Twisted sends no FIN while a paused producer is registered; the relay's
        is taken away first, so the end follows the last byte.
        """
        self.relay(HalfRecorder(), HalfRecorder())
        self.wires[1].left.pauseProducing()
        self.one.wire.write(bytes(200_000))
        self.settle()
        self.wires[1].left.resumeProducing()
        self.one.wire.loseWriteConnection()
        self.settle(1000)
        self.assertEqual(len(self.two.received), 200_000)
        self.assertEqual(self.two.heard, ["made", "data", "end"])

    def test_whereTheOtherCannotHalfCloseItIsClosedAfterAFlush(self) -> None:
        """D1: Without a half-close the end of one direction ends both, all bytes first."""
        self.relay(HalfRecorder(), Recorder())
        self.wires[1].right.loseWriteConnection = None  # type: ignore[assignment,method-assign]
        self.one.wire.write(bytes(300_000))
        self.one.wire.loseWriteConnection()
        self.settle()
        self.assertEqual(len(self.two.received), 300_000)
        self.assertIsInstance(self.two.reason, error.ConnectionDone)
        self.one.wire.loseConnection()
        self.settle()
        self.nothingIsLeft()

    def test_aCleanCloseIsFlushedToTheOther(self) -> None:
        """D3: A peer that closes right after its last byte loses none of it."""
        self.relay(Recorder(), Recorder())
        body = bytes(range(256)) * 4096
        self.one.wire.write(body)
        self.one.wire.loseConnection()
        self.settle(777)
        self.assertEqual(bytes(self.two.received), body)
        self.assertIsInstance(self.two.reason, error.ConnectionDone)
        self.settle()
        self.nothingIsLeft()

    def test_anAbortIsForwardedAsAnAbort(self) -> None:
        """D1: A connection that breaks never looks like a stream that ended."""
        self.relay(HalfRecorder(), HalfRecorder())
        self.one.wire.write(b"half of it")
        self.settle()
        self.one.wire.abortConnection()
        self.settle()
        self.assertIsInstance(self.two.reason, error.ConnectionLost)
        self.nothingIsLeft()
        self.assertEqual(self.ends[0].why, "broken")
        self.assertTrue(self.ends[0].failure.check(error.ConnectionLost))  # type: ignore[union-attr]

    def test_aBreakAfterTheEndDoesNotCutWhatCameBefore(self) -> None:
        """
        D3: A peer that ended in good order, and then breaks (a unix socket hangs up so),
        does not take the bytes with it that are still on their way to the other.
        """
        self.relay(HalfRecorder(), HalfRecorder())
        self.wires[1].left.pauseProducing()
        self.one.wire.write(bytes(60_000))
        self.one.wire.loseWriteConnection()
        self.settle()
        self.one.wire.abortConnection()
        self.wires[1].left.resumeProducing()
        self.settle()
        self.assertEqual(len(self.two.received), 60_000)
        self.assertIn("end", self.two.heard)
        self.two.wire.loseConnection()
        self.settle()
        self.nothingIsLeft()
        self.assertEqual(self.ends[0].why, "broken")

    def test_aWaitingReaderIsWokenWhenTheOtherSideDies(self) -> None:
        """D12: A peer that only waits hears of the end, without writing a byte."""
        self.relay(HalfRecorder(), Recorder())
        self.wires[0].left.abortConnection()
        self.assertIsInstance(self.two.reason, error.ConnectionLost)
        self.nothingIsLeft()

    def test_aPausedSideHearsOfTheOthersDeath(self) -> None:
        """D12: Also where the waiting side was paused by backpressure."""
        self.relay(HalfRecorder(), HalfRecorder())
        self.wires[1].left.pauseProducing()
        self.one.wire.write(bytes(1_000_000))
        self.settle()
        self.wires[1].left.abortConnection()
        self.settle()
        self.assertIsInstance(self.one.reason, error.ConnectionLost)
        self.nothingIsLeft()

    def test_aCarrierLostBeforeItWasMadeEndsThePair(self) -> None:
        """A half whose connection never came to be drops the other half's."""
        left, right = relayPair(self.clock, onEnd=self.ends.append)
        one = Recorder()
        wire = Wire(one, right).connect()
        left.connectionLost(Failure(error.ConnectionLost("no pick-up")))
        self.assertIsInstance(one.reason, error.ConnectionLost)
        self.assertFalse(wire.right.connected)
        self.assertEqual([end.why for end in self.ends], ["abandoned"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aSideThatComesTooLateIsDropped(self) -> None:
        """The second connection finds the first gone: it is dropped, and told once."""
        left, right = relayPair(self.clock, onEnd=self.ends.append)
        first = Wire(Recorder(), left).connect()
        first.left.abortConnection()
        late = Recorder()
        Wire(late, right).connect()
        self.assertIsInstance(late.reason, error.ConnectionLost)
        self.assertEqual(len(self.ends), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_anAbandonedPairDropsBoth(self) -> None:
        """An owner that knows no second connection will come says so."""
        left, right = relayPair(self.clock, onEnd=self.ends.append)
        one, late = Recorder(), Recorder()
        Wire(one, left).connect()
        left.abandon()
        self.assertIsInstance(one.reason, error.ConnectionLost)
        Wire(late, right).connect()
        self.assertIsInstance(late.reason, error.ConnectionLost)
        self.assertEqual([end.why for end in self.ends], ["abandoned"])

    def test_theEndIsToldOnceWhateverRaises(self) -> None:
        """A fault of whoever listens for the end is logged, not passed on."""

        def broken(end: RelayEnd) -> None:
            raise ValueError("listener")

        left, right = relayPair(self.clock, onEnd=broken)
        Wire(Recorder(), left).connect()
        wire = Wire(Recorder(), right).connect()
        wire.left.abortConnection()
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class MemoryTests(RelayCase):
    """What is over is gone."""

    def test_goesWithoutTheGarbageCollector(self) -> None:
        """When both halves are let go of nothing of a pair waits for the collector."""
        gc.disable()
        self.addCleanup(gc.enable)
        halves = relayPair(self.clock, onEnd=self.ends.append)
        for half in halves:
            half.makeConnection(StringTransport())
        for half in halves:
            half.connectionLost(connectionDone)
        for half in halves:
            # As Twisted's transports do at their end.
            half.transport.producer = None
        self.assertEqual([end.why for end in self.ends], ["done"])
        known = [weakref.ref(half) for half in halves]
        del half, halves
        self.assertEqual([each() for each in known], [None, None])


class LingerTests(RelayCase):
    """What happens when one side has ended and the other never does."""

    def test_anEndThenSilenceFreesBoth(self) -> None:
        """D2: After one end, a pair in which nothing moves is dropped at the limit."""
        self.relay(HalfRecorder(), HalfRecorder())
        self.clock.advance(10_000)
        self.one.wire.loseWriteConnection()
        self.settle()
        self.clock.advance(59.9)
        self.assertIsNone(self.two.reason)
        self.clock.advance(0.2)
        self.assertIsInstance(self.one.reason, error.ConnectionLost)
        self.assertIsInstance(self.two.reason, error.ConnectionLost)
        self.nothingIsLeft()
        self.assertEqual(self.ends[0].why, "lingered")
        self.assertAlmostEqual(self.ends[0].seconds, 10_060.1)

    def test_slowReader(self) -> None:
        """D2: What the kernel still sends moves; a reader that stops has ten times as long."""
        kernel, peer = socket.socketpair()
        self.addCleanup(kernel.close)
        self.addCleanup(peer.close)
        for _ in range(4):
            kernel.send(b"waits in the kernel")
        self.relay(HalfRecorder(), HalfRecorder())
        transport: Any = self.right.transport
        transport.fileno = kernel.fileno
        self.one.wire.loseWriteConnection()
        self.settle()
        for _ in range(3):
            self.clock.advance(60)
            peer.recv(19)
        for _ in range(DELIVERY):
            self.clock.advance(60)
            self.assertEqual(self.ends, [])
        self.clock.advance(60)
        self.settle()
        self.nothingIsLeft()
        self.assertEqual(self.ends[0].why, "lingered")

    def test_aLongReplyIsNotCut(self) -> None:
        """D2: While bytes still flow after the first end, the pair lives."""
        self.relay(HalfRecorder(), HalfRecorder())
        self.one.wire.loseWriteConnection()
        self.settle()
        for _ in range(50):
            self.clock.advance(50)
            self.two.wire.write(b"line\n")
            self.settle()
        self.assertEqual(bytes(self.one.received), b"line\n" * 50)
        self.assertIsNone(self.one.reason)
        self.two.wire.loseWriteConnection()
        self.settle()
        self.assertIn("end", self.one.heard)

    def test_aReaderThatTakesALittleNowAndThenIsNotCut(self) -> None:
        """D2: Room in a full buffer counts as movement."""
        self.relay(HalfRecorder(), HalfRecorder())
        self.wires[0].left.pauseProducing()
        self.one.wire.loseWriteConnection()
        self.two.wire.write(bytes(2_000_000))
        self.settle()
        began = self.clock.seconds()
        while len(self.one.received) < 2_000_000:
            self.clock.advance(50)
            self.wires[0].left.resumeProducing()
            for _ in range(3):
                self.wires[0].move(self.wires[0].right)
            self.wires[0].left.pauseProducing()
            self.settle()
        self.assertGreater(self.clock.seconds() - began, 300)
        self.assertIsNone(self.one.reason)
        self.assertEqual(len(self.one.received), 2_000_000)

    def test_aCloseThatIsNeverFlushedIsDropped(self) -> None:
        """D2: A peer that stops reading for good does not hold a closing pair."""
        self.relay(Recorder(), Recorder())
        self.wires[1].left.pauseProducing()
        self.one.wire.write(bytes(60_000))
        self.one.wire.loseConnection()
        self.settle()
        self.clock.advance(61)
        self.assertIsInstance(self.two.reason, error.ConnectionLost)
        self.nothingIsLeft()

    def test_withoutAnEndSilenceHasNoLimit(self) -> None:
        """An idle stream (an ssh session over night) is nobody's fault."""
        self.relay(HalfRecorder(), HalfRecorder())
        self.clock.advance(86_400)
        self.one.wire.write(b"still here")
        self.settle()
        self.assertEqual(bytes(self.two.received), b"still here")


class LostWithoutReasonTests(RelayCase):
    """Calls that come twice or late change nothing."""

    def test_lateCallsAreIgnored(self) -> None:
        """A producer call or an end after the connection is gone does nothing."""
        self.relay(Recorder(), Recorder())
        self.one.wire.loseConnection()
        self.settle()
        self.left.pauseProducing()
        self.left.resumeProducing()
        self.left.stopProducing()
        self.left.readConnectionLost()
        self.left.writeConnectionLost()
        self.left.forward(b"late")
        self.left.forwardEnd()
        self.left.connectionLost(connectionDone)
        self.settle()
        self.nothingIsLeft()
