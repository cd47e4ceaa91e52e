# -*- test-case-name: tests.revdial.test_deadlines -*-
"""
Many points in time, of which the next one matters.

Holds things and the time each falls due, so that a table of ten thousand
runners needs one timer.  Knows no clock: times are numbers that the caller
compares.

Invariant: what is held in memory is at most about twice what is scheduled,
however often things are scheduled again or dropped.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T", bound=Hashable)

_SLACK = 64


class Deadlines(Generic[_T]):
    """Things that fall due, each at most once."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _T]] = []
        self._current: dict[_T, tuple[float, int]] = {}
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._current)

    @property
    def held(self) -> int:
        """Entries in memory, outdated ones included."""
        return len(self._heap)

    def schedule(self, thing: _T, when: float) -> None:
        """Let C{thing} fall due at C{when}, and no longer at an earlier given time."""
        self._sequence += 1
        self._current[thing] = (when, self._sequence)
        heap = self._heap
        heapq.heappush(heap, (when, self._sequence, thing))
        if len(heap) > 2 * len(self._current) + _SLACK:
            self._compact()

    def drop(self, thing: _T) -> None:
        """C{thing} falls due no more; no error if it did not."""
        if self._current.pop(thing, None) is None:
            return
        if len(self._heap) > 2 * len(self._current) + _SLACK:
            self._compact()

    def when(self, thing: _T) -> float | None:
        """When C{thing} falls due, C{None} if it does not."""
        entry = self._current.get(thing)
        return None if entry is None else entry[0]

    def next(self) -> float | None:
        """When the next thing falls due, C{None} if nothing is scheduled."""
        heap = self._heap
        while heap and self._current.get(heap[0][2]) != heap[0][:2]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: float) -> Iterator[_T]:
        """Take out what is due at C{now}, the earliest first."""
        while (when := self.next()) is not None and when <= now:
            thing = heapq.heappop(self._heap)[2]
            del self._current[thing]
            yield thing

    def _compact(self) -> None:
        self._heap = [entry for entry in self._heap if self._current.get(entry[2]) == entry[:2]]
        heapq.heapify(self._heap)
