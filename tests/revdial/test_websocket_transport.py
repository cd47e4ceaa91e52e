"""Tests for L{helix_revdial.revdial.websocket_transport}: bytes, pauses, producers and pings."""

from __future__ import annotations

import os
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet import error
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from helix_revdial.revdial.interfaces import ICarrierTransport
from tests.revdial.pairs import (
    REQUEST,
    Greeter,
    NotingProducer,
    PairCase,
    acceptOf,
    answerTo,
    frame,
    frames,
)
from tests.revdial.wire import HalfRecorder, Recorder, Wire


class StreamTests(PairCase):
    """A byte stream in messages."""

    def test_transportsSayWhatTheyAre(self) -> None:
        """Both transports provide the carrier's interface, and say what they can."""
        self.pair(responseHeaders=[(b"Revdial-Features", b"eof, raw")])
        for recorder in (self.client, self.server):
            self.assertTrue(verifyObject(ICarrierTransport, recorder.wire))
            self.assertEqual(recorder.wire.carrier, "websocket")
            self.assertTrue(recorder.wire.halfClose)
        self.assertIn((b"revdial-features", b"eof, raw"), self.client.wire.responseHeaders)
        self.assertEqual(self.server.wire.responseHeaders, ())
        self.assertEqual(self.client.wire.getPeer().host, "192.0.2.1")

    def test_bytesArriveWhole(self) -> None:
        """Any amount, both ways, in any chunks on the wire, is counted and arrives."""
        self.pair()
        body = os.urandom(700_001)
        for chunk in (body[:1], body[1:70_000], body[70_000:]):
            self.client.wire.write(chunk)
            self.server.wire.writeSequence([chunk[:5], chunk[5:]])
        self.settle(4099)
        self.assertEqual(bytes(self.server.received), body)
        self.assertEqual(bytes(self.client.received), body)
        self.assertEqual(self.client.wire.bytesSent, len(body))
        self.assertEqual(self.client.wire.bytesReceived, len(body))
        self.client.wire.loseConnection()
        self.settle()
        self.nothingIsLeft()

    def test_messagesAreOfAtMost64KiB(self) -> None:
        """A large write is cut; a sequence is one message."""
        self.pair()
        self.server.wire.write(bytes(65536 * 2 + 1))
        self.server.wire.writeSequence([b"a", b"b", b"c"])
        sent = frames(bytes(self.wire.right.out))
        self.assertEqual([len(payload) for _, _, payload in sent], [65536, 65536, 1, 3])
        self.assertEqual({(fin, opcode) for fin, opcode, _ in sent}, {(True, 2)})

    def test_oneFullMessageDoesNotFillTheWriteBuffer(self) -> None:
        """The socket's limit leaves room for a message and its header."""
        self.pair()
        paused: list[str] = []
        self.client.wire.registerProducer(NotingProducer(paused), True)
        self.client.wire.write(bytes(65536))
        self.assertEqual(paused, [])
        self.client.wire.write(bytes(100))
        self.assertEqual(paused, ["pause"])

    def test_bytesWithTheHandshakeAreKeptAtEverySplit(self) -> None:
        """
        C5, C6: Bytes that follow the 101, or the request, in one segment reach the
        protocol, wherever the segment is cut; a server may speak first.
        """
        self.pair(server=Greeter(), settle=False)
        request = bytes(self.wire.left.out)
        del self.wire.left.out[:]
        self.wire.right.protocol.dataReceived(request)
        answer = bytes(self.wire.right.out)
        self.assertIn(b"220 ready", answer)
        accept = acceptOf(answer)
        for split in range(1, len(answer)):
            self.pair(settle=False)
            own = acceptOf(answerTo(bytes(self.wire.left.out)))
            mine = answer.replace(accept, own)
            self.wire.left.protocol.dataReceived(mine[:split])
            self.wire.left.protocol.dataReceived(mine[split:])
            self.assertEqual(bytes(self.client.received), b"220 ready\r\n", f"split at {split}")

    def test_bytesWithTheRequestAreKeptAtEverySplit(self) -> None:
        """C5: Frames that follow the request in one segment reach the protocol."""
        stream = REQUEST + frame(2, b"hello") + frame(2, b" world")
        for split in range(1, len(stream)):
            server = Recorder()
            wire = Wire(Recorder(), self.serverHead(server, self.clock)).connect()
            wire.right.protocol.dataReceived(stream[:split])
            wire.right.protocol.dataReceived(stream[split:])
            self.assertEqual(bytes(server.received), b"hello world", f"split at {split}")

    # It runs on the ends of two implementations.
    @settings(
        deadline=None,
        max_examples=25,
        suppress_health_check=[HealthCheck.differing_executors],
    )
    @given(st.lists(st.integers(0, 70_000), max_size=4), st.integers(500, 70_000))
    def test_anyWritesInAnyChunks(self, writes: list[int], chunk: int) -> None:
        """Integrity, whatever is written and however TCP cuts it."""
        self.setUp()
        self.pair()
        source = random.Random(7)
        bodies = {recorder: bytearray() for recorder in (self.client, self.server)}
        for size in writes:
            for recorder, body in bodies.items():
                data = source.randbytes(size)
                body += data
                recorder.wire.write(data)
        for recorder in bodies:
            recorder.wire.loseWriteConnection()
        self.settle(chunk)
        self.assertEqual(self.server.received, bodies[self.client])
        self.assertEqual(self.client.received, bodies[self.server])
        self.assertEqual(self.client.heard[-2:], ["end", "lost"])
        self.assertIsInstance(self.client.reason, error.ConnectionDone)
        self.assertIsInstance(self.server.reason, error.ConnectionDone)
        self.nothingIsLeft()


class PauseTests(PairCase):
    """Stopping a reader, at any moment."""

    def test_aPausedProtocolHearsNothing(self) -> None:
        """
        What had been read when the protocol paused is held, within one read, and
        delivered after it resumed, in a later turn.
        """
        self.pair()
        self.client.onData = lambda data: self.client.wire.pauseProducing()
        for _ in range(30):
            self.server.wire.write(b"x" * 1000)
        self.server.wire.write(bytes(1_000_000))
        self.settle()
        self.assertEqual(len(self.client.received), 1000)
        self.assertFalse(self.wire.left.reading)
        parser = self.wire.left.protocol._successor
        self.assertLessEqual(len(parser.unparsed() + parser.parsed()), 65536)
        self.client.wire.resumeProducing()
        self.assertEqual(len(self.client.received), 1000, "delivered inside resumeProducing")
        self.clock.advance(0)
        self.assertEqual(len(self.client.received), 2000)
        self.client.onData = None
        self.client.wire.resumeProducing()
        self.settle()
        self.assertEqual(len(self.client.received), 1_030_000)

    def test_pauseAndResumeInsideADelivery(self) -> None:
        """A protocol may change its mind while it is given bytes."""
        self.pair()

        def waver(data: bytes) -> None:
            self.client.wire.pauseProducing()
            self.client.wire.resumeProducing()
            self.client.wire.pauseProducing()
            self.client.wire.resumeProducing()

        self.client.onData = waver
        body = os.urandom(200_000)
        for start in range(0, len(body), 777):
            self.server.wire.write(body[start : start + 777])
        self.settle()
        self.assertEqual(bytes(self.client.received), body)

    def test_pausedInConnectionMade(self) -> None:
        """C5: What came with the handshake waits for a protocol that starts paused."""

        class Later(HalfRecorder):
            def connectionMade(self) -> None:
                super().connectionMade()
                self.wire.pauseProducing()

        self.pair(client=Later(), server=Greeter())
        self.assertEqual(bytes(self.client.received), b"")
        self.client.wire.resumeProducing()
        self.settle()
        self.assertEqual(bytes(self.client.received), b"220 ready\r\n")

    def test_aCleanEndWaitsForWhatIsHeld(self) -> None:
        """
        D3: Where TCP's end is seen while bytes are held (TLS does that), the bytes
        come first, then the end.
        """
        self.pair(eof=False)
        self.client.onData = lambda data: self.client.wire.pauseProducing()
        self.server.wire.write(b"first")
        self.server.wire.write(b"second")
        self.settle()
        self.assertEqual(bytes(self.client.received), b"first")
        self.wire.left.lose(Failure(error.ConnectionDone()))
        self.assertEqual(self.client.heard, ["made", "data"])
        self.client.wire.write(b"to nobody")
        self.client.onData = None
        self.client.wire.resumeProducing()
        self.clock.advance(0)
        self.assertEqual(bytes(self.client.received), b"firstsecond")
        self.assertIsInstance(self.client.reason, error.ConnectionDone)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aLossDoesNotWait(self) -> None:
        """D12: A broken connection is told at once, also to a paused protocol."""
        self.pair()
        self.client.onData = lambda data: self.client.wire.pauseProducing()
        self.server.wire.write(b"first")
        self.server.wire.write(b"second")
        self.settle()
        self.server.wire.abortConnection()
        self.assertIsInstance(self.client.reason, error.ConnectionLost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_anExceptionInAHeldDeliveryDropsTheConnection(self) -> None:
        """Delivered from a timer, a fault still costs the connection, and is logged."""
        self.pair()
        self.client.onData = lambda data: self.client.wire.pauseProducing()
        self.server.wire.write(b"first")
        self.server.wire.write(b"second")
        self.settle()

        def faulty(data: bytes) -> None:
            raise ZeroDivisionError

        self.client.onData = faulty
        self.client.wire.resumeProducing()
        self.settle()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIsInstance(self.server.reason, error.ConnectionLost)
        self.nothingIsLeft()


class ProducerTests(PairCase):
    """Stopping a writer."""

    def test_aPushProducerFeelsTheReader(self) -> None:
        """D4: It is paused when the write buffer is full, and resumed when it is empty."""
        self.pair()
        told: list[str] = []
        self.server.wire.registerProducer(NotingProducer(told), True)
        self.assertRaises(
            RuntimeError, self.server.wire.registerProducer, NotingProducer(told), True
        )
        self.wire.left.pauseProducing()
        self.server.wire.write(bytes(100_000))
        self.assertEqual(told[0], "pause")
        self.wire.left.resumeProducing()
        self.settle()
        self.assertEqual(told[-1], "resume")
        self.server.wire.unregisterProducer()
        self.server.wire.write(bytes(1_000_000))
        self.settle()
        self.assertEqual(told.count("resume"), 1)

    def test_aPushProducerOnAFullBufferIsPausedAtOnce(self) -> None:
        """A producer that comes late does not add to a full buffer."""
        self.pair()
        self.server.wire.write(bytes(200_000))
        told: list[str] = []
        self.server.wire.registerProducer(NotingProducer(told), True)
        self.assertEqual(told, ["pause"])
        self.settle()
        self.assertEqual(told, ["pause", "resume"])

    def test_aPullProducerIsAskedForEachPiece(self) -> None:
        """A pull producer is driven as on TCP."""
        self.pair()
        pieces = [b"one", b"two", b"three"]
        wire = self.server.wire

        class Pull:
            def resumeProducing(self) -> None:
                wire.write(pieces.pop(0))
                if not pieces:
                    wire.unregisterProducer()

            def stopProducing(self) -> None:
                raise AssertionError("not stopped")

        wire.registerProducer(Pull(), False)
        self.assertEqual(len(pieces), 2)
        self.settle()
        self.assertEqual(bytes(self.client.received), b"onetwothree")
        told: list[str] = []
        wire.registerProducer(NotingProducer(told), True)
        wire.write(bytes(100_000))
        self.assertEqual(told, ["pause"])

    def test_aProducerIsStoppedWhenTheConnectionIsLost(self) -> None:
        """As on Twisted's own transports."""
        self.pair()
        told: list[str] = []
        self.server.wire.registerProducer(NotingProducer(told), True)
        self.client.wire.abortConnection()
        self.assertEqual(told, ["stop"])


class PingTests(PairCase):
    """Signs of life."""

    def test_theRoundTripIsMeasured(self) -> None:
        """It fires with the seconds between a ping and its pong."""
        self.pair()
        first, second = self.client.wire.ping(), self.client.wire.ping()
        self.assertNoResult(first)
        self.clock.advance(0.25)
        self.settle()
        self.assertEqual(self.successResultOf(first), 0.25)
        self.assertEqual(self.successResultOf(second), 0.25)

    def test_waitingPingsFailWithTheConnection(self) -> None:
        """Each ping is answered or fails; none waits for ever."""
        self.pair()
        waiting = [self.client.wire.ping() for _ in range(16)]
        self.failureResultOf(self.client.wire.ping(), error.ConnectionLost)
        self.server.wire.abortConnection()
        for ping in waiting:
            self.failureResultOf(ping, error.ConnectionLost)
