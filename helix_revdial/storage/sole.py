# -*- test-case-name: tests.storage.test_sole -*-
"""
One server for one database.

A server drives sessions, tells webhooks and holds the tunnels; a second one on the same
database, by mistake, would do the same work twice, and neither would know the other's
runners.  So a server takes a lock before it touches anything, and has it while it lives:

  - of SQLite, a lock on a file beside the database (C{flock}), which ends with the
    process however that ends;
  - of PostgreSQL, an advisory lock of a connection that does nothing else.  It ends with
    that connection: with the process at once, with a host that vanishes after
    L{VANISHED}.  When the database is lost the lock is lost, and taken again when the
    database is back (L{SoleUse.check}); if somebody else has it then, this server is
    not the one any more and has to end.

The lock is no fence: between the loss and the next look both might write.  It is there
to make a mistake known, not to choose between replicas.  A pooler that gives each
transaction another connection (PgBouncer's transaction mode) cannot carry it.

Everything here blocks.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from helix_revdial.storage.engines import isMemory, newEngine, parseURL
from helix_revdial.storage.failures import DatabaseUnavailable, unavailable

WAIT: Final = 3.0
"""Seconds in which a server of before, which is just ending, may let go."""

VANISHED: Final = 25
"""Seconds, about, after which PostgreSQL gives up a host that says nothing."""

_PAUSE: Final = 0.1

_TAKE = text(
    "SELECT pg_try_advisory_lock(hashtextextended('helix_revdial server ' || current_schema(), 0))"
)

_HOLDER = text(
    "SELECT coalesce(host(client_addr), 'this host'), "
    "to_char(backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') "
    "FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE granted AND locktype = 'advisory' "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND (classid::bigint << 32 | objid::bigint) = "
    "hashtextextended('helix_revdial server ' || current_schema(), 0)"
)


class InUse(Exception):
    """Another server works with the database; the text says which, and what to do."""


class SoleUse:
    """The lock of one server."""

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """
        @param url: as for L{Database <helix_revdial.storage.database.Database>}.
        @param clock: seconds.
        @param sleep: waits so many seconds.
        @raise ValueError: for a URL of another kind.
        """
        self._url = parseURL(url)
        self._clock = clock
        self._sleep = sleep
        self._file = -1
        self._engine: Engine | None = None
        self._connection: Connection | None = None

    @property
    def canBeLost(self) -> bool:
        """Whether it has to be looked at (L{check})."""
        return self._url.drivername != "sqlite"

    def take(self, wait: float = WAIT) -> None:
        """
        Take the lock.

        @param wait: seconds.
        @raise InUse: another server has it.
        @raise DatabaseUnavailable: it cannot be told.
        """
        until = self._clock() + wait
        while not self._try():
            if self._clock() >= until:
                holder = self._holder()
                self.release()
                raise InUse(
                    f"another server works with this database ({holder}): end it, or give this "
                    "one a database of its own"
                )
            self._sleep(_PAUSE)

    def check(self) -> bool:
        """
        Make sure of the lock, and take it again where the database was lost.

        @return: whether this is the one server, as far as can be told.
        """
        if not self.canBeLost:
            return True
        try:
            if self._connection is not None:
                self._connection.execute(text("SELECT 1"))
                return True
        except SQLAlchemyError:
            self._drop()
        try:
            return self._try()
        except DatabaseUnavailable:
            # Nobody can do anything now.
            return True

    def release(self) -> None:
        """Let go of it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._drop()

    def _try(self) -> bool:
        if self._url.drivername == "sqlite":
            return isMemory(self._url) or self._tryFile()
        try:
            return self._tryConnection()
        except SQLAlchemyError as error:
            self._drop()
            raise DatabaseUnavailable(unavailable(error) or str(error)) from error

    def _tryFile(self) -> bool:
        if self._file < 0:
            path = _lockPath(self._url)
            try:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise DatabaseUnavailable(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, b"%d\n" % os.getpid(), 0)
        return True

    def _tryConnection(self) -> bool:
        if self._connection is None:
            if self._engine is None:
                self._engine = newEngine(self._url, 1)
            connection = self._engine.connect()
            self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            # A socket of this host has nothing to keep alive, and says so to nobody.
            for name, value in (("idle", VANISHED - 10), ("interval", 5), ("count", 2)):
                self._connection.execute(text(f"SET tcp_keepalives_{name} = {value}"))
        return bool(self._connection.execute(_TAKE).scalar_one())

    def _holder(self) -> str:
        if self._connection is None:
            with open(_lockPath(self._url)) as file:
                return f"process {file.read(20).strip() or 'unknown'}"
        try:
            found: Any = self._connection.execute(_HOLDER).first()
        except SQLAlchemyError:
            found = None
        return "which one cannot be told" if found is None else f"on {found[0]}, since {found[1]}"

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        engine, self._engine = self._engine, None
        if connection is not None:
            try:
                connection.close()
            except SQLAlchemyError:
                pass
        if engine is not None:
            engine.dispose()


def _lockPath(url: URL) -> str:
    return f"{url.database}.lock"


__all__ = ["VANISHED", "WAIT", "InUse", "SoleUse"]
