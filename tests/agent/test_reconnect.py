"""Tests for L{helix_revdial.agent.reconnect}."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.agent.reconnect import (
    LEAVING_ATTEMPTS,
    LEAVING_DELAY,
    MAX_RETRY_AFTER,
    MIN_DELAY,
    SUPERSEDED_DELAY,
    ReconnectPolicy,
)


def highest() -> float:
    """A draw at the very top of the range."""
    return 1.0


def lowest() -> float:
    """A draw at the bottom."""
    return 0.0


class ReconnectPolicyTests(SynchronousTestCase):
    def test_ceilingGrowsToACap(self) -> None:
        """The longest possible wait doubles from the first delay up to 60 s and stays there."""
        policy = ReconnectPolicy(highest, firstDelay=1.0)
        waits = [policy.attemptFailed() for _ in range(9)]
        self.assertEqual(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60])

    def test_firstDelayIsTheOperators(self) -> None:
        """The wait starts at C{--reconnect}."""
        self.assertEqual(ReconnectPolicy(highest, firstDelay=5.0).attemptFailed(), 5.0)

    def test_firstDelayAboveTheCap(self) -> None:
        """A first delay longer than the cap is kept: the operator asked for it."""
        policy = ReconnectPolicy(highest, firstDelay=300.0)
        self.assertEqual([policy.attemptFailed() for _ in range(3)], [300.0, 300.0, 300.0])

    def test_fullJitter(self) -> None:
        """E1: the wait is drawn over the whole range, but is never a busy loop."""
        self.assertEqual(ReconnectPolicy(lambda: 0.5, firstDelay=8.0).attemptFailed(), 4.0)
        self.assertEqual(ReconnectPolicy(lowest, firstDelay=8.0).attemptFailed(), MIN_DELAY)

    def test_longOutage(self) -> None:
        """Thousands of failures neither overflow nor exceed the cap."""
        policy = ReconnectPolicy(highest)
        for _ in range(5000):
            wait = policy.attemptFailed()
        self.assertEqual(wait, 60.0)

    def test_acceptThenSlamStillBacksOff(self) -> None:
        """E3: a connection that ends within 30 s does not reset the growth."""
        policy = ReconnectPolicy(highest)
        waits = [policy.connectionEnded(held=29.9) for _ in range(4)]
        self.assertEqual(waits, [1, 2, 4, 8])

    def test_resetAfterTheConnectionHeld(self) -> None:
        """E2: a connection that held for 30 s starts the growth anew."""
        policy = ReconnectPolicy(highest)
        for _ in range(10):
            policy.attemptFailed()
        self.assertEqual(policy.connectionEnded(held=30.0), 1.0)
        self.assertEqual(policy.attemptFailed(), 2.0)

    def test_retryAfterIsHonouredWithJitter(self) -> None:
        """E2: never sooner than the server asked, and spread after it."""
        self.assertEqual(ReconnectPolicy(lowest).attemptFailed(retryAfter=20.0), 20.0)
        self.assertEqual(ReconnectPolicy(highest).attemptFailed(retryAfter=20.0), 30.0)

    def test_retryAfterIsBounded(self) -> None:
        """A server cannot send an agent away for longer than an hour and its spread."""
        wait = ReconnectPolicy(highest).attemptFailed(retryAfter=1e12)
        self.assertEqual(wait, MAX_RETRY_AFTER * 1.5)

    def test_senselessRetryAfterIsIgnored(self) -> None:
        """Not a number, infinite, negative or zero: the ordinary wait."""
        for value in (float("nan"), float("inf"), -5.0, 0.0):
            self.assertEqual(ReconnectPolicy(highest).attemptFailed(retryAfter=value), 1.0)

    def test_supersededWaits(self) -> None:
        """A5: the connection that lost its name to a newer one stays away for a while."""
        policy = ReconnectPolicy(lowest)
        self.assertEqual(policy.connectionEnded(1000.0, superseded=True), SUPERSEDED_DELAY)
        self.assertEqual(policy.connectionEnded(1000.0, superseded=True, retryAfter=90.0), 90.0)
        self.assertEqual(
            policy.connectionEnded(1000.0, superseded=True, retryAfter=1.0), SUPERSEDED_DELAY
        )

    @settings(deadline=None, max_examples=60)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["failed", "ended", "superseded"]),
                st.floats(allow_nan=True, allow_infinity=True),
                st.floats(0, 0.999),
            ),
            max_size=40,
        )
    )
    def test_everyWaitIsWithinItsLimits(self, story: list[tuple[str, float, float]]) -> None:
        """Whatever happens and whatever a server says, the wait is sane."""
        draw = 0.0
        policy = ReconnectPolicy(lambda: draw)
        for what, retryAfter, draw in story:  # noqa: B007 - read by the lambda above
            if what == "failed":
                wait = policy.attemptFailed(retryAfter)
            else:
                wait = policy.connectionEnded(
                    1.0, superseded=what == "superseded", retryAfter=retryAfter
                )
            self.assertTrue(MIN_DELAY <= wait <= MAX_RETRY_AFTER * 1.5, (what, retryAfter, wait))


class LeavingServerTests(SynchronousTestCase):
    """A server that said that it goes away."""

    def test_staysNear(self) -> None:
        """The ceiling stays low for a while after a goodbye, and grows again after that."""
        policy = ReconnectPolicy(highest)
        policy.connectionEnded(held=3600.0)
        waits = [policy.connectionEnded(held=3600.0, leaving=True)]
        waits += [policy.attemptFailed() for _ in range(LEAVING_ATTEMPTS)]
        self.assertEqual(waits[:4], [1, 2, LEAVING_DELAY, LEAVING_DELAY])
        self.assertEqual(set(waits[2:-1]), {LEAVING_DELAY})
        self.assertEqual(waits[-1], 60.0)

    def test_isSpread(self) -> None:
        """G1: ten thousand agents that are told in one second come back over the whole ceiling."""
        random = Random(7)
        waits = [
            ReconnectPolicy(random.random).connectionEnded(held=3600.0, leaving=True)
            for _ in range(10_000)
        ]
        tenths = [sum(1 for wait in waits if int(wait * 10) == tenth) for tenth in range(10)]
        self.assertLess(max(tenths), 1.5 * min(tenths[1:]) + 1000, tenths)

    def test_leavesAgainAndAgain(self) -> None:
        """E3: a server that accepts and then says goodbye at once counts as one that slams."""
        policy = ReconnectPolicy(highest)
        waits = [policy.connectionEnded(held=0.1, leaving=True) for _ in range(8)]
        self.assertEqual(waits, [1, 2, 4, 8, 16, 32, 60, 60])

    def test_retryAfterCounts(self) -> None:
        """E2: what the server asked for is kept to, goodbye or not."""
        policy = ReconnectPolicy(lowest)
        self.assertEqual(policy.connectionEnded(held=60.0, leaving=True, retryAfter=9.0), 9.0)
