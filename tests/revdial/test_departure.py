"""Tests for L{helix_revdial.revdial.departure}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.departure import LEAVE_AFTER, LEAVE_RATE, Quiet, departures


class DepartureTests(SynchronousTestCase):
    def test_one(self) -> None:
        """A single agent leaves when a dial-back under way has had its time."""
        self.assertEqual(list(departures(1, 30.0)), [LEAVE_AFTER])

    def test_many(self) -> None:
        """G1: ten thousand agents leave a thousand a second, in order."""
        when = list(departures(10_000, 30.0))
        self.assertEqual(when, sorted(when))
        for second in range(1, 11):
            count = sum(1 for each in when if second <= each < second + 1)
            self.assertEqual(count, LEAVE_RATE, f"second {second}")

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 500), st.floats(0, 120))
    def test_allWithinHalfOfTheTime(self, count: int, limit: float) -> None:
        """However short the time is, everybody is gone before it is over."""
        when = list(departures(count, limit))
        assert len(when) == count
        assert all(0 <= each <= limit / 2 + 0.001 for each in when)


class QuietTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.left = 1
        self.quiet = Quiet(self.clock, lambda: not self.left)

    def test_overAlready(self) -> None:
        """Where nothing is left there is nothing to wait for, whatever the limit."""
        self.left = 0
        for limit in (None, 0.0, 5.0):
            self.assertTrue(self.successResultOf(Deferred.fromCoroutine(self.quiet.within(limit))))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_ends(self) -> None:
        """All who wait hear of the end, and no timer is left."""
        waits = [Deferred.fromCoroutine(self.quiet.within(limit)) for limit in (5.0, None)]
        self.quiet.look()
        for wait in waits:
            self.assertNoResult(wait)
        self.left = 0
        self.quiet.look()
        for wait in waits:
            self.assertTrue(self.successResultOf(wait))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_limit(self) -> None:
        """After the limit the wait is over although something is left."""
        wait = Deferred.fromCoroutine(self.quiet.within(5.0))
        self.clock.advance(5.0)
        self.assertFalse(self.successResultOf(wait))
        self.left = 0
        self.quiet.look()

    def test_cancelled(self) -> None:
        """Who does not wait any more leaves no timer behind."""
        wait = Deferred.fromCoroutine(self.quiet.within(5.0))
        wait.addErrback(lambda _: None)
        wait.cancel()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.left = 0
        self.quiet.look()
