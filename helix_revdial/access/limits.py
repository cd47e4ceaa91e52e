# -*- test-case-name: tests.access.test_limits -*-
"""
Which limits were hit, and how often.

Whatever refuses somebody because of a limit tells L{LimitsHit} the limit's name.  The
counts are for the metrics; the log and the audit log get one entry a minute for each
limit at most, since whoever is refused may come back a thousand times a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

QUIET = 60.0
"""Seconds for which a limit that was reported is not reported again."""

MAX_NAMES = 64
"""Names that are counted; there are far fewer limits."""


class LimitsHit:
    """
    Counts.

    @ivar counts: Refusals by the name of the limit.
    """

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, record: Callable[[str, dict[str, Any]], None] | None = None
    ) -> None:
        """
        @param clock: Tells the time.
        @param record: Told C{"limit-hit"} and the fields C{limit} and C{count}.
        """
        self.counts: dict[str, int] = {}
        self._clock = clock
        self._record = record
        self._reported: dict[str, tuple[float, int]] = {}

    def __call__(self, limit: str) -> None:
        """Somebody was refused because of C{limit}."""
        if limit not in self.counts and len(self.counts) >= MAX_NAMES:
            return
        count = self.counts[limit] = self.counts.get(limit, 0) + 1
        now = self._clock.seconds()
        when, before = self._reported.get(limit, (float("-inf"), 0))
        if now - when < QUIET:
            return
        self._reported[limit] = (now, count)
        self._log.warn(
            "The limit {limit} was hit ({count} times since it was last said).",
            limit=limit,
            count=count - before,
        )
        if self._record is not None:
            try:
                self._record("limit-hit", {"limit": limit, "count": count - before})
            except Exception:
                self._log.failure("A limit that was hit could not be recorded.")


__all__ = ["MAX_NAMES", "QUIET", "LimitsHit"]
