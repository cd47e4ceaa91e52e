# -*- test-case-name: tests.desktop.test_sharing -*-
"""
One thing at a time, shared by everybody who asks for the same.

A screenshot costs a process and a tenth of a second; ten people who look at
one desktop must not cost ten.  A request joins a run that has not started
yet, never one under way: what it gets was made after it asked, so that a
program that clicks and then looks sees what its click did.

Knows neither screens nor clipboards.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from helix_revdial.programs import TooBusy

MAX_PENDING = 8
"""Runs that wait for their turn; each is a different thing asked for."""

MAX_WAITERS = 64
"""Requests that wait, over all runs."""

T = TypeVar("T")


class _Run(Generic[T]):
    def __init__(self, start: Callable[[], Awaitable[T]]) -> None:
        self.start = start
        self.waiters: list[Deferred[T]] = []


class SharedRuns(Generic[T]):
    """
    A queue of runs, of which one is under way at a time.

    @param what: What is asked for, in the plural, for the error that says
        that the queue is full.
    @param maxPending: Runs that wait for their turn.
    @param maxWaiters: Requests that wait, over all runs.
    """

    def __init__(
        self, what: str, *, maxPending: int = MAX_PENDING, maxWaiters: int = MAX_WAITERS
    ) -> None:
        self._what = what
        self._maxPending = maxPending
        self._maxWaiters = maxWaiters
        self._pending: dict[Hashable, _Run[T]] = {}
        self._underWay: _Run[T] | None = None
        self._stopped = False

    def request(self, key: Hashable, start: Callable[[], Awaitable[T]]) -> Deferred[T]:
        """
        Ask for one thing.

        @param key: Requests with equal keys ask for the same.
        @param start: Makes it; called once for all who joined, when its turn
            comes.  Bounded in time by itself.
        @return: Fires with what C{start} made, or fails as it failed; fails
            with L{TooBusy} at once when a limit is reached.  Cancelling
            leaves the run to the others; a run that nobody waits for is not
            started.
        """
        run = self._pending.get(key)
        waiting = sum(len(each.waiters) for each in self._pending.values())
        if self._underWay is not None:
            waiting += len(self._underWay.waiters)
        refused = self._stopped or waiting >= self._maxWaiters
        if refused or (run is None and len(self._pending) >= self._maxPending):
            result: Deferred[T] = Deferred()
            result.errback(TooBusy(f"too many {self._what} at a time; ask again in a second"))
            return result
        if run is None:
            run = self._pending[key] = _Run(start)
        joined = run

        def leave(waiter: Deferred[T]) -> None:
            joined.waiters.remove(waiter)
            if not joined.waiters and self._pending.get(key) is joined:
                del self._pending[key]

        waiter: Deferred[T] = Deferred(leave)
        run.waiters.append(waiter)
        self._startNext()
        return waiter

    def stop(self) -> None:
        """Fail what has not started, and take nothing more."""
        self._stopped = True
        pending, self._pending = self._pending, {}
        for run in pending.values():
            self._tell(run, Failure(TooBusy("the desktop service is stopping")))

    def _startNext(self) -> None:
        if self._underWay is not None or not self._pending:
            return
        key = next(iter(self._pending))
        run = self._underWay = self._pending.pop(key)

        async def work() -> T:
            return await run.start()

        Deferred.fromCoroutine(work()).addBoth(self._finished, run)

    def _finished(self, outcome: T | Failure, run: _Run[T]) -> None:
        self._underWay = None
        self._tell(run, outcome)
        self._startNext()

    def _tell(self, run: _Run[T], outcome: T | Failure) -> None:
        waiters, run.waiters = run.waiters, []
        for waiter in waiters:
            waiter.callback(outcome)
