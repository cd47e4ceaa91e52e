# -*- test-case-name: tests.executor.test_reporting -*-
"""
What a session has to say, on its way into the journal.

Everything that happens is one report, in the order in which it happened.  A report that
the journal does not take now, since the disk is full, waits with all that come after it.
Output is held back, at its source, while the journal is too far ahead of who fetches it,
or cannot be written.  What is held back is not dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from helix_revdial.sessions.executor import Level

from .journal import Journal

RETRY = 1.0
"""Seconds until the journal is written again, where it could not be."""

_LEVELS: dict[str, Level] = {"stdout": "info", "stderr": "warn", "system": "info"}


class Source(Protocol):
    """Where the output comes from."""

    @property
    def held(self) -> bool:
        """Whether its output is left where it is."""

    def hold(self, wanted: bool) -> None:
        """Leave the output where it is, or take it."""


class Reporting:
    """
    Of one session.

    @ivar source: Whose output is held back; C{None} while there is none.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        journal: Journal,
        wallClock: Callable[[], float],
        notify: Callable[[], None],
        *,
        outputAhead: int,
        logBytes: int,
    ) -> None:
        """
        @param clock: When what could not be written is written again.
        @param wallClock: Seconds since 1970, for the reports.
        @param notify: Called when there are new reports.
        @param outputAhead: Bytes of reports that nobody has fetched, from which on output
            is held back.
        @param logBytes: Bytes of output that are reported at all.
        """
        self.source: Source | None = None
        self._clock = clock
        self._journal = journal
        self._wallClock = wallClock
        self._notify = notify
        self._outputAhead = outputAhead
        self._logBytes = logBytes
        self._logged = 0
        self._pending: deque[tuple[float, str, dict[str, Any]]] = deque()
        self._retry: IDelayedCall | None = None

    @property
    def complete(self) -> bool:
        """Whether every report is in the journal."""
        return not self._pending

    def report(self, kind: str, **fields: Any) -> None:
        """Write a report, now or as soon as it can be written."""
        self._pending.append((self._wallClock(), kind, fields))
        self._write()

    def _write(self) -> None:
        if self._retry is not None:
            return
        while self._pending:
            at, kind, fields = self._pending[0]
            try:
                self._journal.append(at, kind, **fields)
            except OSError as error:
                self._log.error("the journal cannot be written: {error}", error=error)
                self._retry = self._clock.callLater(RETRY, self._writeAgain)
                break
            self._pending.popleft()
        self._notify()
        self.balance()

    def _writeAgain(self) -> None:
        self._retry = None
        self._write()

    def say(self, message: str, level: Level = "info") -> None:
        """A line of the log that is the host's own."""
        self.report("log", level=level, stream="system", message=message)

    def output(self, stream: str, messages: Sequence[str]) -> None:
        """The session has said something."""
        for message in messages:
            if self._logged > self._logBytes:
                return
            self._logged += len(message.encode())
            if self._logged > self._logBytes:
                self.say(
                    f"the output is longer than {self._logBytes} bytes: the rest is left out",
                    "warn",
                )
                return
            self.report("log", level=_LEVELS[stream], stream=stream, message=message)

    def acknowledge(self, seq: int) -> None:
        """Reports up to C{seq} have been fetched, for good."""
        self._journal.acknowledge(seq)
        self.balance()

    def fetched(self, seq: int) -> None:
        """Reports up to C{seq} were sent to whoever asked for them."""
        self._journal.fetched(seq)
        self.balance()

    def balance(self) -> None:
        """Take the output, or leave it where it is."""
        source = self.source
        if source is None:
            return
        most = self._outputAhead
        wanted = bool(self._pending) or self._journal.ahead > (
            most * 3 // 4 if source.held else most
        )
        if wanted != source.held:
            source.hold(wanted)
