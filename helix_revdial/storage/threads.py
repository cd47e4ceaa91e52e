# -*- test-case-name: tests.storage.test_threads -*-
"""
Where queries run: threads that belong to the database alone.

The reactor's own pool serves name look-ups; queries that wait for a lock there
would stop every dial that needs a name.  So each L{Database
<helix_revdial.storage.database.Database>} is given its own workers.

Threads of one interpreter that all want to run take it from each other, and from the
reactor, at every call that lets go of it, and each step of a query is one.  So as few
work as have to: one takes what waits until nothing does, and another joins it when it
is stuck.  What is done while the reactor is busy is told in one turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred, execute
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

T = TypeVar("T")

PATIENCE: Final = 0.01
"""Seconds that calls wait for a thread that is stuck, before another takes them."""


class Workers(Protocol):
    """Runs blocking functions, and gives their results back to the reactor."""

    size: int
    """How many functions run at the same time, at most."""

    def call(self, function: Callable[[], T]) -> Deferred[T]:
        """Run C{function} and fire with what it returns or raises."""

    def callFirst(self, function: Callable[[], T]) -> Deferred[T]:
        """The same, before all that waits, and at once where a thread is to be had."""

    def stop(self) -> None:
        """End the workers.  Nothing may be running or called afterwards."""


class ReactorThreads:
    """
    Threads of our own, whose results fire in the reactor's thread.

    They start with the first call, and end with L{stop} or, if nobody calls
    that, after the reactor has stopped: they would otherwise keep the process
    alive.
    """

    def __init__(
        self, reactor: Any, size: int = 4, name: str = "database", *, eager: int | None = None
    ) -> None:
        """
        @param reactor: an C{IReactorFromThreads}, C{IReactorCore} and C{IReactorTime}.
        @param size: how many threads at most.
        @param name: what the threads are called in a debugger.
        @param eager: how many are at work while none of them is stuck; by default all,
            as is right where they wait for others.
        """
        self.size = size
        self._reactor = reactor
        self._pool = ThreadPool(0, size, name=name)
        self._eager = size if eager is None else min(eager, size)
        self._trigger: Any = None
        self._patience: Any = None
        # The lock is for what follows, and held for moments.
        self._lock = Lock()
        self._waiting: deque[tuple[Callable[[], Any], Deferred[Any]]] = deque()
        self._working = 0
        self._done: list[tuple[Deferred[Any], Any]] = []

    def call(self, function: Callable[[], T]) -> Deferred[T]:
        """Run C{function} in one of the threads."""
        result: Deferred[T] = Deferred()
        with self._lock:
            self._waiting.append((function, result))
            begins = self._working < self._eager
            self._working += begins
        if begins:
            self._begin(extra=False)
        else:
            self._bePatient()
        return result

    def callFirst(self, function: Callable[[], T]) -> Deferred[T]:
        """Run C{function} in one of the threads, before what waits."""
        result: Deferred[T] = Deferred()
        with self._lock:
            self._waiting.appendleft((function, result))
            begins = self._working < self.size
            self._working += begins
        if begins:
            self._begin(extra=True)
        return result

    def stop(self) -> None:
        """Join the threads: at once, since none of them is busy."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self._trigger is not None:
            self._reactor.removeSystemEventTrigger(self._trigger)
            self._trigger = None
            self._pool.stop()

    def _begin(self, *, extra: bool) -> None:
        """
        Have one thread more at work; it is counted already.

        @param extra: whether it leaves what else waits to those who are at work.
        """
        if self._trigger is None:
            self._pool.start()
            self._trigger = self._reactor.addSystemEventTrigger("after", "shutdown", self._end)
        self._pool.callInThread(self._work, extra)

    def _end(self) -> None:
        self._trigger = None
        self._pool.stop()

    def _bePatient(self) -> None:
        """Look in a moment whether the next that waits is still the same."""
        if self._patience is None and self._eager < self.size:
            with self._lock:
                following = self._waiting[0][1] if self._waiting else None
            if following is not None:
                self._patience = self._reactor.callLater(PATIENCE, self._help, following)

    def _help(self, following: Deferred[Any]) -> None:
        """Have another thread at work where nothing has moved."""
        self._patience = None
        with self._lock:
            stuck = bool(self._waiting) and self._waiting[0][1] is following
            begins = stuck and self._working < self.size
            self._working += begins
        if begins:
            self._begin(extra=True)
        self._bePatient()

    def _work(self, extra: bool) -> None:
        """In a thread: run what waits."""
        worked = False
        while True:
            with self._lock:
                if not self._waiting or (extra and worked and self._working > self._eager):
                    self._working -= 1
                    return
                function, result = self._waiting.popleft()
            worked = True
            outcome: Any
            try:
                outcome = function()
            except BaseException:
                outcome = Failure()
            with self._lock:
                first = not self._done
                self._done.append((result, outcome))
            if first:
                self._reactor.callFromThread(self._tell)

    def _tell(self) -> None:
        with self._lock:
            done, self._done = self._done, []
        for result, outcome in done:
            result.callback(outcome)


class SameThread:
    """
    Runs each function at once in the caller's thread: for synchronous tests,
    and for programs that have no reactor.
    """

    size = 1

    def call(self, function: Callable[[], T]) -> Deferred[T]:
        """Run C{function} now; the result has fired already."""
        return execute(function)

    def callFirst(self, function: Callable[[], T]) -> Deferred[T]:
        """Run C{function} now."""
        return self.call(function)

    def stop(self) -> None:
        """There is nothing to end."""
