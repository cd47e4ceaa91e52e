"""Tests for L{helix_revdial.revdial.collecting}."""

from __future__ import annotations

import gc

from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.collecting import YOUNG, collectLess


class CollectLessTests(SynchronousTestCase):
    """The collector of the process that the tests run in is put back."""

    def setUp(self) -> None:
        self.addCleanup(gc.set_threshold, *gc.get_threshold())
        self.addCleanup(gc.unfreeze)

    def test_whenRunning(self) -> None:
        """Nothing changes before the reactor runs; then what is there is left alone."""
        before, frozen = gc.get_threshold(), gc.get_freeze_count()
        reactor = MemoryReactor()
        collectLess(reactor)
        self.assertEqual((gc.get_threshold(), gc.get_freeze_count()), (before, frozen))
        for call, arguments, keywords in reactor.whenRunningHooks:
            call(*arguments, **keywords)
        self.assertEqual(gc.get_threshold(), (YOUNG, *before[1:]))
        self.assertGreater(gc.get_freeze_count(), frozen)
