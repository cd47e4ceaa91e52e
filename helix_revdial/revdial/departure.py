# -*- test-case-name: tests.revdial.test_departure -*-
"""
Leaving in good order: when agents are told to go, and waiting for what still runs.

L{departures} spreads the agents of one server, L{Quiet} is the wait.  What is
waited for, and what is ended after it, is L{Connections
<helix_revdial.revdial.connections.Connections>}'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

LEAVE_AFTER = 1.0
"""Seconds before the first agent leaves: a dial-back under way usually needs far less."""

LEAVE_RATE = 1000.0
"""Agents that are told to leave in one second, where the time suffices for all."""

CLOSE_LIMIT = 2.0
"""Seconds that control connections get to close when the server ends."""


def departures(count: int, limit: float) -> Iterator[float]:
    """
    When each of C{count} agents is to leave, evenly spread.

    @param limit: Seconds until the server ends; all leave within half of it.
    @return: Seconds from now, rounded to milliseconds.
    """
    first = min(LEAVE_AFTER, limit / 2)
    window = min(count / LEAVE_RATE, limit / 2 - first)
    for place in range(count):
        yield round(first + window * place / count, 3)


class Quiet:
    """
    Waits until something is over.

    Nothing is polled: whoever ends a part of it calls L{look}.
    """

    def __init__(self, clock: IReactorTime, over: Callable[[], bool]) -> None:
        """
        @param over: Whether nothing is left.
        """
        self._clock = clock
        self._over = over
        self._waiting: list[Deferred[bool]] = []

    async def within(self, limit: float | None) -> bool:
        """
        Wait, for C{limit} seconds at most.

        @return: Whether nothing is left.
        """
        if self._over():
            return True
        waiting: Deferred[bool] = Deferred()
        self._waiting.append(waiting)
        timer = None if limit is None else self._clock.callLater(limit, waiting.callback, False)
        try:
            return await waiting
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            if timer is not None and timer.active():
                timer.cancel()

    def look(self) -> None:
        """Something has ended."""
        if self._waiting and self._over():
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                if not each.called:
                    each.callback(True)


__all__ = ["CLOSE_LIMIT", "LEAVE_AFTER", "LEAVE_RATE", "Quiet", "departures"]
