"""Reports on their way into the journal: in order, none lost, output held back in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.executor.journal import Journal, JournalReader
from helix_revdial.executor.reporting import RETRY, Reporting
from helix_revdial.sessions.executor import Report


class FullDisk(Journal):
    """A journal on a disk that may be full."""

    full = False

    def append(self, at: float, kind: str, **fields: Any) -> Report:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().append(at, kind, **fields)


class Pipe:
    """Where output comes from."""

    def __init__(self) -> None:
        self.held = False

    def hold(self, wanted: bool) -> None:
        self.held = wanted


class ReportingTests(SynchronousTestCase):
    """L{Reporting}."""

    def setUp(self) -> None:
        self.place = Path(self.mktemp()).absolute()
        self.journal = FullDisk(self.place)
        self.clock = Clock()
        self.told = 0
        self.pipe = Pipe()

    def reporting(self, *, outputAhead: int = 100_000, logBytes: int = 100_000) -> Reporting:
        def notify() -> None:
            self.told += 1

        made = Reporting(
            self.clock,
            self.journal,
            lambda: 1.5,
            notify,
            outputAhead=outputAhead,
            logBytes=logBytes,
        )
        made.source = self.pipe
        return made

    def written(self) -> list[Report]:
        reader = JournalReader(self.place, 0)
        found = b""
        while piece := reader.read():
            found += piece
        return [msgspec.json.decode(line, type=Report) for line in found.splitlines()]

    def test_fullDisk(self) -> None:
        """What cannot be written waits, in order, holds the output back, and is not lost."""
        reporting = self.reporting()
        reporting.output("stdout", ["one"])
        self.journal.full = True
        reporting.output("stdout", ["two"])
        reporting.report("state", state="stopping")
        self.assertFalse(reporting.complete)
        self.assertTrue(self.pipe.held)
        self.clock.advance(RETRY)
        self.assertFalse(reporting.complete)
        self.journal.full = False
        self.clock.advance(RETRY)
        self.assertTrue(reporting.complete)
        self.assertFalse(self.pipe.held)
        found = self.written()
        self.assertEqual([each.seq for each in found], [1, 2, 3])
        self.assertEqual([each.message or each.state for each in found], ["one", "two", "stopping"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_ahead(self) -> None:
        """
        Output is held back from C{outputAhead} bytes on that nobody has fetched, and taken
        again when a quarter of that is fetched, not at each byte.
        """
        reporting = self.reporting(outputAhead=600_000, logBytes=10_000_000)
        line = "x" * 10_000
        while not self.pipe.held:
            reporting.output("stdout", [line])
            self.assertLess(self.journal.ahead, 700_000)
        self.assertGreater(self.journal.ahead, 600_000)
        seq = 0
        while self.pipe.held:
            seq += 1
            self.assertLess(seq, self.journal.lastSeq)
            reporting.fetched(seq)
        self.assertLessEqual(self.journal.ahead, 450_000)
        self.assertGreater(self.journal.ahead, 300_000)

    def test_smallest(self) -> None:
        """However little may wait: when all is fetched the output goes on."""
        reporting = self.reporting(outputAhead=1)
        for seq in range(1, 20):
            reporting.output("stdout", ["a line"])
            self.assertTrue(self.pipe.held)
            reporting.fetched(seq)
            self.assertFalse(self.pipe.held)

    def test_logBytes(self) -> None:
        """A session says C{logBytes} at most, then once that the rest is left out."""
        reporting = self.reporting(logBytes=10)
        reporting.output("stdout", ["12345", "67890", "more", "and more"])
        reporting.output("stderr", ["still more"])
        reporting.report("state", state="stopping")
        self.assertEqual(
            [(each.level, each.message or each.state) for each in self.written()],
            [
                ("info", "12345"),
                ("info", "67890"),
                ("warn", "the output is longer than 10 bytes: the rest is left out"),
                (None, "stopping"),
            ],
        )

    def test_notified(self) -> None:
        """Whoever waits for reports is told of each."""
        reporting = self.reporting()
        reporting.say("a line", "warn")
        self.assertEqual(self.told, 1)
        reporting.acknowledge(1)
        self.assertEqual([each.stream for each in self.written()], ["system"])
