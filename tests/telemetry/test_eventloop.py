"""The event loop's lag, on a clock that the test holds back."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.telemetry.eventloop import INTERVAL, LoopLag


class LoopLagTests(SynchronousTestCase):
    """L{LoopLag}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.lag = LoopLag(self.clock)
        self.lag.start()

    def test_onTime(self) -> None:
        """A loop that is on time has no lag."""
        for _ in range(4):
            self.clock.advance(INTERVAL)
        self.assertEqual((self.lag.lags.count, self.lag.latest, self.lag.takeWorst()), (4, 0, 0))

    def test_late(self) -> None:
        """A turn that took 0.3 s makes the next look 0.3 s late."""
        self.clock.advance(INTERVAL + 0.3)
        self.assertAlmostEqual(self.lag.latest, 0.3)
        self.assertAlmostEqual(self.lag.lags.total, 0.3)

    def test_worstSinceAsked(self) -> None:
        """The longest lag is told once, and then what came after."""
        self.clock.advance(INTERVAL + 2)
        self.clock.advance(INTERVAL)
        self.assertAlmostEqual(self.lag.takeWorst(), 2)
        self.assertEqual(self.lag.takeWorst(), 0)

    def test_overdueNow(self) -> None:
        """A scrape in the turn that hangs sees the hang, before the look comes."""
        self.clock.rightNow += INTERVAL + 5
        self.assertAlmostEqual(self.lag.takeWorst(), 5)

    def test_stop(self) -> None:
        """No timer is left; starting twice makes one."""
        self.lag.start()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.lag.stop()
        self.lag.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
