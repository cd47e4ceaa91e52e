"""Tests for L{helix_revdial.storage.engines}."""

from __future__ import annotations

import os
import sqlite3
import stat
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.storage.database import Database
from helix_revdial.storage.engines import newEngine, parseURL
from helix_revdial.storage.failures import DatabaseUnavailable, unavailable
from helix_revdial.storage.threads import SameThread
from tests.storage.postgresql import OnPostgreSQL, cluster


class URLTests(SynchronousTestCase):
    def test_otherDatabasesAreRefused(self) -> None:
        """The text names the two kinds, and does not repeat the URL."""
        for url in ("mysql://root:hunter22@db/x", "hunter22", "", "sqlite+aiosqlite:///hunter22"):
            with self.assertRaises(ValueError) as raised:
                parseURL(url)
            self.assertIn("postgresql+psycopg://", str(raised.exception))
            self.assertNotIn("hunter22", str(raised.exception))

    def test_plainPostgresqlMeansOurDriver(self) -> None:
        """C{postgresql://} is taken as C{postgresql+psycopg://}."""
        self.assertEqual(parseURL("postgresql://u@h/n").drivername, "postgresql+psycopg")

    def test_noPasswordInTheName(self) -> None:
        """F1: neither the database's name nor an error shows the password."""
        database = Database(
            "postgresql+psycopg://user:hunter22@127.0.0.1:1/x?connect_timeout=1", SameThread()
        )
        self.assertNotIn("hunter22", database.url)
        self.assertNotIn("hunter22", repr(database))
        failure = self.failureResultOf(database.run(lambda c: None), DatabaseUnavailable)
        self.assertNotIn("hunter22", failure.getTraceback())


class SQLiteTests(SynchronousTestCase):
    """What is SQLite's alone."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()
        self.database = Database(f"sqlite:///{self.path}", SameThread())
        self.addCleanup(self.database.engine.dispose)

    def pragma(self, name: str) -> object:
        return self.successResultOf(
            self.database.read(lambda c: c.exec_driver_sql(f"PRAGMA {name}").scalar())
        )

    def test_setUp(self) -> None:
        """Write-ahead log, durable commits, foreign keys, and waiting for locks."""
        self.assertEqual(self.pragma("journal_mode"), "wal")
        self.assertEqual(self.pragma("synchronous"), 2)
        self.assertEqual(self.pragma("foreign_keys"), 1)
        self.assertEqual(self.pragma("busy_timeout"), 5000)

    def test_onlyTheOwnerReadsTheFile(self) -> None:
        """The file and its journal have mode 0600 whatever the umask."""
        old = os.umask(0)
        self.addCleanup(os.umask, old)
        path = Path(self.mktemp()).absolute()
        database = Database(f"sqlite:///{path}", SameThread())
        self.addCleanup(database.engine.dispose)
        self.successResultOf(
            database.run(lambda c: c.exec_driver_sql("CREATE TABLE t (a)").close())
        )
        made = list(path.parent.glob(path.name + "*"))
        self.assertIn(path.with_name(path.name + "-wal"), made)
        for file in made:
            self.assertEqual(stat.S_IMODE(file.stat().st_mode), 0o600, file)

    def test_noDirectory(self) -> None:
        """A file that cannot be made is one clear error that names it."""
        with self.assertRaises(DatabaseUnavailable) as raised:
            Database("sqlite:////nonexistent/place/x.db", SameThread())
        self.assertIn("/nonexistent/place/x.db: No such file", str(raised.exception))

    def test_noDatabase(self) -> None:
        """A file that is no database is one clear error."""
        self.path.write_bytes(b"x" * 5000)
        failure = self.failureResultOf(self.database.read(lambda c: None), DatabaseUnavailable)
        self.assertIn("not a database", failure.getErrorMessage())

    def test_lockedForTooLong(self) -> None:
        """A lock that another process does not give back is L{DatabaseUnavailable}."""
        self.successResultOf(
            self.database.run(lambda c: c.exec_driver_sql("PRAGMA busy_timeout=20").close())
        )
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        failure = self.failureResultOf(self.database.run(lambda c: None), DatabaseUnavailable)
        self.assertIn("locked", failure.getErrorMessage())
        # Reading waits for no writer.
        self.successResultOf(self.database.read(lambda c: None))
        other.execute("ROLLBACK")
        self.successResultOf(self.database.run(lambda c: None))

    def test_whatTheDriverSays(self) -> None:
        """
        A PostgreSQL that is not there, or that refuses, is one line that says which of these;
        what stands behind the first line may be values of rows, and is not repeated.
        """
        for said, reason in (
            (
                'connection failed: connection to server at "::1", port 5432 failed: '
                "Connection refused\n\tIs the server running on that host?",
                'connection failed: connection to server at "::1", port 5432 failed: '
                "Connection refused",
            ),
            (
                "could not serialize access\nDETAIL:  Key (name)=(hush)",
                "could not serialize access",
            ),
            ("", "Exception"),
        ):
            error = OperationalError("SELECT 1", {}, Exception(said))
            self.assertEqual(unavailable(error), f"the database cannot be used: {reason}")

    def test_wrongStatementsAreNotALostDatabase(self) -> None:
        """A statement that is wrong stays an error of its own."""
        self.failureResultOf(
            self.database.run(lambda c: c.execute(text("SELECT nonsense"))), OperationalError
        )


class PostgreSQLTests(OnPostgreSQL, SynchronousTestCase):
    """What is PostgreSQL's alone."""

    def setUp(self) -> None:
        self.database = Database(cluster().url, SameThread())
        self.addCleanup(self.database.engine.dispose)

    def setting(self, name: str) -> object:
        return self.successResultOf(
            self.database.read(lambda c: c.exec_driver_sql(f"SHOW {name}").scalar())
        )

    def test_limits(self) -> None:
        """Statements, locks and idle transactions have limits."""
        self.assertEqual(self.setting("statement_timeout"), "15s")
        self.assertEqual(self.setting("lock_timeout"), "5s")
        self.assertEqual(self.setting("idle_in_transaction_session_timeout"), "15s")

    def test_aLostConnectionIsReplaced(self) -> None:
        """
        A connection that the server ended in a transaction is
        L{DatabaseUnavailable}; one that it ended while idle is not noticed.
        """
        end = "SELECT pg_terminate_backend(%d)"

        def ownId(connection: Connection) -> int:
            return int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())

        self.failureResultOf(
            self.database.run(lambda c: c.exec_driver_sql(end % ownId(c)).scalar()),
            DatabaseUnavailable,
        )
        idle = self.successResultOf(self.database.read(ownId))
        engine = newEngine(parseURL(cluster().url), 1)
        self.addCleanup(engine.dispose)
        with engine.begin() as connection:
            connection.exec_driver_sql(end % idle).close()
        self.assertNotEqual(self.successResultOf(self.database.read(ownId)), idle)
