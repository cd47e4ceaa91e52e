# -*- test-case-name: tests.access.test_cache -*-
"""
A bounded memory of answers, and of how old they are.

What it is for: a thousand agents that connect again in the same second must
not be a thousand queries, and what was known a moment ago must still be known
when the database is lost.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class AnswerCache(Generic[K, V]):
    """
    The latest answers; the one that was used longest ago leaves first.

    @ivar limit: how many answers are kept.
    @ivar fresh: seconds for which an answer stands without asking again.
    @ivar kept: seconds for which it is kept in case nobody can be asked.
    """

    def __init__(
        self, seconds: Callable[[], float], *, limit: int, fresh: float, kept: float
    ) -> None:
        """
        @param seconds: a monotonic clock.
        """
        self.limit = limit
        self.fresh = fresh
        self.kept = kept
        self._seconds = seconds
        self._answers: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: K, *, stale: bool = False) -> V | None:
        """
        @param stale: take an answer that is kept, but no longer fresh.
        """
        entry = self._answers.get(key)
        if entry is None:
            return None
        age = self._seconds() - entry[0]
        if age > self.kept:
            del self._answers[key]
            return None
        if age > self.fresh and not stale:
            return None
        self._answers.move_to_end(key)
        return entry[1]

    def put(self, key: K, answer: V) -> None:
        """Remember an answer that was given just now."""
        self._answers[key] = (self._seconds(), answer)
        self._answers.move_to_end(key)
        if len(self._answers) > self.limit:
            self._answers.popitem(last=False)

    def forget(self, key: K) -> None:
        """Ask again next time."""
        self._answers.pop(key, None)

    def forgetWhere(self, test: Callable[[V], bool]) -> None:
        """Forget every answer that C{test} is true for."""
        for key in [key for key, (_, answer) in self._answers.items() if test(answer)]:
            del self._answers[key]

    def clear(self) -> None:
        """Forget everything."""
        self._answers.clear()


class BoundedSet:
    """
    The latest members of a set; the one that was added first leaves first.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._members: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, member: object) -> bool:
        return member in self._members

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: str) -> None:
        """Add a member, which may push another out."""
        self._members[member] = None
        if len(self._members) > self.limit:
            self._members.popitem(last=False)
