# -*- test-case-name: tests.executor.test_journal -*-
"""
The journal of a session: its reports on disk, in order, before anybody is told.

A directory of segments, C{N.ndjson}, N being the number of the first report in it; one
report is a line of JSON.  One process writes (the supervisor, or the executor once
the supervisor is gone), any may read at the same time.

  - Numbers are dense from 1: a report has its number from the L{Journal} when it is
    appended, and no other.
  - What is appended is handed to the kernel at once: it outlives the processes.
    It is brought to the disk (fsync) at once where it says what became of the session,
    and with the next such, or L{Journal.sync}, where it is a line of output: what a
    host loses that loses power is the end of the log.
  - A line without its end was being written when the host stopped: it does not count,
    and whoever writes next takes it away.
  - Bounded: what the reader has acknowledged (has for good) goes, a segment at a time,
    once there is more than C{keep} bytes of it.  What it has not is never dropped:
    L{Journal.ahead} tells the writer when to hold the session's output back, since
    nobody has fetched what there is.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from helix_revdial.durable import syncDirectory
from helix_revdial.sessions.executor import Report

SEGMENT = 4 * 1024 * 1024
"""Bytes after which a new segment begins."""

KEEP = 16 * 1024 * 1024
"""Bytes of acknowledged reports that are kept."""

MARK = 64 * 1024
"""Bytes between two places that the writer remembers, to know how far ahead it is."""

PIECE = 256 * 1024
"""Bytes that a reader takes at a time."""

_decode = msgspec.json.Decoder(Report).decode

_WEIGHTY = frozenset({"state", "snapshot", "delivery", "workspace", "exit"})


class JournalGone(Exception):
    """
    Reports that were asked for are no longer kept.

    @ivar first: The first one that is.
    """

    def __init__(self, first: int) -> None:
        super().__init__(f"the reports before {first} are no longer kept")
        self.first = first


def segments(directory: Path) -> list[tuple[int, Path]]:
    """The segments in order, each with the number of its first report."""
    found = []
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    for name in names:
        stem, dot, kind = name.partition(".")
        if dot and kind == "ndjson" and stem.isdecimal():
            found.append((int(stem), directory / name))
    return sorted(found)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each whole line with the place of its end."""
    place = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            place += len(line)
            yield place, line


class Journal:
    """
    The writer's end.

    @ivar lastSeq: The number of the newest report, 0 before the first.
    @ivar ended: The report that ended the session, if one did.
    """

    def __init__(self, directory: Path, *, segment: int = SEGMENT, keep: int = KEEP) -> None:
        """
        Go on where the journal ends.

        @param directory: Made if it is not there.
        """
        self._directory = directory
        self._segment = segment
        self._keep = keep
        self.lastSeq = 0
        self.ended: Report | None = None
        self._sizes: dict[int, int] = {}
        directory.mkdir(mode=0o700, exist_ok=True)
        for first, path in segments(directory):
            self._sizes[first] = path.stat().st_size
        self._total = 0
        self._fetched = 0
        self._marks = deque([(0, 0)])
        self._acknowledged = min(self._sizes, default=1) - 1
        self._file = self._resume()

    def _resume(self) -> int:
        if not self._sizes:
            return self._begin(1)
        first = max(self._sizes)
        path = self._path(first)
        end = 0
        self.lastSeq = first - 1
        for place, line in _lines(path):
            try:
                report = _decode(line)
            except msgspec.DecodeError:
                break
            end = place
            self.lastSeq = report.seq
            if report.kind == "exit":
                self.ended = report
        self._sizes[first] = end
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.ftruncate(file, end)
        return file

    def _path(self, first: int) -> Path:
        return self._directory / f"{first}.ndjson"

    def _begin(self, first: int) -> int:
        file = os.open(self._path(first), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._sizes[first] = 0
        syncDirectory(self._directory)
        return file

    def append(self, at: float, kind: str, **fields: Any) -> Report:
        """
        Write the next report.

        @param at: Seconds since 1970.
        @raise ValueError: The session has ended; nothing follows its last report.
        @raise OSError: It cannot be written; what was written of it is taken back.
        """
        if self.ended is not None:
            raise ValueError("nothing follows the last report")
        report = Report(self.lastSeq + 1, at, kind, **fields)  # type: ignore[arg-type]
        line = msgspec.json.encode(report) + b"\n"
        first = max(self._sizes)
        if self._sizes[first] >= self._segment:
            os.fsync(self._file)
            os.close(self._file)
            first = report.seq
            self._file = self._begin(first)
        self._write(first, line)
        self.lastSeq = report.seq
        self._total += len(line)
        if self._total - self._marks[-1][1] >= MARK:
            self._marks.append((report.seq, self._total))
        if kind in _WEIGHTY:
            os.fsync(self._file)
        if kind == "exit":
            self.ended = report
        return report

    def _write(self, first: int, line: bytes) -> None:
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            os.ftruncate(self._file, self._sizes[first])
            raise
        self._sizes[first] += len(line)

    def sync(self) -> None:
        """Bring to the disk what was appended."""
        os.fsync(self._file)

    @property
    def ahead(self) -> int:
        """Bytes of reports that were not fetched, to within L{MARK} bytes; 0 where all were."""
        if self._fetched >= self.lastSeq:
            return 0
        while len(self._marks) > 1 and self._marks[1][0] <= self._fetched:
            self._marks.popleft()
        return self._total - self._marks[0][1]

    def fetched(self, seq: int) -> None:
        """The reports up to C{seq} were sent to somebody, who may ask for them again."""
        self._fetched = max(self._fetched, min(seq, self.lastSeq))

    def _last(self, first: int) -> int:
        """The number of the last report of a segment."""
        later = [other for other in self._sizes if other > first]
        return min(later) - 1 if later else self.lastSeq

    def acknowledge(self, seq: int) -> None:
        """The reader has all up to and with C{seq}, for good."""
        self.fetched(seq)
        self._acknowledged = max(self._acknowledged, min(seq, self.lastSeq))
        done = [first for first in sorted(self._sizes) if self._last(first) <= self._acknowledged]
        done = [first for first in done if first != max(self._sizes)]
        kept = sum(self._sizes[first] for first in done)
        for first in done:
            if kept <= self._keep:
                break
            kept -= self._sizes.pop(first)
            self._path(first).unlink(missing_ok=True)

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)


class JournalReader:
    """
    Reads the lines of a journal from a place on, in pieces of whole lines, as they
    are: nothing is decoded but what has to be skipped.

    @ivar seq: The number of the newest report that was given out.
    @ivar ended: Whether that was the session's last.
    """

    def __init__(self, directory: Path, after: int) -> None:
        """
        @param after: The number of the report that the reader has.
        @raise JournalGone: What follows it is not all kept.
        """
        self._directory = directory
        self.seq = after
        self.ended = False
        self._first = -1
        self._place = 0
        known = segments(directory)
        if known and known[0][0] > after + 1:
            raise JournalGone(known[0][0])

    def read(self) -> bytes:
        """
        What follows, at most about L{PIECE} bytes.

        @return: Whole lines; empty when there is no more now.
        @raise JournalGone: What follows was removed meanwhile.
        """
        while not self.ended:
            known = segments(self._directory)
            if not known:
                return b""
            # The segment of the report that comes next: numbers are dense.
            first, path = max(
                (each for each in known if each[0] <= self.seq + 1), default=(0, None)
            )
            if path is None:
                raise JournalGone(known[0][0])
            if first != self._first:
                self._first, self._place = first, 0
            try:
                with path.open("rb") as file:
                    file.seek(self._place)
                    data = file.read(PIECE)
                    if len(data) == PIECE and b"\n" not in data:
                        # A report is larger than a piece.
                        data += file.readline()
            except FileNotFoundError:
                continue
            whole = data[: data.rfind(b"\n") + 1]
            if not whole:
                return b""
            self._place += len(whole)
            taken = self._take(whole)
            if taken:
                return taken
        return b""

    def _take(self, whole: bytes) -> bytes:
        """What of some lines the reader does not have."""
        kept = []
        for line in whole.splitlines(keepends=True):
            report = _decode(line)
            if report.seq <= self.seq:
                continue
            self.seq = report.seq
            kept.append(line)
            if report.kind == "exit":
                self.ended = True
        return b"".join(kept)


def lastReport(directory: Path, kinds: frozenset[str]) -> Report | None:
    """The newest report of one of some kinds, looked for from the end."""
    for _, path in reversed(segments(directory)):
        found = None
        for _, line in _lines(path):
            try:
                report = _decode(line)
            except msgspec.DecodeError:
                break
            if report.kind in kinds:
                found = report
        if found is not None:
            return found
    return None


def lastSeq(directory: Path) -> int:
    """The number of the newest report, 0 before the first."""
    known = segments(directory)
    for first, path in reversed(known):
        newest = first - 1
        for _, line in _lines(path):
            try:
                newest = _decode(line).seq
            except msgspec.DecodeError:
                break
        return newest
    return 0
