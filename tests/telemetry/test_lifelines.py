"""The memory of what ended: bounded, and fair to quiet runners."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.telemetry.lifelines import Lifeline, Lifelines


def line(dial: str, runner: str = "wolf-1") -> Lifeline:
    """A record."""
    return Lifeline(
        dial, runner, None, 1, 1000.0, {"ended": 1.0}, "ended", "connected", "closed", "raw", 1, 2
    )


class LifelinesTests(SynchronousTestCase):
    """L{Lifelines}."""

    def test_latestFirst(self) -> None:
        """Of one runner and of all, the latest comes first; a dial is found by its id."""
        lines = Lifelines()
        for dial, runner in (("a", "x"), ("b", "y"), ("c", "x")):
            lines.add(line(dial, runner))
        self.assertEqual([one.dial for one in lines.recent()], ["c", "b", "a"])
        self.assertEqual([one.dial for one in lines.recent("x")], ["c", "a"])
        self.assertEqual(list(lines.recent("z")), [])
        found = lines.find("b")
        assert found is not None
        self.assertEqual(found.runner, "y")
        self.assertIsNone(lines.find("d"))

    def test_aBusyRunnerPushesOutItsOwn(self) -> None:
        """A runner with thousands of streams leaves others their records."""
        lines = Lifelines(perRunner=3, total=100)
        lines.add(line("quiet", "quiet"))
        for number in range(1000):
            lines.add(line(f"busy-{number}", "busy"))
        self.assertEqual(len(lines), 4)
        self.assertIsNotNone(lines.find("quiet"))
        self.assertEqual([one.dial for one in lines.recent("busy")][-1], "busy-997")

    def test_totalIsBounded(self) -> None:
        """Beyond the limit the oldest of all goes, and its runner is forgotten with it."""
        lines = Lifelines(perRunner=3, total=5)
        for number in range(50):
            lines.add(line(f"d{number}", f"r{number}"))
        self.assertEqual([one.dial for one in lines.recent()], ["d49", "d48", "d47", "d46", "d45"])
        self.assertEqual(len(lines._byRunner), 5)

    def test_runnersComeAndGo(self) -> None:
        """When a runner was first seen, connected, lost and why; who it was before is known."""
        lines = Lifelines()
        self.assertFalse(lines.registered("wolf-1", 10.0, 1, "192.0.2.1"))
        lines.lost("wolf-1", 20.0, 1, "silence")
        self.assertTrue(lines.registered("wolf-1", 30.0, 2, "192.0.2.2"))
        known = lines.runner("wolf-1")
        assert known is not None
        self.assertEqual(
            (known.firstSeen, known.connectedAt, known.lostAt, known.lostReason, known.peer),
            (10.0, 30.0, 20.0, "silence", "192.0.2.2"),
        )
        self.assertEqual(known.registrations, 2)

    def test_aLateEndIsOfItsOwnGeneration(self) -> None:
        """B: an older connection that ends after its successor came changes nothing."""
        lines = Lifelines()
        lines.registered("wolf-1", 10.0, 1, "p")
        lines.registered("wolf-1", 20.0, 2, "p")
        lines.lost("wolf-1", 21.0, 1, "superseded")
        known = lines.runner("wolf-1")
        assert known is not None
        self.assertIsNone(known.lostAt)

    def test_runnersAreBounded(self) -> None:
        """G7: those that changed last are remembered, however many names there are."""
        lines = Lifelines(maxRunners=3)
        for number in range(100):
            lines.registered(f"r{number}", float(number), 1, "p")
            lines.registered("kept", float(number), number, "p")
        self.assertEqual({one.key for one in lines.runners()}, {"kept", "r98", "r99"})

    def test_machine(self) -> None:
        """Whatever is added in whatever order, the limits hold and both views agree."""
        run_state_machine_as_test(
            Memory, settings=settings(deadline=None, max_examples=40, stateful_step_count=40)
        )


class Memory(RuleBasedStateMachine):
    """Adds records of a few runners to a small memory, beside a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = Lifelines(perRunner=3, total=6)
        self.model: list[Lifeline] = []
        self.count = 0

    @rule(runner=st.sampled_from("abcd"))
    def add(self, runner: str) -> None:
        self.count += 1
        new = line(str(self.count), runner)
        self.lines.add(new)
        self.model.append(new)
        own = [one for one in self.model if one.runner == runner]
        if len(own) > 3:
            self.model.remove(own[0])
        elif len(self.model) > 6:
            self.model.pop(0)

    @invariant()
    def same(self) -> None:
        assert list(self.lines.recent()) == self.model[::-1]
        for runner in "abcd":
            own = [one for one in self.model if one.runner == runner]
            assert list(self.lines.recent(runner)) == own[::-1]
