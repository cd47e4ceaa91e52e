"""
Databases for synchronous tests: SQLite in memory, or PostgreSQL when
C{HELIX_TEST_POSTGRESQL} holds the URL of a database that tests may fill.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import text
from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.storage.database import Database, newEngine, parseURL
from helix_revdial.storage.tables import metadata
from helix_revdial.storage.threads import SameThread

T = TypeVar("T")

POSTGRESQL = os.environ.get("HELIX_TEST_POSTGRESQL")


class BreakableThread(SameThread):
    """
    Workers in the same thread that count, whose database can be lost, and
    whose answers can be held back.

    @ivar lost: what every call fails with, or C{None}.
    @ivar holding: whether what is done from now on is told only by L{answer}.
    @ivar held: the answers that are held back.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.lost: Exception | None = None
        self.holding = False
        self.held: list[tuple[Deferred[Any], Deferred[Any]]] = []

    def call(self, function: Callable[[], T]) -> Deferred[T]:
        """Do it now, or fail; tell it now, or later."""
        self.calls += 1
        result = super().call(function) if self.lost is None else fail(self.lost)
        if not self.holding:
            return result
        later: Deferred[T] = Deferred()
        self.held.append((result, later))
        return later

    def answer(self) -> None:
        """Tell what was done first."""
        result, later = self.held.pop(0)
        result.chainDeferred(later)


def newURL(case: SynchronousTestCase) -> str:
    """
    The URL of an empty database that is gone when the test is over: a file,
    or a schema of its own in PostgreSQL.
    """
    if POSTGRESQL is None:
        return f"sqlite:///{case.mktemp()}.db"
    schema = f"t_{secrets.token_hex(8)}"
    engine = newEngine(parseURL(POSTGRESQL), 1)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))

    def drop() -> None:
        with engine.begin() as connection:
            connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
        engine.dispose()

    case.addCleanup(drop)
    joint = "&" if "?" in POSTGRESQL else "?"
    return f"{POSTGRESQL}{joint}options={quote(f'-c search_path={schema} -c lock_timeout=3000')}"


def newDatabase(case: SynchronousTestCase, workers: SameThread | None = None) -> Database:
    """
    A database with every table, whose calls have fired when they return.
    """
    url = "sqlite://" if POSTGRESQL is None else newURL(case)
    database = Database(url, workers or SameThread())
    case.addCleanup(database.engine.dispose)
    with database.engine.begin() as connection:
        metadata.create_all(connection)
    return database
