"""Tests for L{helix_revdial.access.handshakes}."""

from __future__ import annotations

from itertools import pairwise

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.handshakes import (
    MAX_RETRY_AFTER,
    MAX_WAIT,
    Handshakes,
    TooManyHandshakes,
)


class HandshakesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.hit: list[str] = []
        self.handshakes = self.make()

    def make(self, **more: int) -> Handshakes:
        return Handshakes(self.clock, rate=10, burst=5, onLimit=self.hit.append, **more)

    def enter(self, patient: bool = False) -> Deferred[None]:
        return Deferred.fromCoroutine(self.handshakes.enter(patient=patient))

    def refused(self, patient: bool = False) -> float:
        failure = self.failureResultOf(self.enter(patient), TooManyHandshakes)
        return float(failure.value.retryAfter)

    def fill(self) -> None:
        for _ in range(5):
            self.successResultOf(self.enter())

    def test_aBurstAndThenTheRate(self) -> None:
        """Five at once after a quiet time, then one each tenth of a second."""
        self.fill()
        self.refused()
        self.clock.advance(0.1)
        self.successResultOf(self.enter())
        self.refused()
        self.clock.advance(3600)
        self.fill()
        self.refused()

    def test_eachIsToldALaterMoment(self) -> None:
        """Those who were told come back one after the other, at the rate."""
        self.fill()
        told = [self.refused() for _ in range(50)]
        for earlier, later in pairwise(told):
            self.assertAlmostEqual(later - earlier, 0.1)
        self.assertAlmostEqual(told[0], 0.2)

    def test_appointmentsDoNotUseTheRateUp(self) -> None:
        """Who is told to come back and does not has cost nobody a place."""
        self.fill()
        for _ in range(100):
            self.refused()
        self.clock.advance(1)
        self.fill()

    def test_theLongestWaitIsBounded(self) -> None:
        """Nobody is told to come back next week."""
        self.fill()
        told = [self.refused() for _ in range(int(MAX_RETRY_AFTER * 10 * 1.5))]
        self.assertLessEqual(max(told), MAX_RETRY_AFTER + 1)

    def test_oldAgentsWaitForTheirTurn(self) -> None:
        """They are let in one after the other, in the order in which they came."""
        self.fill()
        waiting = [self.enter(patient=True) for _ in range(20)]
        self.assertEqual(self.handshakes.waiting, 20)
        for place in range(20):
            self.assertNoResult(waiting[place])
            self.clock.advance(0.1 + 1e-9)
            self.successResultOf(waiting[place])
        self.assertEqual(self.handshakes.waiting, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_whoWaitsGoesFirst(self) -> None:
        """One that can come back does not overtake one that can only wait."""
        self.fill()
        waiting = self.enter(patient=True)
        self.assertGreaterEqual(self.refused(), 0.2)
        self.clock.advance(0.1 + 1e-9)
        self.successResultOf(waiting)

    def test_theQueueIsBoundedInTime(self) -> None:
        """Where the turn is too far away an old agent is held, and then refused."""
        self.fill()
        for _ in range(int(MAX_WAIT * 10)):
            self.enter(patient=True)
        late = [self.enter(patient=True) for _ in range(100)]
        self.clock.pump([0.01] * int(MAX_WAIT * 100 - 10))
        for each in late:
            self.assertNoResult(each)
        self.clock.pump([0.01] * 20)
        refused: list[Failure] = []
        for each in late:
            each.addErrback(refused.append)
        self.assertGreater(len(refused), 90)
        self.assertEqual(self.handshakes.waiting, 0)

    def test_theQueueIsBoundedInNumber(self) -> None:
        """One more is refused at once."""
        self.handshakes = self.make(maxWaiting=3)
        self.fill()
        for _ in range(3):
            self.assertNoResult(self.enter(patient=True))
        self.refused(patient=True)
        self.assertEqual(self.hit, ["handshakes_queued"] * 3 + ["handshakes"])

    def test_whoLeavesTheQueueGivesHisPlaceBack(self) -> None:
        """An old agent that hangs up while it waits costs nothing."""
        self.fill()
        gone = [self.enter(patient=True) for _ in range(50)]
        for each in gone:
            each.addErrback(lambda _: None)
            each.cancel()
        self.assertEqual(self.handshakes.waiting, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        waiting = self.enter(patient=True)
        self.clock.advance(0.11)
        self.successResultOf(waiting)

    def test_anotherRate(self) -> None:
        """A reload changes it for who comes next."""
        self.fill()
        self.handshakes.setRate(1000, 1)
        self.clock.advance(0.6)
        self.successResultOf(self.enter())
        self.clock.advance(0.001)
        self.successResultOf(self.enter())
