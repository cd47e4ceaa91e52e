# -*- test-case-name: tests.storage.test_database -*-
"""
One database, by URL: transactions in threads of their own.

This module owns the SQLAlchemy engine, how each kind of database is set up,
and the translation of its failures into one exception, L{DatabaseUnavailable}.
It knows no table but alembic's own revision table.

What holds:

  - no query runs on the reactor's thread;
  - a function given to L{Database.run} or L{Database.read} is one transaction:
    it takes effect whole or not at all, also when the process is killed;
  - SQLite takes its one write lock when a writing transaction begins, never in
    the middle of one, where waiting for it would be refused outright;
  - each wait has a limit: for a lock, for a connection, for an answer, and for
    a thread (how many calls may wait);
  - no value of a statement, and no password, appears in an error.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import Connection, CursorResult, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool, StaticPool
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from helix_revdial.storage.threads import ReactorThreads, Workers

T = TypeVar("T")

GROUP: Final = 200
"""Writes that share a transaction at most."""

READ_GROUP: Final = 8
"""Reads of SQLite that share a transaction at most: one that is slow holds up so many."""

LOCK_WAIT: Final = 5.0
"""Seconds that a transaction waits for a lock, or a call for a connection."""

STATEMENT_LIMIT: Final = 15.0
"""Seconds after which PostgreSQL ends a statement."""

MAX_WAITING: Final = 2000
"""Calls that may be running or waiting for a thread at the same time."""

HEAD: Final = "0007"
"""The revision of the schema that this version of the code works with."""

_WRITING = "helix_writing"

_JSON: Final = msgspec.json.Encoder()

# Of all that SQLite reports as an "operational error", what means that the
# database cannot be used now, rather than that a statement is wrong.
_SQLITE_UNAVAILABLE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PROTOCOL,
    }
)


class DatabaseUnavailable(Exception):
    """
    The database cannot be used now: locked, lost, full, or overloaded.  What
    was asked had no effect, or (when the connection broke while it was being
    committed) an unknown one.  HTTP answers 503.
    """


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
        self._running += 1
        told: Deferred[T] = Deferred()
        result: Deferred[T] = Deferred()
        told.addBoth(self._ended).chainDeferred(result)
        self._writes.append((function, told))
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
        self._running += 1
        told: Deferred[T] = Deferred()
        result: Deferred[T] = Deferred()
        told.addBoth(self._ended).chainDeferred(result)
        self._reads.append((function, told))
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
        and not _refusesToWrite(error)
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


@contextmanager
def transaction(engine: Engine, *, writing: bool) -> Iterator[Connection]:
    """
    One transaction, whose failures are translated.

    @raise DatabaseUnavailable: when the database cannot be used.
    """
    try:
        with engine.connect() as connection:
            connection = connection.execution_options(**{_WRITING: writing})
            if not writing and engine.dialect.name == "postgresql":
                connection = connection.execution_options(postgresql_readonly=True)
            with connection.begin():
                yield connection
    except SQLAlchemyError as error:
        reason = unavailable(error)
        if reason is None or (not writing and _refusesToWrite(error)):
            raise
        raise DatabaseUnavailable(reason) from error


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


def parseURL(url: str) -> URL:
    """
    @raise ValueError: when C{url} is not one of a database that we work with.
        The text does not repeat it: it may hold a password.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is not None and parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed is None or parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise ValueError(
            "a database's URL is sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"
        )
    return parsed


def isMemory(url: URL) -> bool:
    """Whether this database lives in memory only."""
    return url.drivername == "sqlite" and url.database in (None, "", ":memory:")


def newEngine(url: URL, size: int) -> Engine:
    """
    An engine set up as this module promises.

    @param size: how many connections at most.
    """
    if url.drivername == "sqlite":
        return _sqliteEngine(url, size)
    try:
        return create_engine(
            url,
            hide_parameters=True,
            json_serializer=_toJSON,
            json_deserializer=_fromJSON,
            pool_size=size,
            max_overflow=0,
            pool_timeout=LOCK_WAIT,
            # A connection that died while nobody used it is replaced unseen.
            pool_pre_ping=True,
            connect_args=_postgresqlOptions(url),
        )
    except ModuleNotFoundError as error:
        raise ValueError(
            "PostgreSQL needs psycopg: pip install helix_revdial[postgresql]"
        ) from error


def _toJSON(value: Any) -> str:
    """As the standard library has it, only faster, where that can be."""
    try:
        return _JSON.encode(value).decode("utf-8")
    except (TypeError, ValueError):
        # Half of a surrogate pair, say.
        return json.dumps(value)


def _fromJSON(text: str | bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except ValueError:
        return json.loads(text)


def _postgresqlOptions(url: URL) -> dict[str, Any]:
    """Limits for libpq, where the URL does not say otherwise."""
    options: dict[str, Any] = {
        "connect_timeout": int(LOCK_WAIT),
        # A peer that vanishes without a word is noticed by the kernel.
        "tcp_user_timeout": int(STATEMENT_LIMIT * 1000),
        "application_name": "helix_revdial",
        "options": (
            f"-c statement_timeout={int(STATEMENT_LIMIT * 1000)} "
            f"-c lock_timeout={int(LOCK_WAIT * 1000)} "
            f"-c idle_in_transaction_session_timeout={int(STATEMENT_LIMIT * 1000)}"
        ),
    }
    return {name: value for name, value in options.items() if name not in url.query}


def _sqliteEngine(url: URL, size: int) -> Engine:
    if isMemory(url):
        engine = create_engine(
            url,
            hide_parameters=True,
            json_serializer=_toJSON,
            json_deserializer=_fromJSON,
            poolclass=StaticPool,
            connect_args={"check_same_thread": False},
        )
    else:
        _createPrivately(url.database or "")
        engine = create_engine(
            url,
            hide_parameters=True,
            json_serializer=_toJSON,
            json_deserializer=_fromJSON,
            poolclass=QueuePool,
            pool_size=size,
            max_overflow=0,
            pool_timeout=LOCK_WAIT,
            connect_args={"check_same_thread": False, "timeout": LOCK_WAIT},
        )
    event.listen(engine, "connect", _setUpSQLite)
    event.listen(engine, "begin", _beginSQLite)
    return engine


def _createPrivately(path: str) -> None:
    """
    Make the file before SQLite does, which would let everybody read it.  Its
    journal takes the file's mode.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise DatabaseUnavailable(
            f"cannot make the database file {path}: {error.strerror}"
        ) from error


def _setUpSQLite(connection: sqlite3.Connection, record: Any) -> None:
    # The driver's own idea of when to begin a transaction would begin none for
    # reading, and take the write lock too late: "begin" below does both.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        # Readers and a writer at the same time; what is committed stays so
        # when the power fails.
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute(f"PRAGMA busy_timeout={int(LOCK_WAIT * 1000)}")
        cursor.execute("PRAGMA foreign_keys=ON")
    finally:
        cursor.close()


def _beginSQLite(connection: Connection) -> None:
    writing = connection.get_execution_options().get(_WRITING, True)
    if connection.info.get(_WRITING) is not writing:
        # A connection keeps to what it was last used for.
        connection.exec_driver_sql(f"PRAGMA query_only={'OFF' if writing else 'ON'}")
        connection.info[_WRITING] = writing
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _refusesToWrite(error: SQLAlchemyError) -> bool:
    """Whether a reading transaction was used for writing: a fault of ours."""
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", 0)
    return bool(code & 0xFF == sqlite3.SQLITE_READONLY)


def unavailable(error: SQLAlchemyError) -> str | None:
    """
    Why the database cannot be used, or C{None} when the error is of another
    kind, such as a violated constraint or a wrong statement.
    """
    if isinstance(error, PoolTimeout):
        return "all connections to the database are in use"
    if not isinstance(error, DBAPIError) or isinstance(error, IntegrityError):
        return None
    original = error.orig
    if isinstance(original, sqlite3.Error):
        code = getattr(original, "sqlite_errorcode", None)
        # The low byte is the class of the error, the rest tells variants apart.
        if code is not None and code & 0xFF in _SQLITE_UNAVAILABLE:
            return f"the database cannot be used: {original}"
        return None
    if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError):
        return f"the database cannot be used: {type(original).__name__}"
    return None
