"""Tests for L{helix_revdial.revdial.monotonic}."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet.selectreactor import SelectReactor
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.monotonic import useMonotonicTime


class MonotonicTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor: Any = SelectReactor()
        self.addCleanup(self.reactor.removeAll)

    def test_aStepOfTheClockMovesNoTimer(self) -> None:
        """B8: eight hours forward fire nothing early, an hour back holds nothing up."""
        self.assertTrue(useMonotonicTime(self.reactor))
        fired: list[str] = []
        self.reactor.callLater(30, fired.append, "late")
        self.reactor.callLater(0.01, fired.append, "soon")
        now = time.time()
        self.patch(time, "time", lambda: now + 8 * 3600)
        self.reactor.runUntilCurrent()
        self.assertEqual(fired, [])
        self.patch(time, "time", lambda: now - 3600)
        time.sleep(0.02)
        self.reactor.runUntilCurrent()
        self.assertEqual(fired, ["soon"])
        self.assertLess(self.reactor.timeout(), 30)

    def test_aReactorWithTimersIsLeftAlone(self) -> None:
        """Its timers would be off by decades."""
        self.reactor.callLater(1, list)
        self.assertFalse(useMonotonicTime(self.reactor))
        self.assertLess(self.reactor.timeout(), 2)

    def test_twice(self) -> None:
        """Asked again, it says that it is done."""
        useMonotonicTime(self.reactor)
        self.reactor.callLater(1, list)
        self.assertTrue(useMonotonicTime(self.reactor))
