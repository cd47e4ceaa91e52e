"""Tests for L{helix_revdial.sessions.lifecycle}."""

from __future__ import annotations

from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions.lifecycle import (
    ACTIVE,
    STATES,
    TERMINAL,
    TRANSITIONS,
    Illegal,
    Input,
    advance,
)

ASKED = ("provision", "pause", "resume", "stop", "cancel")
REPORTED = ("started", "paused", "succeeded", "failed", "broke")
INPUTS: tuple[Input, ...] = get_args(Input)

TABLE = """
queued -> provisioning stopping failed
provisioning -> running stopping failed
running -> pausing stopping completed failed
pausing -> paused failed stopping
paused -> resuming stopping
resuming -> running failed stopping
stopping -> stopped cancelled failed
"""
"""As it is specified, written down a second time."""


class TableTests(SynchronousTestCase):
    def test_theTableIsTheSpecifiedOne(self) -> None:
        """Each state is followed by what the specification says, by nothing else."""
        told = {
            before: set(after.split())
            for before, _, after in (line.partition(" -> ") for line in TABLE.split("\n") if line)
        }
        self.assertEqual({b: set(a) for b, a in TRANSITIONS.items() if a}, told)
        self.assertEqual({b for b, a in TRANSITIONS.items() if not a}, set(TERMINAL))

    def test_everyTransitionCanHappen(self) -> None:
        """What the table allows, something brings about."""
        seen = set()
        for status in STATES:
            for goal in (None, "stopped", "cancelled"):
                for happened in INPUTS:
                    try:
                        steps, _ = advance(status, goal, happened)
                    except Illegal:
                        continue
                    seen |= set(zip((status, *steps), steps, strict=False))
        allowed = {(before, after) for before, all_ in TRANSITIONS.items() for after in all_}
        self.assertEqual(seen, allowed)

    def test_repeated(self) -> None:
        """Asking again for what is under way changes nothing."""
        for status, asked in (
            ("pausing", "pause"),
            ("resuming", "resume"),
            ("stopping", "stop"),
            ("stopping", "cancel"),
        ):
            self.assertEqual(advance(status, "stopped", asked)[0], ())  # type: ignore[arg-type]

    def test_refused(self) -> None:
        """What cannot be is refused with the state's name."""
        for status, asked in (
            ("queued", "pause"),
            ("paused", "pause"),
            ("running", "resume"),
            ("completed", "stop"),
            ("failed", "cancel"),
            ("running", "provision"),
        ):
            with self.assertRaises(Illegal) as raised:
                advance(status, None, asked)  # type: ignore[arg-type]
            self.assertEqual(raised.exception.status, status)
            self.assertIn(status, str(raised.exception))

    def test_queuedStopsAtOnce(self) -> None:
        """What nobody runs is stopped without anybody's help."""
        self.assertEqual(advance("queued", None, "stop"), (("stopping", "stopped"), "stopped"))
        self.assertEqual(
            advance("queued", None, "cancel"), (("stopping", "cancelled"), "cancelled")
        )

    def test_cancellingIsMoreThanStopping(self) -> None:
        """A session that is stopping may still be cancelled, and not the other way."""
        self.assertEqual(advance("stopping", "stopped", "cancel"), ((), "cancelled"))
        self.assertEqual(advance("stopping", "cancelled", "stop"), ((), "cancelled"))
        self.assertEqual(advance("stopping", "cancelled", "failed")[0], ("cancelled",))
        self.assertEqual(advance("stopping", "stopped", "failed")[0], ("stopped",))
        self.assertEqual(advance("stopping", "cancelled", "broke")[0], ("failed",))

    def test_exitCodes(self) -> None:
        """Defect 6: a process that failed makes a session that failed."""
        self.assertEqual(advance("running", None, "failed")[0], ("failed",))
        self.assertEqual(advance("running", None, "succeeded")[0], ("completed",))

    def test_otherStates(self) -> None:
        """The state of a sandbox is none of a task's."""
        self.assertRaises(ValueError, advance, "created", None, "stop")


class WalkTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=300)
    @given(st.lists(st.sampled_from(INPUTS), max_size=30))
    def test_noStepOutsideOfTheTable(self, inputs: list[Input]) -> None:
        """Whatever happens, in whatever order: each step is one of the table's."""
        status: str = "queued"
        goal = None
        for happened in inputs:
            try:
                steps, aims = advance(status, goal, happened)
            except Illegal:
                self.assertTrue(happened in ASKED or status == "queued", (status, happened))
                continue
            for step in steps:
                self.assertIn(step, TRANSITIONS[status], (status, happened))  # type: ignore[index]
                status = step
            if happened in ("stop", "cancel"):
                self.assertTrue(status == "stopping" or status in TERMINAL)
            if steps and steps[-1] in ("stopped", "cancelled"):
                self.assertEqual(steps[-1], aims)
            if goal == "cancelled":
                self.assertEqual(aims, "cancelled", "a cancellation was forgotten")
            goal = aims

    def test_everyActiveStateEnds(self) -> None:
        """From everywhere, a stop and the process's end lead to the end."""
        for status in ACTIVE:
            steps, goal = advance(status, None, "stop")
            last = steps[-1] if steps else status
            if last not in TERMINAL:
                steps, _ = advance(last, goal, "failed")
                last = steps[-1]
            self.assertEqual(last, "stopped")
