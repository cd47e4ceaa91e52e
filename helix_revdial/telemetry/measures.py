# -*- test-case-name: tests.telemetry.test_measures -*-
"""
What is counted while the program works: tallies and histograms.

prometheus-client's own counters take a lock and look a label up at each step;
these are a dictionary and a list, which one thread, the reactor's, writes.  The
collectors of L{helix_revdial.telemetry.metrics} turn them into metric families
when somebody asks.

Invariants:

  - A L{Tally} tells apart the words it was made with, and counts every other
    word as C{"other"}: what a peer says never becomes a label.
  - The buckets of a L{Histogram} are fixed when it is made.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

OTHER = "other"
"""The word under which a L{Tally} counts words that it does not know."""

LATENCIES = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 20.0, 50.0),
)
"""Bounds in seconds for what a caller waits for; the last is a dial and a grace period."""

DURATIONS = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0)
"""Bounds in seconds for how long a stream lives."""


class Tally:
    """
    Counts by one word.
    """

    __slots__ = ("_counts",)

    def __init__(self, words: Iterable[str]) -> None:
        """
        @param words: The words that are told apart; each is shown from the start,
            so that a rate over it is known before it first happens.
        """
        self._counts = dict.fromkeys((*words, OTHER), 0)

    def add(self, word: str, count: int = 1) -> None:
        """Count C{word}."""
        counts = self._counts
        if word in counts:
            counts[word] += count
        else:
            counts[OTHER] += count

    def __getitem__(self, word: str) -> int:
        return self._counts[word]

    def items(self) -> Iterator[tuple[str, int]]:
        """Each word with its count; C{"other"} only where it happened."""
        for word, count in self._counts.items():
            if count or word != OTHER:
                yield word, count


class Histogram:
    """
    How often values fell under each of some bounds.
    """

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float] = LATENCIES) -> None:
        """
        @param bounds: Rising upper bounds; a last one without limit is added.
        """
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Values so far."""
        return sum(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus has them: each bound with the values up to it, C{+Inf} last."""
        found: list[tuple[str, float]] = []
        reached = 0
        for bound, count in zip((*self._bounds, None), self._counts, strict=True):
            reached += count
            found.append(("+Inf" if bound is None else repr(bound), float(reached)))
        return found


__all__ = ["DURATIONS", "LATENCIES", "OTHER", "Histogram", "Tally"]
