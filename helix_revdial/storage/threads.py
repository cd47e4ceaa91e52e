# -*- test-case-name: tests.storage.test_threads -*-
"""
Where queries run: threads that belong to the database alone.

The reactor's own pool serves name look-ups; queries that wait for a lock there
would stop every dial that needs a name.  So each L{Database
<helix_revdial.storage.database.Database>} is given its own workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred, execute
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

T = TypeVar("T")


class Workers(Protocol):
    """Runs blocking functions, and gives their results back to the reactor."""

    size: int
    """How many functions run at the same time, at most."""

    def call(self, function: Callable[[], T]) -> Deferred[T]:
        """Run C{function} and fire with what it returns or raises."""

    def stop(self) -> None:
        """End the workers.  Nothing may be running or called afterwards."""


class ReactorThreads:
    """
    Threads of our own, whose results fire in the reactor's thread.

    They start with the first call, and end with L{stop} or, if nobody calls
    that, after the reactor has stopped: they would otherwise keep the process
    alive.
    """

    def __init__(self, reactor: Any, size: int = 4, name: str = "database") -> None:
        """
        @param reactor: an C{IReactorFromThreads} and C{IReactorCore}.
        @param size: how many threads at most.
        @param name: what the threads are called in a debugger.
        """
        self.size = size
        self._reactor = reactor
        self._pool = ThreadPool(0, size, name=name)
        self._trigger: Any = None

    def call(self, function: Callable[[], T]) -> Deferred[T]:
        """Run C{function} in one of the threads."""
        if self._trigger is None:
            self._pool.start()
            self._trigger = self._reactor.addSystemEventTrigger("after", "shutdown", self._end)
        result: Deferred[T] = deferToThreadPool(self._reactor, self._pool, function)
        return result

    def stop(self) -> None:
        """Join the threads: at once, since none of them is busy."""
        if self._trigger is not None:
            self._reactor.removeSystemEventTrigger(self._trigger)
            self._trigger = None
            self._pool.stop()

    def _end(self) -> None:
        self._trigger = None
        self._pool.stop()


class SameThread:
    """
    Runs each function at once in the caller's thread: for synchronous tests,
    and for programs that have no reactor.
    """

    size = 1

    def call(self, function: Callable[[], T]) -> Deferred[T]:
        """Run C{function} now; the result has fired already."""
        return execute(function)

    def stop(self) -> None:
        """There is nothing to end."""
