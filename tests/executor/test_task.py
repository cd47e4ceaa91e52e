"""When what a task says becomes a line of the log."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.executor.layout import Layout
from helix_revdial.executor.task import PARTIAL_SECONDS, Task

TICK = 0.5


class Pipes:
    """The process's transport."""

    def pauseProducing(self) -> None:
        """Nothing more comes."""

    def resumeProducing(self) -> None:
        """It comes again."""


class OutputTests(SynchronousTestCase):
    """Lines, whole where that can be."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.said: list[tuple[str, str]] = []

        def output(stream: str, lines: list[str]) -> None:
            self.said += [(stream, line) for line in lines]

        record = cast(Any, SimpleNamespace(spec=None))
        self.task = Task(self.clock, record, Layout(Path("/none")), output)
        self.task.transport = cast(Any, Pipes())

    def after(self, seconds: float) -> None:
        """Time passes, in which the task is tended."""
        while seconds > 0:
            self.clock.advance(TICK)
            self.task.tend()
            seconds -= TICK

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(1, 150), min_size=5, max_size=60))
    def test_noLineOfAFloodIsCut(self, sizes: list[int]) -> None:
        """Output whose pieces end within lines, for however long: each line is whole."""
        self.setUp()
        wanted = [f"{number:099}" for number in range(len(sizes) * 2)]
        data = "".join(f"{line}\n" for line in wanted).encode()
        sent = 0
        for size in sizes:
            # Each piece has the end of a line.
            self.task.childDataReceived(1, data[sent : sent + 100 + size])
            sent += 100 + size
            self.after(PARTIAL_SECONDS - TICK)
        self.task.childDataReceived(1, data[sent:])
        self.assertEqual([line for _, line in self.said], wanted[: len(self.said)])
        self.assertGreaterEqual(len(self.said), len(wanted) - 1)

    def test_unfinished(self) -> None:
        """A line that does not end is told after a while, and so is each stream's own."""
        self.task.childDataReceived(1, b"name? ")
        self.after(PARTIAL_SECONDS - TICK)
        self.task.childDataReceived(2, b".")
        self.assertEqual(self.said, [])
        self.after(TICK)
        self.assertEqual(self.said, [("stdout", "name? ")])
        self.after(TICK)
        # That more comes of it does not put it off.
        self.task.childDataReceived(2, b".")
        self.after(PARTIAL_SECONDS)
        self.assertEqual(self.said[1:], [("stderr", "..")])
        self.after(PARTIAL_SECONDS)
        self.assertEqual(len(self.said), 2)

    def test_held(self) -> None:
        """The rest of a line may lie where it is held: nothing is told of it meanwhile."""
        self.task.childDataReceived(1, b"be")
        self.task.hold(True)
        self.after(10 * PARTIAL_SECONDS)
        self.assertEqual(self.said, [])
        self.task.hold(False)
        self.after(TICK)
        self.task.childDataReceived(1, b"gun\n")
        self.assertEqual(self.said, [("stdout", "begun")])
        self.task.childDataReceived(1, b"x")
        # Told again and again that it is wanted: it is told all the same.
        for _ in range(5):
            self.task.hold(False)
            self.after(TICK)
        self.assertEqual(self.said[1:], [("stdout", "x")])

    def test_unconfined(self) -> None:
        """What could not be confined says so itself; an exit code alone says nothing."""
        self.task.processExited(Failure(ProcessTerminated(125)))
        self.assertEqual(self.task.ending, {"exitCode": 125})
        self.task.childDataReceived(3, b"unshare: Operation not permitted")
        self.assertIn("could not confine", self.task.ending["error"])
        self.assertEqual(self.said, [])
