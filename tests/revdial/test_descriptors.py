"""Tests for L{helix_revdial.revdial.descriptors} and L{helix_revdial.revdial.overload}."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.descriptors import COUNT_EVERY, Descriptors, openDescriptors
from helix_revdial.revdial.overload import LOOK_EVERY, Overload, Overloaded, OverloadLimits


class DescriptorsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.counts = 0
        self.open = 50
        self.held = 20

    def make(self, limit: int = 1000, reserve: int | None = None) -> Descriptors:
        def count() -> int:
            self.counts += 1
            return self.open

        return Descriptors(self.clock, lambda: self.held, limit=limit, reserve=reserve, count=count)

    def test_theReserve(self) -> None:
        """E8: scarce is when only the reserve is left: a tenth, if nothing else is said."""
        descriptors = self.make()
        self.assertFalse(descriptors.scarce())
        self.open = 899
        self.clock.advance(COUNT_EVERY)
        self.assertFalse(descriptors.scarce())
        self.open = 900
        self.clock.advance(COUNT_EVERY)
        self.assertTrue(descriptors.scarce())
        self.assertEqual(self.make(reserve=10).reserve, 10)
        self.assertEqual(self.make(limit=20).reserve, 10)

    def test_betweenTwoCountsWhatIsKnownCounts(self) -> None:
        """A flood within a second is seen, and costs one count."""
        descriptors = self.make()
        self.assertFalse(descriptors.scarce())
        self.held += 850
        self.assertTrue(descriptors.scarce())
        self.held -= 850
        self.assertFalse(descriptors.scarce())
        self.assertEqual(self.counts, 1)

    def test_counting(self) -> None:
        """One more is one more."""
        before = openDescriptors()
        assert before is not None
        ends = os.pipe()
        try:
            self.assertEqual(openDescriptors(), before + 2)
        finally:
            for end in ends:
                os.close(end)

    def test_theLimitIsRaised(self) -> None:
        """The soft limit becomes the hard one."""
        code = (
            "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128));"
            "from helix_revdial.revdial.descriptors import raiseDescriptorLimit as go;"
            "print(go(), go(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        self.assertEqual(done.stdout.split(), ["128", "128", "128", "128"], done.stderr)

    def test_noDescriptorToCountWith(self) -> None:
        """Where even the count fails for want of one, none are left."""
        code = (
            "import os, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64));"
            "from helix_revdial.revdial.descriptors import openDescriptors as count\n"
            "try:\n while True: os.dup(1)\nexcept OSError: print(count())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        self.assertEqual(done.stdout.strip(), "64", done.stderr)
        self.assertGreater(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 64)


class OverloadTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.scarce = False
        self.bytes = 0
        self.looks = 0

        def buffered() -> int:
            self.looks += 1
            return self.bytes

        self.overload = Overload(
            self.clock,
            OverloadLimits(dials=3, bufferedBytes=1000),
            scarce=lambda: self.scarce,
            buffered=buffered,
        )

    def refused(self, dials: int = 0) -> str:
        error = self.assertRaises(Overloaded, self.overload.check, dials)
        self.assertEqual((error.status, error.word), (503, "busy"))
        self.assertIsNotNone(error.retryAfter)
        return str(error.limit)

    def test_dials(self) -> None:
        """So many may be under way, and not one more."""
        self.overload.check(2)
        self.assertEqual(self.refused(3), "dials")

    def test_descriptors(self) -> None:
        """E8: no stream begins when descriptors are short."""
        self.scarce = True
        self.assertEqual(self.refused(), "descriptors")

    def test_bufferedBytes(self) -> None:
        """Too much that nobody reads; looked at no oftener than it is stated."""
        self.overload.check(0)
        self.bytes = 1000
        self.overload.check(0)
        self.assertEqual(self.looks, 1)
        self.clock.advance(LOOK_EVERY)
        self.assertEqual(self.refused(), "buffered_bytes")
        self.bytes = 0
        self.clock.advance(LOOK_EVERY)
        self.overload.check(0)
