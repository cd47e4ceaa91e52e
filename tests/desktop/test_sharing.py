"""Tests for L{helix_revdial.desktop.sharing}."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.desktop.sharing import SharedRuns
from helix_revdial.programs import TooBusy


class SharedRunsTests(SynchronousTestCase):
    """One thing at a time, shared."""

    def setUp(self) -> None:
        self.runs: SharedRuns[str] = SharedRuns("things", maxPending=2, maxWaiters=4)
        self.started: list[tuple[str, Deferred[str]]] = []

    def ask(self, key: str) -> Deferred[str]:
        def start() -> Deferred[str]:
            result: Deferred[str] = Deferred()
            self.started.append((key, result))
            return result

        return self.runs.request(key, start)

    def test_oneAtATime(self) -> None:
        """The second thing starts when the first has ended, in the order asked for."""
        first, second, third = self.ask("a"), self.ask("b"), self.ask("c")
        self.assertEqual([key for key, _ in self.started], ["a"])
        self.started[0][1].callback("A")
        self.assertEqual(self.successResultOf(first), "A")
        self.assertEqual([key for key, _ in self.started], ["a", "b"])
        self.started[1][1].callback("B")
        self.assertEqual(self.successResultOf(second), "B")
        self.started[2][1].callback("C")
        self.assertEqual(self.successResultOf(third), "C")

    def test_equalRequestsShareARunThatHasNotStarted(self) -> None:
        """
        Requests join a run that waits, and never one under way: what they get
        was made after they asked.
        """
        early = self.ask("a")
        late = [self.ask("a"), self.ask("a")]
        self.assertEqual(len(self.started), 1)
        self.started[0][1].callback("before")
        self.assertEqual(self.successResultOf(early), "before")
        self.assertEqual(len(self.started), 2)
        self.assertNoResult(late[0])
        self.started[1][1].callback("after")
        self.assertEqual([self.successResultOf(each) for each in late], ["after", "after"])
        self.assertEqual(len(self.started), 2)

    def test_failureIsSharedAndTheNextRuns(self) -> None:
        """All who joined fail alike; the queue goes on."""
        self.ask("a").addErrback(lambda _: None)
        joined = [self.ask("b"), self.ask("b")]
        last = self.ask("c")
        self.started[0][1].errback(ValueError("a"))
        self.started[1][1].errback(ValueError("b"))
        for each in joined:
            self.assertEqual(str(self.failureResultOf(each, ValueError).value), "b")
        self.started[2][1].callback("C")
        self.assertEqual(self.successResultOf(last), "C")

    def test_startThatRaises(self) -> None:
        """A run that cannot start fails, and blocks nobody."""

        def broken() -> Deferred[str]:
            raise ValueError("broken")

        self.failureResultOf(self.runs.request("x", broken), ValueError)
        after = self.ask("a")
        self.started[0][1].callback("A")
        self.assertEqual(self.successResultOf(after), "A")

    def test_tooManyRuns(self) -> None:
        """More different things than the limit are refused; equal ones still join."""
        kept = [self.ask("a"), self.ask("b"), self.ask("c")]
        error = self.failureResultOf(self.ask("d"), TooBusy).value
        self.assertIn("too many things", str(error))
        self.assertEqual(error.retryAfter, 1)
        kept.append(self.ask("c"))
        for _ in range(3):
            self.started[-1][1].callback("done")
        self.assertEqual([self.successResultOf(each) for each in kept], ["done"] * 4)

    def test_tooManyWaiters(self) -> None:
        """More requests than the limit are refused, also where they would join."""
        kept = [self.ask("a")] + [self.ask("b") for _ in range(3)]
        self.failureResultOf(self.ask("b"), TooBusy)
        for _ in range(2):
            self.started[-1][1].callback("done")
        self.assertEqual([self.successResultOf(each) for each in kept], ["done"] * 4)
        again = self.ask("e")
        self.started[-1][1].callback("E")
        self.assertEqual(self.successResultOf(again), "E")

    def test_cancelledByAllIsNotStarted(self) -> None:
        """A run that nobody waits for any more does not take place."""
        first = self.ask("a")
        gone = self.ask("b")
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.started[0][1].callback("A")
        self.successResultOf(first)
        self.assertEqual([key for key, _ in self.started], ["a"])

    def test_cancelledByOneIsStartedForTheOthers(self) -> None:
        """Who leaves takes nothing from those who stay."""
        first, gone, stays = self.ask("a"), self.ask("b"), self.ask("b")
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.started[0][1].callback("A")
        self.started[1][1].callback("B")
        self.assertEqual(self.successResultOf(first), "A")
        self.assertEqual(self.successResultOf(stays), "B")

    def test_cancelledWhileUnderWay(self) -> None:
        """A run under way ends by itself; then the next starts."""
        gone = self.ask("a")
        after = self.ask("b")
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.assertEqual(len(self.started), 1)
        self.started[0][1].callback("A")
        self.started[1][1].callback("B")
        self.assertEqual(self.successResultOf(after), "B")

    def test_stop(self) -> None:
        """What has not started fails; what is under way ends; nothing new is taken."""
        underWay, waits = self.ask("a"), self.ask("b")
        self.runs.stop()
        self.failureResultOf(waits, TooBusy)
        self.failureResultOf(self.ask("c"), TooBusy)
        self.started[0][1].callback("A")
        self.assertEqual(self.successResultOf(underWay), "A")
        self.assertEqual(len(self.started), 1)
