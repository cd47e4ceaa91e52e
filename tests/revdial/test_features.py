"""
Tests for L{helix_revdial.revdial.features}.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.features import ALL, KNOWN, MAX_HEADER, formatFeatures, parseFeatures


class FeaturesTests(SynchronousTestCase):
    """What both ends offer each other."""

    def test_roundTrip(self) -> None:
        """What is offered is understood, and always written alike."""
        self.assertEqual(parseFeatures([formatFeatures(ALL)]), ALL)
        self.assertEqual(formatFeatures(ALL), b"echo, eof, goodbye, pool, raw, targets, tickets")
        self.assertEqual(formatFeatures([]), b"")

    def test_none(self) -> None:
        """No header, and an empty one, offer nothing."""
        self.assertEqual(parseFeatures([]), frozenset())
        self.assertEqual(parseFeatures([b""]), frozenset())
        self.assertEqual(parseFeatures([b" , ,,"]), frozenset())

    def test_formOfTheList(self) -> None:
        """Letter case, spaces, order, repetition and repeated fields mean nothing."""
        self.assertEqual(
            parseFeatures([b"RAW ,\techo", b"Echo,,eof"]), frozenset({"raw", "echo", "eof"})
        )

    def test_zeroKeyIsChosen(self) -> None:
        """The zero key is understood, and offered only by whoever says so."""
        self.assertNotIn("zero-key", ALL)
        self.assertEqual(parseFeatures([b"zero-key, raw"]), {"zero-key", "raw"})

    def test_unknownWords(self) -> None:
        """Words of a later version are no fault, nor are words that look alike."""
        self.assertEqual(parseFeatures([b"quic, raw, raw2, xraw, ra w"]), frozenset({"raw"}))

    def test_longHeader(self) -> None:
        """What stands beyond the limit is not read."""
        inside = b"x" * (MAX_HEADER - 4) + b",raw"
        self.assertEqual(parseFeatures([inside]), frozenset({"raw"}))
        self.assertEqual(parseFeatures([b"x" + inside]), frozenset())
        self.assertEqual(parseFeatures([b"x" * MAX_HEADER, b"raw"]), frozenset())

    def test_anyBytes(self) -> None:
        """Any bytes give known words only."""

        @settings(deadline=None, max_examples=100)
        @given(st.lists(st.binary(max_size=100), max_size=4))
        def check(values: list[bytes]) -> None:
            self.assertLessEqual(parseFeatures(values), KNOWN)

        check()
