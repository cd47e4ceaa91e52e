"""Tallies and histograms."""

from __future__ import annotations

from bisect import bisect_left

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.telemetry.measures import LATENCIES, OTHER, Histogram, Tally


class TallyTests(SynchronousTestCase):
    """L{Tally}."""

    def test_everyWordIsShownFromTheStart(self) -> None:
        """A word that has not happened is 0, so that its rate is known when it first does."""
        self.assertEqual(dict(Tally(("a", "b")).items()), {"a": 0, "b": 0})

    def test_unknownWordsAreOneLabel(self) -> None:
        """G7: whatever peers say, there is one label for all that is not ours."""
        tally = Tally(("a",))
        for number in range(1000):
            tally.add(f"word-{number}")
        tally.add("a", 3)
        self.assertEqual(dict(tally.items()), {"a": 3, OTHER: 1000})


class HistogramTests(SynchronousTestCase):
    """L{Histogram}."""

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.floats(min_value=0, max_value=100)))
    def test_buckets(self, values: list[float]) -> None:
        """Each bucket holds all values up to its bound, the last one all there are."""
        histogram = Histogram()
        for value in values:
            histogram.observe(value)
        for bound, count in histogram.buckets():
            limit = float(bound)
            self.assertEqual(count, sum(value <= limit for value in values), bound)
        self.assertEqual(histogram.count, len(values))
        self.assertAlmostEqual(histogram.total, sum(values))

    def test_aValueOnABoundIsUnderIt(self) -> None:
        """Prometheus: C{le} means up to and including."""
        histogram = Histogram((1.0, 2.0))
        histogram.observe(1.0)
        self.assertEqual(histogram.buckets(), [("1.0", 1), ("2.0", 1), ("+Inf", 1)])

    def test_boundsRise(self) -> None:
        """The bounds are in order, which bisection needs."""
        self.assertEqual(list(LATENCIES), sorted(set(LATENCIES)))
        self.assertEqual(bisect_left(LATENCIES, 1000), len(LATENCIES))
