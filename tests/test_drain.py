"""Tests for L{helix_revdial.drain}: the order of leaving, in memory."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.drain import SETTLE_LIMIT, Drain


class World:
    """
    What a drain works on.  Each step is noted, and waits until the test says that it
    is done.
    """

    openStreams = 1
    dialsUnderWay = 1

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.waiting: dict[str, Deferred[Any]] = {}

    def step(self, name: str) -> Deferred[Any]:
        self.steps.append(name)
        self.waiting[name] = Deferred()
        return self.waiting[name]

    def leave(self, limit: float, *, keeping: int) -> None:
        self.steps.append(f"leave {limit:g} {keeping}")

    async def settled(self, limit: float) -> bool:
        return bool(await self.step(f"settled {limit:g}"))

    async def drained(self, limit: float) -> bool:
        return bool(await self.step(f"drained {limit:g}"))

    def stop(self, limit: float) -> Deferred[None]:
        return self.step(f"requests {limit:g}")

    def close(self) -> Deferred[None]:
        return self.step("doors")


class DrainTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.world = World()
        self.drain = Drain(
            self.clock, cast(Any, self.world), cast(Any, self.world), self.world.close
        )
        self.running: Deferred[None] | None = None

    def run_(self, limit: float = 30.0) -> None:
        self.running = Deferred.fromCoroutine(self.drain.run(limit, keeping=7))

    def done(self, step: str, result: Any = None) -> None:
        self.world.waiting.pop(step).callback(result)

    def over(self) -> None:
        """It is over, and waits for nothing any more."""
        assert self.running is not None
        self.successResultOf(self.running)

    def test_order(self) -> None:
        """
        G1, G2: agents are told before anything is waited for; the doors stay open for
        dials under way; the time is counted from the signal.
        """
        self.run_()
        self.assertEqual(self.world.steps, ["leave 30 7", f"settled {SETTLE_LIMIT:g}"])
        self.clock.advance(2)
        self.done(f"settled {SETTLE_LIMIT:g}", True)
        self.assertEqual(self.world.steps[2:], ["doors"])
        self.done("doors")
        self.assertEqual(self.world.steps[3:], ["drained 28", "requests 28"])
        self.done("requests 28")
        self.done("drained 28", True)
        self.over()
        self.assertFalse(self.drain.hurried)

    def test_noTime(self) -> None:
        """G2: a limit of zero is given to every step."""
        self.run_(0.0)
        self.done("settled 0", False)
        self.done("doors")
        self.done("drained 0", False)
        self.done("requests 0")
        self.over()

    def test_hurryAtEachStep(self) -> None:
        """G2: whenever the second signal comes, nothing is waited for after it."""
        for step in (f"settled {SETTLE_LIMIT:g}", "doors", "requests 30", "drained 30"):
            self.setUp()
            self.run_()
            for each in (f"settled {SETTLE_LIMIT:g}", "doors", "requests 30"):
                if each == step:
                    break
                self.done(each, True)
            self.drain.hurry()
            if step == "doors":
                # What has begun to close is let close.
                self.done("doors")
            self.over()
            self.assertTrue(self.drain.hurried)

    def test_hurryBefore(self) -> None:
        """G2: a second signal that comes before the drain counts."""
        self.drain.hurry()
        self.run_()
        self.over()

    def test_fault(self) -> None:
        """A step that fails is logged, and ends the wait: what is left is cut."""
        self.run_()
        self.done(f"settled {SETTLE_LIMIT:g}", True)
        self.world.waiting["doors"].errback(ZeroDivisionError())
        self.over()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
