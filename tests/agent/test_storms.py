"""E1: what happens when ten thousand agents lose their server in the same second."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.agent.storms import Storm

AGENTS = 10_000
RATE = 200
"""The delivered rate: at best, ten thousand agents need fifty seconds."""


class StormTests(SynchronousTestCase):
    def check(self, storm: Storm, agents: int = AGENTS) -> None:
        self.assertEqual(len(storm.rejoined), agents)
        seconds = sorted(storm.handshakes.items())
        self.assertLessEqual(max(count for _, count in seconds), 2 * RATE, "the cap in a second")
        first = seconds[0][0]
        for second, _ in seconds:
            total = sum(count for when, count in seconds if when <= second)
            self.assertLessEqual(total, RATE * (second - first + 2), "the cap over any longer time")
        self.assertLess(storm.after(0.5), 0.7 * agents / RATE, "half of them")
        self.assertLess(storm.after(0.99), 1.6 * agents / RATE, "nearly all of them")

    def test_aServerThatIsStartedAgain(self) -> None:
        """Five seconds away: all are back, at the rate of the cap, and soon."""
        storm = Storm(AGENTS, away=5, rate=RATE, burst=RATE)
        self.check(storm)
        self.assertLess(sum(storm.attempts.values()), 2.5 * AGENTS, "they come back too often")

    def test_aServerThatSaidThatItLeaves(self) -> None:
        """Agents that were told come sooner; the cap holds."""
        self.check(Storm(AGENTS, away=3, rate=RATE, burst=RATE, told=True))

    def test_aServerThatWasAwayForLong(self) -> None:
        """Their own waits have spread them already: hardly anybody is turned away."""
        storm = Storm(AGENTS, away=120, rate=RATE, burst=RATE)
        self.check(storm)
        self.assertLess(max(storm.attempts.values()), 2 * RATE)

    def test_oldAgentsAreKeptWaiting(self) -> None:
        """Those that come every second whatever they are told do not get to hammer."""
        storm = Storm(3000, away=2, rate=100, burst=100, old=3000)
        self.assertEqual(len(storm.oldRejoined), 3000)
        self.assertLess(max(storm.oldRejoined), 3000 / 100 + 5)
        self.assertLess(sum(storm.attempts.values()), 3 * 3000)
