"""Tests for L{helix_revdial.storage.ids}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.storage.ids import isId, newId


class IdTests(SynchronousTestCase):
    def test_theWellKnownExample(self) -> None:
        """An identifier is the ULID of the time and the random bits."""
        made = newId("ses", 1_700_000_000.0, lambda n: bytes(n))
        self.assertEqual(made, "ses_01HF7YAT000000000000000000")

    def test_everyBitOfRandomnessShows(self) -> None:
        """All eighty random bits are in the last sixteen digits."""
        self.assertEqual(newId("tok", 0, lambda n: b"\xff" * n), "tok_0000000000" + "Z" * 16)

    @settings(deadline=None, max_examples=50)
    @given(
        st.floats(min_value=0, max_value=2e11, allow_nan=False),
        st.floats(min_value=0, max_value=2e11, allow_nan=False),
    )
    def test_theySortByTime(self, one: float, other: float) -> None:
        """Identifiers of different milliseconds sort as the times do."""
        first, second = newId("aud", one), newId("aud", other)
        self.assertTrue(isId(first, "aud") and isId(second, "aud"))
        if int(one * 1000) < int(other * 1000):
            self.assertLess(first, second)

    def test_twoOfTheSameMomentDiffer(self) -> None:
        """Identifiers made at the same time are different."""
        self.assertEqual(len({newId("ses", 1.0) for _ in range(1000)}), 1000)

    def test_otherPrefixesAreRefused(self) -> None:
        """A prefix is two to eight lower-case letters."""
        for prefix in ("", "s", "SES", "ses_", "verylongone", "s-s"):
            with self.assertRaises(ValueError):
                newId(prefix, 0)

    def test_impossibleTimesAreRefused(self) -> None:
        """A time that has no place in 48 bits is refused."""
        for seconds in (-1, 2**48):
            with self.assertRaises(ValueError):
                newId("ses", seconds)

    def test_isId(self) -> None:
        """Only the exact form is an identifier: nothing of it needs escaping."""
        good = newId("ses", 1.0)
        self.assertTrue(isId(good, "ses"))
        for bad in (
            good.lower(),
            good + "0",
            good[:-1],
            good + "\n",
            good.replace("ses_", "tok_"),
            "ses_" + "U" * 26,
            "ses_" + "8" + "0" * 25,
            "ses_../../etc/passwd000000000",
            "",
        ):
            self.assertFalse(isId(bad, "ses"), bad)
