"""Tests for the ends of L{helix_revdial.revdial.websocket_transport}: half-close, close, loss."""

from __future__ import annotations

import os

from twisted.internet import error

from helix_revdial.revdial.websocket_transport import CLOSE_TIMEOUT, DROP_TIMEOUT
from tests.revdial.pairs import NotingProducer, PairCase
from tests.revdial.wire import Recorder


class HalfCloseTests(PairCase):
    """D1: Half-close between our own ends."""

    def test_theOtherDirectionGoesOn(self) -> None:
        """After one end, data flows the other way; after both, 1000."""
        self.pair()
        self.client.wire.write(b"request")
        self.client.wire.loseWriteConnection()
        self.client.wire.write(b"too late")
        self.settle()
        self.assertEqual(self.server.heard, ["made", "data", "end"])
        self.assertEqual(bytes(self.server.received), b"request")
        self.server.wire.write(b"reply" * 50_000)
        self.server.wire.loseWriteConnection()
        self.settle()
        self.assertEqual(bytes(self.client.received), b"reply" * 50_000)
        for recorder in (self.client, self.server):
            self.assertEqual(recorder.heard, ["made", "data", "end", "lost"])
            self.assertIsInstance(recorder.reason, error.ConnectionDone)
        self.nothingIsLeft()

    def test_bothAtOnce(self) -> None:
        """Two ends, and then two close frames, that cross each other."""
        self.pair()
        self.client.wire.loseWriteConnection()
        self.server.wire.loseWriteConnection()
        self.settle(1)
        for recorder in (self.client, self.server):
            self.assertEqual(recorder.heard, ["made", "end", "lost"])
            self.assertIsInstance(recorder.reason, error.ConnectionDone)
        self.nothingIsLeft()

    def test_aProtocolThatCannotHearItIsClosedAfterAFlush(self) -> None:
        """Without IHalfCloseableProtocol the end is the end of the connection."""
        server = Recorder()
        self.pair(server=server)
        server.wire.write(bytes(300_000))
        self.client.wire.loseWriteConnection()
        self.settle()
        self.assertEqual(len(self.client.received), 300_000)
        self.assertIsInstance(server.reason, error.ConnectionDone)
        self.assertIsInstance(self.client.reason, error.ConnectionDone)
        self.nothingIsLeft()

    def test_withoutEofItIsAClose(self) -> None:
        """On the old wire the end of one direction is the end of both."""
        self.pair(eof=False)
        self.client.wire.write(b"request")
        self.client.wire.loseWriteConnection()
        self.settle()
        self.assertEqual(bytes(self.server.received), b"request")
        self.assertIsInstance(self.server.reason, error.ConnectionDone)
        self.nothingIsLeft()


class CloseTests(PairCase):
    """Closing, and what it never loses."""

    def test_aSlowReaderGetsEverything(self) -> None:
        """
        D3: 20 MB, then a close, and a reader that stops for minutes: it gets every
        byte and a clean end.  The limit on the handshake starts after the data.
        """
        self.pair()
        body = os.urandom(1 << 20) * 20
        self.wire.left.pauseProducing()
        self.server.wire.write(body)
        self.server.wire.loseConnection()
        self.settle()
        for _ in range(10):
            self.clock.advance(60)
        self.wire.left.resumeProducing()
        self.settle()
        self.assertEqual(len(self.client.received), len(body))
        self.assertEqual(bytes(self.client.received), body)
        self.assertIsInstance(self.client.reason, error.ConnectionDone)
        self.nothingIsLeft()

    def test_aClosingSideStillReadsToSeeTheAnswer(self) -> None:
        """A side that paused, and then closes, goes on reading, and drops what comes."""
        self.pair()
        self.server.wire.pauseProducing()
        self.client.wire.write(bytes(1_000_000))
        self.server.wire.loseConnection()
        self.settle()
        self.assertEqual(len(self.server.received), 0)
        self.assertIsInstance(self.server.reason, error.ConnectionDone)
        self.nothingIsLeft()

    def test_aPeerThatNeverAnswersIsLeftInTime(self) -> None:
        """The limit on the closing handshake, and a close in good order at it."""
        self.pair(eof=False)
        self.server.wire.write(b"last words")
        self.server.wire.loseConnection()
        self.wire.move(self.wire.right)
        self.wire.left.pauseProducing()
        self.clock.advance(CLOSE_TIMEOUT - 0.1)
        self.assertIsNone(self.server.reason)
        self.clock.advance(0.2)
        self.wire.move(self.wire.right)
        self.assertIsInstance(self.server.reason, error.ConnectionDone)
        self.assertEqual(bytes(self.client.received), b"last words")

    def test_aClientDoesNotWaitForTheServerToDrop(self) -> None:
        """When a server answers the close but keeps TCP, the client goes after a second."""
        self.pair()
        self.wire.right.loseConnection = lambda: None  # type: ignore[method-assign]
        self.client.wire.loseConnection()
        self.settle()
        self.assertIsNone(self.client.reason)
        self.clock.advance(DROP_TIMEOUT)
        self.settle()
        self.assertIsInstance(self.client.reason, error.ConnectionDone)

    def test_aProducerIsTakenAwayBeforeTheClose(self) -> None:
        """TLS closes only when no producer is left; nothing may write after the end."""
        self.pair()
        told: list[str] = []
        self.client.wire.registerProducer(NotingProducer(told), True)
        self.client.wire.write(bytes(300_000))
        self.client.wire.loseConnection()
        self.client.wire.write(b"too late")
        self.settle()
        self.assertEqual(len(self.server.received), 300_000)
        self.assertIsNone(self.wire.left.producer)
        self.nothingIsLeft()

    def test_anAbortIsALoss(self) -> None:
        """D1: A reset is told apart from an end, on both sides, at once."""
        self.pair()
        self.client.wire.write(bytes(1000))
        self.client.wire.abortConnection()
        self.settle()
        self.assertIsInstance(self.client.reason, error.ConnectionAborted)
        self.assertIsInstance(self.server.reason, error.ConnectionLost)
        self.nothingIsLeft()

    def test_closeWithSaysWhy(self) -> None:
        """A code of our own reaches the other side's reason."""
        self.pair()
        self.server.wire.closeWith(4001, "revoked")
        self.settle()
        self.assertEqual((self.client.reason.code, self.client.reason.reason), (4001, "revoked"))
        self.assertIsInstance(self.server.reason, error.ConnectionDone)
        self.nothingIsLeft()

    def test_codesThatAreNotOursAreRefused(self) -> None:
        """Only 1000 and 4000 to 4999 are for protocols to say."""
        self.pair()
        for code in (999, 1002, 3999, 5000):
            self.assertRaises(ValueError, self.server.wire.closeWith, code, "")
        self.server.wire.closeWith(4999, "\N{GREEK SMALL LETTER OMEGA}" * 100)
        self.settle()
        self.assertEqual(self.client.reason.reason, "\N{GREEK SMALL LETTER OMEGA}" * 61)

    def test_aProtocolThatRaisesCostsItsOwnConnection(self) -> None:
        """An exception in connectionMade drops the connection and is logged."""

        class Faulty(Recorder):
            def connectionMade(self) -> None:
                super().connectionMade()
                raise ZeroDivisionError

        self.pair(client=Faulty())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIsInstance(self.server.reason, error.ConnectionLost)
        self.nothingIsLeft()

    def test_callsAfterTheEndDoNothing(self) -> None:
        """Late calls of a protocol are harmless, and a late producer is stopped."""
        self.pair()
        wire = self.client.wire
        wire.loseConnection()
        self.settle()
        told: list[str] = []
        wire.registerProducer(NotingProducer(told), True)
        wire.unregisterProducer()
        wire.write(b"late")
        wire.writeSequence([b"late"])
        wire.loseWriteConnection()
        wire.loseConnection()
        wire.abortConnection()
        wire.pauseProducing()
        wire.resumeProducing()
        wire.stopProducing()
        self.failureResultOf(wire.ping(), error.ConnectionLost)
        self.assertEqual(told, ["stop"])
        self.nothingIsLeft()
