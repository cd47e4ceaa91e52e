"""Tests for L{helix_revdial.revdial.deadlines}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.deadlines import Deadlines


class DeadlinesTests(SynchronousTestCase):
    """L{Deadlines}."""

    def test_order(self) -> None:
        """What is due comes out in order of time, then of scheduling; the rest stays."""
        deadlines: Deadlines[str] = Deadlines()
        for thing, when in (("c", 3.0), ("a", 1.0), ("b", 1.0), ("d", 4.0)):
            deadlines.schedule(thing, when)
        self.assertEqual(list(deadlines.due(3.0)), ["a", "b", "c"])
        self.assertEqual((deadlines.next(), len(deadlines)), (4.0, 1))

    def test_scheduledAgain(self) -> None:
        """The last time given counts, earlier or later."""
        deadlines: Deadlines[str] = Deadlines()
        deadlines.schedule("a", 1.0)
        deadlines.schedule("a", 5.0)
        self.assertEqual(deadlines.next(), 5.0)
        self.assertEqual(deadlines.when("a"), 5.0)
        deadlines.schedule("a", 2.0)
        self.assertEqual(list(deadlines.due(10.0)), ["a"])
        self.assertIsNone(deadlines.next())
        self.assertIsNone(deadlines.when("a"))

    def test_dropped(self) -> None:
        """What is dropped falls due no more; dropping it again is nothing."""
        deadlines: Deadlines[str] = Deadlines()
        deadlines.schedule("a", 1.0)
        deadlines.drop("a")
        deadlines.drop("a")
        self.assertEqual(list(deadlines.due(10.0)), [])

    def test_droppedWhileOthersFallDue(self) -> None:
        """Handling one thing may drop the next, and may schedule another."""
        deadlines: Deadlines[str] = Deadlines()
        for thing in "abc":
            deadlines.schedule(thing, 1.0)
        seen = []
        for thing in deadlines.due(1.0):
            seen.append(thing)
            if thing == "a":
                deadlines.drop("b")
                deadlines.schedule("d", 1.0)
        self.assertEqual(seen, ["a", "c", "d"])

    def test_bounded(self) -> None:
        """However often a thing is scheduled again, memory stays small."""
        deadlines: Deadlines[int] = Deadlines()
        for number in range(10_000):
            deadlines.schedule(number % 10, float(number))
        self.assertLessEqual(deadlines.held, 2 * 10 + 65)
