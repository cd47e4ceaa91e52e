# -*- test-case-name: tests.http.test_limits -*-
"""
A timer that one thing waits for at a time.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Deadline:
    """One timer that is set, set anew and cleared."""

    __slots__ = ("_call", "_clock")

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._call: IDelayedCall | None = None

    def set(self, seconds: float, expired: Callable[[], None]) -> None:
        """Call C{expired} after so many seconds, unless cleared or set again."""
        self.clear()

        def fire() -> None:
            self._call = None
            expired()

        self._call = self._clock.callLater(seconds, fire)

    def clear(self) -> None:
        """Forget it."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    @property
    def running(self) -> bool:
        """Whether it is set."""
        return self._call is not None
