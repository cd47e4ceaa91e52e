"""
Databases for synchronous tests: SQLite in memory, or PostgreSQL when
C{HELIX_TEST_POSTGRESQL} holds the URL of a database that tests may fill.
"""

from __future__ import annotations

import os
import secrets
from urllib.parse import quote

from sqlalchemy import text
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.storage.database import Database, newEngine, parseURL
from helix_revdial.storage.tables import metadata
from helix_revdial.storage.threads import SameThread

POSTGRESQL = os.environ.get("HELIX_TEST_POSTGRESQL")


class BreakableThread(SameThread):
    """
    Workers in the same thread whose database can be lost, and which count.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.lost = None

    def call(self, function):
        self.calls += 1
        if self.lost is not None:
            lost = self.lost

            def function():
                raise lost

        return super().call(function)


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
