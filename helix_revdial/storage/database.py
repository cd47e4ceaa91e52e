# -*- test-case-name: tests.storage.test_database -*-
"""
One database, by URL: transactions in threads of their own.

This module owns who waits for the database, and which transactions share a commit;
how a transaction begins and fails is L{helix_revdial.storage.engines}' part.  It knows
no table but alembic's own revision table.

What holds:

  - no query runs on the reactor's thread;
  - a function given to L{Database.run} or L{Database.read} is one transaction:
    it takes effect whole or not at all, also when the process is killed;
  - how many calls may wait for a thread is limited;
  - every way in which the database cannot be used is one exception,
    L{DatabaseUnavailable <helix_revdial.storage.failures.DatabaseUnavailable>}.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, CursorResult, text
from sqlalchemy.exc import SQLAlchemyError
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from helix_revdial.storage.engines import isMemory, newEngine, parseURL, transaction
from helix_revdial.storage.failures import DatabaseUnavailable, refusesToWrite, unavailable
from helix_revdial.storage.threads import ReactorThreads, Workers

T = TypeVar("T")

GROUP: Final = 200
"""Writes that share a transaction at most."""

READ_GROUP: Final = 8
"""Reads of SQLite that share a transaction at most: one that is slow holds up so many."""

MAX_WAITING: Final = 2000
"""Calls that may be running or waiting for a thread at the same time."""

HEAD: Final = "0007"
"""The revision of the schema that this version of the code works with."""


class WrongRevision(Exception):
    """The schema is of another version than the code."""

    def __init__(self, found: str | None) -> None:
        self.found = found
        has = "has no schema yet" if found is None else f"has schema revision {found}"
        super().__init__(f"the database {has}, this version needs {HEAD}: run helix db upgrade")


class Database:
    """
    Transactions on one database, run by workers.

    @ivar url: where it is, without the password.
    """

    def __init__(self, url: str, workers: Workers, *, maxWaiting: int = MAX_WAITING) -> None:
        """
        @param url: C{sqlite:///relative.db}, C{sqlite:////absolute.db},
            C{sqlite://} (in memory, one worker only) or
            C{postgresql+psycopg://user:password@host/name}.
        @param workers: where the queries run.
        @param maxWaiting: how many calls may be running or waiting; one more
            fails with L{DatabaseUnavailable}.
        @raise ValueError: for a URL of another kind.
        """
        parsed = parseURL(url)
        if isMemory(parsed) and workers.size != 1:
            raise ValueError("a database in memory has one worker: all of them would be one user")
        self.url = parsed.render_as_string(hide_password=True)
        self.engine: Final = newEngine(parsed, workers.size)
        self._workers = workers
        self._maxWaiting = maxWaiting
        self._running = 0
        # SQLite has one writer at a time: what waits for its turn shares a commit.
        self._groups = parsed.drivername == "sqlite" and not isMemory(parsed)
        self._writes: deque[tuple[Callable[[Connection], Any], Deferred[Any]]] = deque()
        self._writing = False
        self._reads: deque[tuple[Callable[[Connection], Any], Deferred[Any]]] = deque()
        self._closed: Deferred[None] | None = None
        self._closing = False

    def run(self, function: Callable[[Connection], T]) -> Deferred[T]:
        """
        Run C{function} in a transaction that may write.

        It is committed when C{function} returns, and rolled back when it
        raises.  C{function} runs in a thread: it may touch its connection and
        its own values, nothing else; and it returns values, no cursors.

        Cancelling gives up the answer, not the transaction.

        With SQLite, writes that wait for each other share a transaction: each is
        whole or not at all by itself, and told when it is committed.

        @raise DatabaseUnavailable: (as a failure) when the database is locked
            for too long, lost, or has too much to do.
        """
        if not self._groups:
            return self._call(lambda: self._transaction(function, writing=True))
        refused = self._refusal()
        if refused is not None:
            return fail(refused)
        result = self._queued(self._writes, function)
        if not self._writing:
            self._writing = True
            self._writeSome()
        return result

    def read(self, function: Callable[[Connection], T]) -> Deferred[T]:
        """
        Run C{function} in a transaction that only reads: it waits for no
        writer, and sees one state of the database throughout.

        With SQLite, a few reads that wait share a transaction, which begins after the
        last of them was asked for; each fails by itself.

        @raise DatabaseUnavailable: as L{run}.
        """
        if not self._groups:
            return self._call(lambda: self._transaction(function, writing=False))
        refused = self._refusal()
        if refused is not None:
            return fail(refused)
        result = self._queued(self._reads, function)
        # A call for each read: those whose read went with others find nothing to do.
        self._workers.call(self._readSome).addCallback(_tell)
        return result

    def revision(self) -> Deferred[str | None]:
        """The schema's revision, or C{None} for a database without one."""
        return self.read(readRevision)

    async def checkRevision(self) -> None:
        """
        Make sure that the schema is the one this code was written for.

        @raise WrongRevision: when it is not.
        @raise DatabaseUnavailable: when it cannot be told.
        """
        found = await self.revision()
        if found != HEAD:
            raise WrongRevision(found)

    async def upgrade(self) -> None:
        """
        Bring the schema to the newest revision, as L{upgrade
        <helix_revdial.storage.schema.upgrade>} does, in one of the threads.
        """
        # alembic is slow to import and needed only when there is something to do.
        from helix_revdial.storage.schema import upgradeWith

        await self.run(upgradeWith)

    async def close(self) -> None:
        """
        Refuse further calls, wait for those under way, and let go of
        everything.
        """
        if not self._closing:
            self._closing = True
            if self._running:
                self._closed = Deferred()
                await self._closed
            try:
                await self._workers.call(self.engine.dispose)
            finally:
                self._workers.stop()

    def _refusal(self) -> DatabaseUnavailable | None:
        """Why nothing more is taken on now."""
        if self._closing:
            return DatabaseUnavailable("the database has been closed")
        if self._running >= self._maxWaiting:
            return DatabaseUnavailable("too many queries are waiting for the database")
        return None

    def _queued(
        self,
        queue: deque[tuple[Callable[[Connection], Any], Deferred[Any]]],
        function: Callable[[Connection], T],
    ) -> Deferred[T]:
        """Have a function wait for others with which it may share a transaction."""
        self._running += 1
        told: Deferred[T] = Deferred()
        result: Deferred[T] = Deferred()
        told.addBoth(self._ended).chainDeferred(result)
        queue.append((function, told))
        return result

    def _writeSome(self) -> None:
        """Write what waits, as far as one transaction may go."""
        count = min(len(self._writes), GROUP)
        group = [self._writes.popleft() for _ in range(count)]

        def wrote(results: list[Any] | Failure) -> None:
            # The next ones are under way while these are told.
            self._writing = bool(self._writes)
            if self._writing:
                self._writeSome()
            for index, (_, told) in enumerate(group):
                if isinstance(results, Failure):
                    # Each its own: whoever is told adds to it.
                    told.errback(results if len(group) == 1 else Failure(results.value))
                elif isinstance(results[index], Failure):
                    told.errback(results[index])
                else:
                    told.callback(results[index])

        self._workers.callFirst(lambda: self._writeAll([each for each, _ in group])).addBoth(wrote)

    def _writeAll(self, group: list[Callable[[Connection], Any]]) -> list[Any]:
        """@return: what each returned, or the L{Failure} of one that was undone."""
        if len(group) == 1:
            return [self._transaction(group[0], writing=True)]
        done: list[Any] = []
        with transaction(self.engine, writing=True) as connection:
            for function in group:
                try:
                    with connection.begin_nested():
                        done.append(_values(function(connection)))
                except Exception as error:
                    if isinstance(error, SQLAlchemyError) and unavailable(error) is not None:
                        # It takes the others with it: nothing of them is there.
                        raise
                    done.append(Failure(error))
        return done

    def _readSome(self) -> list[tuple[Deferred[Any], Any]]:
        """
        In a thread: read what waits, as far as one transaction may go.

        @return: who is to be told what each returned, or of its L{Failure}.
        """
        group: list[tuple[Callable[[Connection], Any], Deferred[Any]]] = []
        try:
            while len(group) < READ_GROUP:
                group.append(self._reads.popleft())
        except IndexError:
            if not group:
                return []
        done: list[tuple[Deferred[Any], Any]] = []
        try:
            with transaction(self.engine, writing=False) as connection:
                for function, told in group:
                    try:
                        done.append((told, _values(function(connection))))
                    except Exception as error:
                        if _takesAll(error):
                            raise
                        done.append((told, Failure()))
        except Exception as error:
            # Each its own: whoever is told adds to it.
            return [(told, Failure(error)) for _, told in group]
        return done

    def _call(self, function: Callable[[], T]) -> Deferred[T]:
        refused = self._refusal()
        if refused is not None:
            return fail(refused)
        self._running += 1
        # Who gives up waiting does not end the work: it counts until it ends.
        result: Deferred[T] = Deferred()
        self._workers.call(function).addBoth(self._ended).chainDeferred(result)
        return result

    def _ended(self, result: Any) -> Any:
        self._running -= 1
        if self._running == 0 and self._closed is not None:
            closed, self._closed = self._closed, None
            closed.callback(None)
        return result

    def _transaction(self, function: Callable[[Connection], T], *, writing: bool) -> T:
        with transaction(self.engine, writing=writing) as connection:
            return _values(function(connection))


def _tell(done: list[tuple[Deferred[Any], Any]]) -> None:
    for told, outcome in done:
        told.callback(outcome)


def _takesAll(error: Exception) -> bool:
    """Whether what fails one read fails the transaction."""
    return (
        isinstance(error, SQLAlchemyError)
        and unavailable(error) is not None
        and not refusesToWrite(error)
    )


def _values(result: T) -> T:
    if isinstance(result, CursorResult):
        raise TypeError("a transaction returns values: its cursors end with it")
    return result


def openDatabase(url: str, reactor: Any, *, threads: int = 4) -> Database:
    """
    A database with threads of its own.

    @param url: as for L{Database}.
    @param reactor: where results fire.
    @param threads: how many queries run at once; one for a database in memory.
    """
    parsed = parseURL(url)
    size = 1 if isMemory(parsed) else threads
    # SQLite works in the thread that calls it; of a server on a network, many can wait.
    eager = 1 if parsed.drivername == "sqlite" else size
    return Database(url, ReactorThreads(reactor, size, eager=eager))


def readRevision(connection: Connection) -> str | None:
    """The schema's revision as alembic noted it, or C{None}."""
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def currentRevision(url: str) -> str | None:
    """
    The revision of the schema behind C{url}, or C{None} when it has none.
    Blocks; for command lines.

    @raise DatabaseUnavailable: when it cannot be told.
    """
    engine = newEngine(parseURL(url), 1)
    try:
        with transaction(engine, writing=False) as connection:
            return readRevision(connection)
    finally:
        engine.dispose()
