"""Bodies of answers, whole and as they come."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseDone, ResponseFailed

from helix_revdial.cli.answer_bodies import MAX_WAITING, Pieces, WholeBody
from helix_revdial.cli.failures import TimedOut, Unreachable


class WholeBodyTests(SynchronousTestCase):
    """A body that is taken at once."""

    def test_cut(self) -> None:
        """Where that is asked for, the beginning of what is too long is enough, at any split."""
        for size in range(1, 12):
            body = WholeBody(10, cut=True)
            transport = StringTransport()
            body.makeConnection(transport)
            sent = b"0123456789ab"
            for start in range(0, len(sent), size):
                body.dataReceived(sent[start : start + size])
            self.assertEqual(self.successResultOf(body.finished), b"0123456789")
            self.assertTrue(transport.disconnecting)

    def test_cancelled(self) -> None:
        """Who does not want it any more hangs up, and what comes later changes nothing."""
        body = WholeBody(10, cut=False)
        transport = StringTransport()
        body.makeConnection(transport)
        body.dataReceived(b"x")
        body.finished.cancel()
        self.failureResultOf(body.finished, CancelledError)
        self.assertTrue(transport.disconnecting)
        body.dataReceived(b"x" * 100)
        body.connectionLost(Failure(ResponseDone()))


class PiecesTests(SynchronousTestCase):
    """A body that is taken as it comes."""

    def opened(self) -> Pieces:
        """The body of an answer."""
        self.clock = Clock()
        self.transport = StringTransport()
        pieces = Pieces(self.clock)
        pieces.makeConnection(self.transport)
        return pieces

    def next(self, pieces: Pieces) -> Deferred[bytes | None]:
        """Wait for more, 60 s at most."""
        return Deferred.fromCoroutine(pieces.next(60))

    def test_untilItsEnd(self) -> None:
        """What has come is there at once, what comes wakes who waits, the end is the end."""
        pieces = self.opened()
        pieces.dataReceived(b"a")
        pieces.dataReceived(b"b")
        self.assertEqual(self.successResultOf(self.next(pieces)), b"ab")
        waiting = self.next(pieces)
        self.assertNoResult(waiting)
        pieces.dataReceived(b"c")
        self.assertEqual(self.successResultOf(waiting), b"c")
        pieces.dataReceived(b"d")
        pieces.connectionLost(Failure(ResponseDone()))
        self.assertEqual(self.successResultOf(self.next(pieces)), b"d")
        self.assertIsNone(self.successResultOf(self.next(pieces)))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_brokenOff(self) -> None:
        """What had come is given out first."""
        pieces = self.opened()
        pieces.dataReceived(b"a")
        pieces.connectionLost(Failure(ResponseFailed([Failure(ConnectionLost())])))
        self.assertEqual(self.successResultOf(self.next(pieces)), b"a")
        self.failureResultOf(self.next(pieces), Unreachable)

    def test_silence(self) -> None:
        """Who says nothing for too long is hung up on."""
        pieces = self.opened()
        waiting = self.next(pieces)
        self.clock.advance(60)
        self.failureResultOf(waiting, TimedOut)
        self.assertTrue(self.transport.disconnecting)

    def test_cancelled(self) -> None:
        """Who does not wait any more hangs up."""
        waiting = self.next(self.opened())
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_whoDoesNotRead(self) -> None:
        """Beyond the limit the sender waits until what has come is taken."""
        pieces = self.opened()
        self.assertEqual(self.transport.producerState, "producing")
        pieces.dataReceived(bytes(MAX_WAITING + 1))
        self.assertEqual(self.transport.producerState, "paused")
        self.assertEqual(len(self.successResultOf(self.next(pieces)) or b""), MAX_WAITING + 1)
        self.assertEqual(self.transport.producerState, "producing")
