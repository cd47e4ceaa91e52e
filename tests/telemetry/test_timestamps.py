"""Tests for L{helix_revdial.telemetry.timestamps}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.telemetry.timestamps import timestamp


class TimestampTests(SynchronousTestCase):
    def test_alwaysOfTheSameForm(self) -> None:
        """UTC and milliseconds, also where the moment is a whole second."""
        self.assertEqual(timestamp(0), "1970-01-01T00:00:00.000Z")
        self.assertEqual(timestamp(1767323045.6784), "2026-01-02T03:04:05.678Z")
