"""Tests for L{helix_revdial.access.limits} and L{helix_revdial.access.shares}."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.limits import MAX_NAMES, QUIET, LimitsHit
from helix_revdial.access.shares import Shares


class LimitsHitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.recorded: list[tuple[str, dict[str, Any]]] = []
        self.hit = LimitsHit(
            self.clock, lambda event, fields: self.recorded.append((event, fields))
        )

    def test_everyHitCountsAndFewAreTold(self) -> None:
        """A thousand refusals in a minute are one entry; the next says how many there were."""
        for _ in range(1000):
            self.hit("dials")
        self.hit("descriptors")
        self.clock.advance(QUIET)
        self.hit("dials")
        self.assertEqual(self.hit.counts, {"dials": 1001, "descriptors": 1})
        self.assertEqual(
            self.recorded,
            [
                ("limit-hit", {"limit": "dials", "count": 1}),
                ("limit-hit", {"limit": "descriptors", "count": 1}),
                ("limit-hit", {"limit": "dials", "count": 1000}),
            ],
        )

    def test_namesAreBounded(self) -> None:
        """G7: names that nobody thought of do not fill memory."""
        for number in range(2 * MAX_NAMES):
            self.hit(f"limit-{number}")
        self.assertEqual(len(self.hit.counts), MAX_NAMES)

    def test_aRecordThatFails(self) -> None:
        """It is logged, and whoever is refused does not hear of it."""

        def record(event: str, fields: dict[str, Any]) -> None:
            raise RuntimeError("no disk")

        LimitsHit(self.clock, record)("dials")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class SharesTests(SynchronousTestCase):
    def test_eachTenantHasItsOwn(self) -> None:
        """What one has is nothing to another."""
        shares = Shares(2)
        shares.take("a")
        shares.take("a")
        self.assertTrue(shares.spent("a"))
        self.assertFalse(shares.spent("b"))
        shares.release("a")
        self.assertFalse(shares.spent("a"))
        shares.release("a")
        self.assertEqual(shares.held("a"), 0)

    def test_aSmallerLimit(self) -> None:
        """Who has more than the new limit keeps it, and gets no more."""
        shares = Shares(5)
        for _ in range(5):
            shares.take("a")
        shares.limit = 1
        self.assertTrue(shares.spent("a"))
        for _ in range(4):
            shares.release("a")
        self.assertTrue(shares.spent("a"))
