"""Tests for L{helix_revdial.access.cache}."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.cache import AnswerCache, BoundedSet


class AnswerCacheTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.cache: AnswerCache[str, int] = AnswerCache(
            self.clock.seconds, limit=3, fresh=10, kept=100
        )

    def test_freshThenKeptThenGone(self) -> None:
        """An answer stands while fresh, can be had while kept, and is gone then."""
        self.cache.put("a", 1)
        self.clock.advance(10)
        self.assertEqual(self.cache.get("a"), 1)
        self.clock.advance(1)
        self.assertIs(self.cache.get("a"), None)
        self.assertEqual(self.cache.get("a", stale=True), 1)
        self.clock.advance(90)
        self.assertIs(self.cache.get("a", stale=True), None)
        self.assertEqual(len(self.cache), 0)

    def test_theLimitPushesOutWhatWasNotUsed(self) -> None:
        """Of more answers than the limit, the one used longest ago leaves."""
        for key in "abc":
            self.cache.put(key, 0)
        self.cache.get("a")
        self.cache.put("d", 0)
        self.assertEqual(len(self.cache), 3)
        self.assertIs(self.cache.get("b"), None)
        self.assertEqual(self.cache.get("a"), 0)

    def test_forgetting(self) -> None:
        """One answer, those of a kind, or all can be forgotten."""
        for key, value in zip("abc", (1, 2, 3), strict=True):
            self.cache.put(key, value)
        self.cache.forget("a")
        self.cache.forget("never there")
        self.cache.forgetWhere(lambda value: value == 2)
        self.assertEqual([self.cache.get(key) for key in "abc"], [None, None, 3])
        self.cache.clear()
        self.assertEqual(len(self.cache), 0)


class BoundedSetTests(SynchronousTestCase):
    def test_theFirstLeaves(self) -> None:
        """Beyond the limit the member that came first leaves."""
        members = BoundedSet(3)
        for member in ("a", "b", "a", "c", "d"):
            members.add(member)
        self.assertEqual([each in members for each in "abcd"], [False, True, True, True])
        self.assertEqual(len(members), 3)
