# -*- test-case-name: tests.access.test_handshakes -*-
"""
How fast control connections may be made.

A registration costs the server a few milliseconds.  Ten thousand agents that lost it
in the same second would keep it busy with nothing else, and time out while they wait.
L{Handshakes} lets them in at a steady rate:

  - An agent of ours that comes when it is too busy is told when its turn is likely to
    be.  Each is told a later moment than the one before, so that those who were told
    come back as fast as they can be let in, and no faster.
  - The old agents know no C{Retry-After} and come back every second or five, whatever
    they are told.  Theirs is a place in a queue: the answer comes when their turn does,
    and until then they hammer nobody.  Where their turn is too far away for them to wait
    for it, they are held for as long as they can wait, and only then refused.  The queue
    is bounded, in number and in time.

No sockets and no HTTP here; one timer for each agent in the queue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

MAX_WAITING = 10_000
"""Agents in the queue."""

MAX_WAIT = 15.0
"""
Seconds in the queue.  The agents of 2026 give an answer 30 s, and their users are
not to wait for longer than a reconnection takes.
"""

MAX_RETRY_AFTER = 300.0
"""The longest wait that anybody is told, in seconds."""


class TooManyHandshakes(Exception):
    """
    Not now.

    @ivar retryAfter: Seconds after which the turn of this agent is likely to come.
    """

    def __init__(self, retryAfter: float) -> None:
        super().__init__("too many agents are connecting at once")
        self.retryAfter = retryAfter


class Handshakes:
    """
    A token bucket, with an appointment book for those who find it empty.

    @ivar waiting: Agents in the queue.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        rate: float,
        burst: int,
        maxWaiting: int = MAX_WAITING,
        maxWait: float = MAX_WAIT,
        onLimit: Callable[[str], None] | None = None,
    ) -> None:
        """
        @param clock: Tells the time and calls later.
        @param rate: Registrations a second, over any longer time.
        @param burst: Registrations at once, after a quiet time.
        @param maxWaiting: Agents in the queue.
        @param maxWait: Seconds in the queue.
        @param onLimit: Told C{"handshakes"} when one is turned away, and
            C{"handshakes_queued"} when one has to wait.
        """
        self._clock = clock
        self._maxWaiting = maxWaiting
        self._maxWait = maxWait
        self._onLimit = onLimit
        self.waiting = 0
        # The moment up to which all is given away, if it were given at the rate.
        self._given = float("-inf")
        # The moment up to which those who were told to come back are to be there.
        self._promised = float("-inf")
        self._interval = 1.0 / rate
        self.setRate(rate, burst)

    def setRate(self, rate: float, burst: int) -> None:
        """From now on, another rate and burst; who waits already keeps his turn."""
        now = self._clock.seconds()
        if self._given > now:
            # What was given at the rate of before is so many places, not so much time.
            self._given = now + (self._given - now) / self._interval / rate
        self._promised = float("-inf")
        self._interval = 1.0 / rate
        self._credit = (burst - 1) * self._interval

    async def enter(self, *, patient: bool) -> None:
        """
        Take part, at once or in turn.

        @param patient: Whether the agent can only wait (an old one).
        @raise TooManyHandshakes: It is to come back later.
        """
        wait = self._turn()
        if wait is None:
            return
        if not patient or self.waiting >= self._maxWaiting:
            self._refuse(wait)
        self._tell("handshakes_queued")
        if wait > self._maxWait:
            await self._wait(self._maxWait)
            wait = self._turn()
            if wait is not None:
                self._refuse(wait)
            return
        self._given += self._interval
        try:
            await self._wait(wait)
        except BaseException:
            # It has gone: somebody else may have what was given to it.
            self._given -= self._interval
            raise

    def _turn(self) -> float | None:
        """
        Take a place, if there is one.

        @return: C{None}, or the seconds until there may be one.
        """
        now = self._clock.seconds()
        given = max(self._given, now)
        wait = given - self._credit - now
        # What is left of a sum of fractions is no time to wait for.
        if wait > self._interval / 1000:
            return wait
        self._given = given + self._interval
        return None

    async def _wait(self, seconds: float) -> None:
        self.waiting += 1
        try:
            await deferLater(self._clock, seconds)
        finally:
            self.waiting -= 1

    def _refuse(self, wait: float) -> NoReturn:
        self._tell("handshakes")
        raise TooManyHandshakes(self._appointment(self._clock.seconds(), wait))

    def _appointment(self, now: float, wait: float) -> float:
        earliest = now + wait
        if not earliest <= self._promised <= now + MAX_RETRY_AFTER:
            self._promised = earliest
        self._promised += self._interval
        return self._promised - now

    def _tell(self, word: str) -> None:
        if self._onLimit is not None:
            self._onLimit(word)


__all__ = ["MAX_RETRY_AFTER", "MAX_WAIT", "MAX_WAITING", "Handshakes", "TooManyHandshakes"]
