# -*- test-case-name: tests.test_drain -*-
"""
How the server leaves: what may still finish, in which order, and for how long.

  1. No new dial and no new registration; agents are told to leave, before
     anything is waited for.
  2. Dials under way are picked up.  The doors are open for that long, a few
     seconds at most: a dial-back comes as a new connection.
  3. The doors close; idle connections close.
  4. Requests and streams finish, until the limit.

With nothing to wait for all of it is done in one go.  What is left at the end
is cut by whoever owns it.  L{Drain.hurry} ends the waiting at any step.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from helix_revdial.http.factory import HTTPFactory
from helix_revdial.revdial.connections import Connections

T = TypeVar("T")

SETTLE_LIMIT = 5.0
"""Seconds for which the doors stay open for dial-backs under way."""


class Drain:
    """
    One departure.

    @ivar hurried: Whether somebody did not want to wait.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        factory: HTTPFactory,
        connections: Connections,
        closeDoors: Callable[[], Awaitable[Any]],
    ) -> None:
        """
        @param factory: Whose requests finish.
        @param connections: Whose streams finish.
        @param closeDoors: Takes no more connections.
        """
        self.hurried = False
        self._clock = clock
        self._factory = factory
        self._connections = connections
        self._closeDoors = closeDoors
        self._waiting: Deferred[Any] | None = None

    async def run(self, limit: float, *, keeping: int = 0) -> None:
        """
        Leave, within C{limit} seconds.

        @param keeping: How many control connections are to outlive this process, where
            they can: their agents are not told to leave.

        It does not fail: what went wrong is logged, and left to be cut.
        """
        try:
            await self._drain(limit, keeping)
        except CancelledError:
            self._log.warn("Told twice to stop: what still runs is cut")
        except Exception:
            self._log.failure("The drain failed; what still runs is cut")

    def hurry(self) -> None:
        """Wait no longer."""
        self.hurried = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def _wait(self, waiting: Deferred[T]) -> T:
        """Wait unless, and until, somebody does not want to."""
        self._waiting = waiting
        if self.hurried:
            waiting.cancel()
        try:
            return await waiting
        finally:
            self._waiting = None

    async def _drain(self, limit: float, keeping: int) -> None:
        ends = self._clock.seconds() + limit
        connections = self._connections

        def left() -> float:
            return max(0.0, ends - self._clock.seconds())

        if connections.openStreams or connections.dialsUnderWay:
            self._log.info(
                "Stopping: {streams} streams and {dials} dials may finish within {limit:g} s",
                streams=connections.openStreams,
                dials=connections.dialsUnderWay,
                limit=limit,
            )
        connections.leave(limit, keeping=keeping)
        settled = connections.settled(min(SETTLE_LIMIT, limit))
        await self._wait(Deferred.fromCoroutine(settled))
        # Not to be given up half way; it takes a turn or two of the reactor.
        await self._closeDoors()
        # Its time is over a moment before that of the requests, which end streams.
        finishing = Deferred.fromCoroutine(self._finish(left()))
        try:
            await self._wait(self._factory.stop(left()))
            await self._wait(finishing)
        finally:
            finishing.addErrback(lambda _: None)
            finishing.cancel()

    async def _finish(self, limit: float) -> None:
        if not await self._connections.drained(limit):
            self._log.warn(
                "The time to finish is over: {streams} streams are cut",
                streams=self._connections.openStreams,
            )


__all__ = ["SETTLE_LIMIT", "Drain"]
