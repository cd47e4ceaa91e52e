# -*- test-case-name: tests.telemetry.test_eventloop -*-
"""
How late the event loop is.

One reactor turn that takes long makes everything else wait.  L{LoopLag} asks to be
called each half second and counts how much later than that it is called.
"""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from .measures import Histogram

INTERVAL = 0.5
"""Seconds between two looks."""

LAGS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
"""Bounds in seconds."""


class LoopLag:
    """
    Measures the lag of a reactor; it has one timer while it runs.

    @ivar lags: Every lag that was measured, in seconds.
    @ivar latest: The last one.
    """

    def __init__(self, clock: IReactorTime, interval: float = INTERVAL) -> None:
        self.lags = Histogram(LAGS)
        self.latest = 0.0
        self._clock = clock
        self._interval = interval
        self._call: IDelayedCall | None = None
        self._due = 0.0
        self._worst = 0.0

    def start(self) -> None:
        """Begin to look."""
        if self._call is None:
            self._again()

    def stop(self) -> None:
        """Look no more."""
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()

    def takeWorst(self) -> float:
        """
        The longest lag since this was last asked, in seconds; a call that is
        overdue just now counts.
        """
        worst, self._worst = self._worst, 0.0
        if self._call is not None:
            worst = max(worst, self._clock.seconds() - self._due)
        return worst

    def _look(self) -> None:
        lag = max(0.0, self._clock.seconds() - self._due)
        self.latest = lag
        self._worst = max(self._worst, lag)
        self.lags.observe(lag)
        self._again()

    def _again(self) -> None:
        self._due = self._clock.seconds() + self._interval
        self._call = self._clock.callLater(self._interval, self._look)


__all__ = ["INTERVAL", "LoopLag"]
