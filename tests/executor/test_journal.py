"""The journal: dense, whole after a crash at any byte, bounded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.executor.journal import (
    Journal,
    JournalGone,
    JournalReader,
    lastReport,
    lastSeq,
    segments,
)
from helix_revdial.sessions.executor import Report


class JournalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.place = Path(self.mktemp()).absolute()

    def write(self, count: int, journal: Journal | None = None, **options: Any) -> Journal:
        journal = journal or Journal(self.place, **options)
        for _ in range(count):
            journal.append(1.5, "log", level="info", message=f"line {journal.lastSeq + 1}")
        return journal

    def read(self, after: int = 0) -> list[Report]:
        reader = JournalReader(self.place, after)
        found = b""
        while piece := reader.read():
            found += piece
        return [msgspec.json.decode(line, type=Report) for line in found.splitlines()]

    def test_numbers(self) -> None:
        """Numbers are dense from 1, across segments and restarts of the writer."""
        self.write(10, segment=200).close()
        self.write(10, segment=200).close()
        self.assertGreater(len(segments(self.place)), 3)
        self.assertEqual([each.seq for each in self.read()], list(range(1, 21)))
        self.assertEqual([each.seq for each in self.read(13)], list(range(14, 21)))
        self.assertEqual(self.read(20), [])
        self.assertEqual(lastSeq(self.place), 20)

    def test_readWhileWritten(self) -> None:
        """A reader that has all gets what comes later, in the next segments too."""
        journal = self.write(1, segment=100)
        reader = JournalReader(self.place, 0)
        found = []
        for count in (1, 3, 0, 5):
            found += [msgspec.json.decode(x, type=Report).seq for x in self.taken(reader)]
            self.write(count, journal)
        found += [msgspec.json.decode(x, type=Report).seq for x in self.taken(reader)]
        self.assertEqual(found, list(range(1, 11)))

    @staticmethod
    def taken(reader: JournalReader) -> list[bytes]:
        found = b""
        while piece := reader.read():
            found += piece
        return found.splitlines()

    def test_tornAtEveryByte(self) -> None:
        """What was cut off while it was written does not count, wherever that was."""
        self.write(3).close()
        [(_, path)] = segments(self.place)
        whole = path.read_bytes()
        ends = [n + 1 for n, byte in enumerate(whole) if byte == 10]
        for cut in range(len(whole) + 1):
            path.write_bytes(whole[:cut])
            complete = sum(end <= cut for end in ends)
            self.assertEqual(len(self.read()), complete, cut)
            journal = self.write(1)
            journal.close()
            self.assertEqual([each.seq for each in self.read()], list(range(1, complete + 2)))

    def test_end(self) -> None:
        """Nothing follows the last report, whoever writes."""
        journal = self.write(1)
        journal.append(2.0, "exit", exitCode=3)
        self.assertRaises(ValueError, journal.append, 3.0, "log", message="late")
        journal.close()
        self.assertRaises(ValueError, Journal(self.place).append, 3.0, "log", message="late")
        reader = JournalReader(self.place, 0)
        self.taken(reader)
        self.assertTrue(reader.ended)
        found = lastReport(self.place, frozenset({"exit"}))
        assert found is not None
        self.assertEqual(found.exitCode, 3)

    def test_bounded(self) -> None:
        """What is acknowledged goes beyond what is kept; what is not stays."""
        journal = self.write(100, segment=500, keep=1000)
        before = len(segments(self.place))
        self.assertGreater(journal.ahead, 0)
        journal.acknowledge(90)
        after = segments(self.place)
        self.assertLess(len(after), before)
        first = after[0][0]
        self.assertLess(first, 91)
        self.assertRaises(JournalGone, JournalReader, self.place, first - 2)
        self.assertEqual([each.seq for each in self.read(90)], list(range(91, 101)))
        journal.acknowledge(1000)
        self.assertEqual(lastSeq(self.place), 100)
        self.assertGreater(len(segments(self.place)), 0)

    def test_ahead(self) -> None:
        """How far the writer is ahead of whoever fetches, to within a mark."""
        journal = Journal(self.place)
        text = "x" * 1000
        for _ in range(1000):
            journal.append(1.0, "log", message=text)
        self.assertGreater(journal.ahead, 1_000_000)
        journal.fetched(500)
        self.assertTrue(480_000 < journal.ahead < 640_000, journal.ahead)
        journal.fetched(1000)
        self.assertLess(journal.ahead, 70_000)

    @settings(deadline=None, max_examples=25)
    @given(st.lists(st.integers(1, 400), min_size=1, max_size=30), st.integers(0, 40))
    def test_anySizes(self, sizes: list[int], after: int) -> None:
        """Reports of any size come back as they were, from any number on."""
        shutil.rmtree(self.place, ignore_errors=True)
        journal = Journal(self.place, segment=300)
        for size in sizes:
            journal.append(1.0, "log", message="ü" * size)
        journal.close()
        after = min(after, len(sizes))
        self.assertEqual(
            [(each.seq, len(each.message or "")) for each in self.read(after)],
            list(enumerate(sizes, 1))[after:],
        )
