# -*- test-case-name: tests.revdial.test_turns -*-
"""
Turns: where many want the same place at once, so many of them go there at a time.

A limit on dials under way keeps callers in a loop, and agents that are stuck, from
filling the server.  A browser, a load test or a pool of database connections that
opens two hundred connections at once is neither: each dial takes milliseconds.  Such
callers wait here for those before them, instead of being refused.

Invariants:

  - Who came first goes first.
  - A wait ends: with a turn, with its time, or with whoever waits.
  - What is over is forgotten; nothing is kept of a place where nobody is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from .errors import DialTimeout, TooManyPendingDials

T = TypeVar("T")

MAX_WAITING = 1000
"""How many may wait for one place."""


class Turns:
    """
    @ivar most: How many may be under way to one place.
    """

    def __init__(self, clock: IReactorTime, most: int) -> None:
        self.most = most
        self._clock = clock
        self._under: dict[Hashable, int] = {}
        self._waiting: dict[Hashable, deque[Deferred[None]]] = {}
        self._freed: deque[Hashable] | None = None

    def __len__(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    def take(
        self,
        place: Hashable,
        start: Callable[[float], Deferred[T]],
        timeout: float,
        *,
        atOnce: bool = False,
    ) -> Deferred[T]:
        """
        Start something in its turn.

        @param start: Starts it, with the seconds that are left.
        @param timeout: Seconds for the wait and for what is started.
        @param atOnce: Whether it need not wait, however many there are.
        @return: What C{start} returns, or fires as that does; fails with L{DialTimeout}
            where no turn came in time, and with L{TooManyPendingDials} where
            L{MAX_WAITING} wait already.  Cancelling it ends the wait.
        """
        waiting = self._waiting.get(place)
        if not atOnce and (waiting or self._under.get(place, 0) >= self.most):
            if waiting is None:
                waiting = self._waiting[place] = deque()
            elif len(waiting) >= MAX_WAITING:
                return fail(TooManyPendingDials(retryAfter=1.0))
            return Deferred.fromCoroutine(self._inTurn(place, waiting, start, timeout))
        return self._start(place, start, timeout)

    def _start(
        self, place: Hashable, start: Callable[[float], Deferred[T]], timeout: float
    ) -> Deferred[T]:
        self._under[place] = self._under.get(place, 0) + 1
        try:
            result = start(timeout)
        except BaseException:
            self._over(None, place)
            raise
        return result.addBoth(self._over, place)

    async def _inTurn(
        self,
        place: Hashable,
        waiting: deque[Deferred[None]],
        start: Callable[[float], Deferred[T]],
        seconds: float,
    ) -> T:
        def left(turn: Deferred[None]) -> None:
            waiting.remove(turn)
            if not waiting and self._waiting.get(place) is waiting:
                del self._waiting[place]

        deadline = self._clock.seconds() + seconds
        turn: Deferred[None] = Deferred(left)
        waiting.append(turn)
        await turn.addTimeout(
            seconds, self._clock, onTimeoutCancel=lambda result, timeout: Failure(DialTimeout())
        )
        return await self._start(place, start, max(0.0, deadline - self._clock.seconds()))

    def _over(self, result: T, place: Hashable) -> T:
        left = self._under[place] - 1
        if left:
            self._under[place] = left
        else:
            del self._under[place]
        if self._freed is not None:
            # One that fails at once is over before the next is called: a loop, not a stack.
            self._freed.append(place)
        elif place in self._waiting:
            self._freed = deque([place])
            try:
                while self._freed:
                    self._call(self._freed.popleft())
            finally:
                self._freed = None
        return result

    def _call(self, place: Hashable) -> None:
        while waiting := self._waiting.get(place):
            if self._under.get(place, 0) >= self.most:
                return
            turn = waiting.popleft()
            if not waiting:
                del self._waiting[place]
            turn.callback(None)


__all__ = ["MAX_WAITING", "Turns"]
