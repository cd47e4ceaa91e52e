# -*- test-case-name: tests.storage.test_engines -*-
"""
The engine of each kind of database, and one transaction on it.

This module owns which URLs there are, how SQLite and PostgreSQL are set up, and how a
transaction begins on either.  Everything in it blocks, and belongs in a thread.

What holds:

  - SQLite takes its one write lock when a writing transaction begins, never in
    the middle of one, where waiting for it would be refused outright;
  - each wait has a limit: for a lock, for a connection, and for an answer;
  - nobody but its owner reads a file that SQLite makes;
  - no value of a statement, and no password, appears in an error.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import QueuePool, StaticPool

from helix_revdial.storage.failures import DatabaseUnavailable, refusesToWrite, unavailable

LOCK_WAIT: Final = 5.0
"""Seconds that a transaction waits for a lock, or a call for a connection."""

STATEMENT_LIMIT: Final = 15.0
"""Seconds after which PostgreSQL ends a statement."""

_WRITING = "helix_writing"

_JSON: Final = msgspec.json.Encoder()


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
        return _create(
            url,
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


def _create(url: URL, **options: Any) -> Engine:
    """What every engine has: no error shows what was stored, and JSON is read and written fast."""
    return create_engine(
        url,
        hide_parameters=True,
        json_serializer=_toJSON,
        json_deserializer=_fromJSON,
        **options,
    )


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
        if reason is None or (not writing and refusesToWrite(error)):
            raise
        raise DatabaseUnavailable(reason) from error


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
        engine = _create(
            url,
            poolclass=StaticPool,
            connect_args={"check_same_thread": False},
        )
    else:
        _createPrivately(url.database or "")
        engine = _create(
            url,
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
