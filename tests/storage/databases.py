"""
Databases for synchronous tests: SQLite, or PostgreSQL for a test case that has
L{OnPostgreSQL <tests.storage.postgresql.OnPostgreSQL>} among its bases.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.storage.database import Database
from helix_revdial.storage.tables import metadata
from helix_revdial.storage.threads import SameThread
from tests.storage.postgresql import cluster

T = TypeVar("T")


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


def isPostgreSQL(case: SynchronousTestCase) -> bool:
    """Whether a test case's databases are PostgreSQL's."""
    return getattr(case, "databaseKind", "sqlite") == "postgresql"


def newURL(case: SynchronousTestCase) -> str:
    """
    The URL of an empty database that is gone when the test is over: a file,
    or a schema of its own in PostgreSQL.
    """
    if not isPostgreSQL(case):
        return f"sqlite:///{Path(case.mktemp()).absolute()}.db"
    url, drop = cluster().schemaURL()
    case.addCleanup(drop)
    return url


def newDatabase(case: SynchronousTestCase, workers: SameThread | None = None) -> Database:
    """
    A database with every table, whose calls have fired when they return.  In
    PostgreSQL it is the same one for every test, emptied first.
    """
    if isPostgreSQL(case):
        database = Database(cluster().emptied(), workers or SameThread())
        case.addCleanup(database.engine.dispose)
        return database
    database = Database("sqlite://", workers or SameThread())
    case.addCleanup(database.engine.dispose)
    with database.engine.begin() as connection:
        metadata.create_all(connection)
    return database
