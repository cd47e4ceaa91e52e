# -*- test-case-name: tests.gateways.test_proxy -*-
"""
Connections to services that wait for another request.

Each waits at its place: for the caller that it served, at the runner and target that
it leads to.  It leaves when it is taken, when its time is up, when the service ends it,
when the runner registers anew or is awaited no more, and when there are too many; the
newest is taken first, since it is the likeliest to live.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from helix_revdial.gateways.backend import Backend

PER_PLACE = 32
"""Connections that wait at one place."""

IN_ALL = 512
"""Connections that wait; the one that has waited longest makes room."""

Place = tuple[str, str, str | None]


@dataclass(eq=False)
class _Waiting:
    backend: Backend
    place: Place
    generation: int | None
    timer: IDelayedCall | None = None


class Idle:
    """
    @ivar timeout: Seconds that a connection waits.
    """

    def __init__(self, clock: IReactorTime, timeout: float) -> None:
        self.timeout = timeout
        self._clock = clock
        self._places: dict[Place, deque[_Waiting]] = {}
        self._all: dict[_Waiting, None] = {}
        self._stopped = False

    def __len__(self) -> int:
        """Connections that wait."""
        return len(self._all)

    def put(self, place: Place, backend: Backend) -> None:
        """Let a connection wait that is in order; or close it, where there is no room."""
        waiting = _Waiting(backend, place, backend.generation)
        here = self._places.get(place, ())
        if self._stopped or len(here) >= PER_PLACE:
            backend.close()
            return
        if len(self._all) >= IN_ALL:
            self._close(next(iter(self._all)))
        backend.rest(lambda: self._forget(waiting))
        self._places.setdefault(place, deque()).append(waiting)
        self._all[waiting] = None
        waiting.timer = self._clock.callLater(self.timeout, self._timedOut, waiting)

    def take(self, place: Place, generation: int) -> Backend | None:
        """
        The newest connection at a place.

        @param generation: The registration that it has to lead through; those of
            others are closed.
        """
        while here := self._places.get(place):
            waiting = here[-1]
            if waiting.generation != generation:
                self._close(waiting)
                continue
            self._forget(waiting)
            waiting.backend.wake()
            return waiting.backend
        return None

    def leave(self, runner: str, present: int | None) -> None:
        """
        Close what leads to a runner through another registration than the C{present} one.
        """
        for waiting in list(self._all):
            if waiting.place[1] == runner and waiting.generation != present:
                self._close(waiting)

    def stop(self) -> None:
        """Close all, and let none wait any more."""
        self._stopped = True
        for waiting in list(self._all):
            self._close(waiting)

    def _timedOut(self, waiting: _Waiting) -> None:
        waiting.timer = None
        self._close(waiting)

    def _close(self, waiting: _Waiting) -> None:
        self._forget(waiting)
        waiting.backend.wake()
        waiting.backend.close()

    def _forget(self, waiting: _Waiting) -> None:
        if waiting not in self._all:
            return
        del self._all[waiting]
        if waiting.timer is not None:
            waiting.timer.cancel()
            waiting.timer = None
        here = self._places[waiting.place]
        here.remove(waiting)
        if not here:
            del self._places[waiting.place]


__all__ = ["Idle"]
