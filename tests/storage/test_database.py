"""Tests for L{helix_revdial.storage.database}."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Connection, insert, literal, select, text
from sqlalchemy.exc import IntegrityError, InternalError, OperationalError, ProgrammingError
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.storage.database import HEAD, Database, WrongRevision, currentRevision
from helix_revdial.storage.engines import newEngine, parseURL
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.storage.tables import counters
from helix_revdial.storage.threads import SameThread
from tests.storage.databases import BreakableThread, newDatabase
from tests.storage.postgresql import OnPostgreSQL, cluster


def put(name: str, value: int = 0) -> Callable[[Connection], None]:
    """A transaction that adds a row."""
    return lambda connection: connection.execute(
        insert(counters).values(name=name, value=value)
    ).close()


def names(connection: Connection) -> list[str]:
    """A transaction that reads the rows' names."""
    return sorted(connection.execute(select(counters.c.name)).scalars())


class TransactionTests(SynchronousTestCase):
    """Both kinds of database keep these."""

    def setUp(self) -> None:
        self.database = newDatabase(self)

    def test_committedWhenTheFunctionReturns(self) -> None:
        """What a function wrote is there for the next."""
        self.successResultOf(self.database.run(put("a")))
        self.assertEqual(self.successResultOf(self.database.read(names)), ["a"])

    def test_rolledBackWhenTheFunctionRaises(self) -> None:
        """A function that raises has had no effect, and its error is told."""

        def spoil(connection: Connection) -> None:
            put("a")(connection)
            raise KeyError("spoilt")

        self.failureResultOf(self.database.run(spoil), KeyError)
        self.assertEqual(self.successResultOf(self.database.read(names)), [])

    def test_readingCannotWrite(self) -> None:
        """A reading transaction that writes fails, and the next may write."""
        self.failureResultOf(
            self.database.read(put("a")), OperationalError, ProgrammingError, InternalError
        )
        self.successResultOf(self.database.run(put("b")))
        self.assertEqual(self.successResultOf(self.database.read(names)), ["b"])

    def test_violatedConstraintsAreTold(self) -> None:
        """A violated constraint is the caller's, not a lost database."""
        self.successResultOf(self.database.run(put("a")))
        self.failureResultOf(self.database.run(put("a")), IntegrityError)

    def test_cursorsCannotLeave(self) -> None:
        """A function that returns its cursor is told so, and rolled back."""
        failure = self.failureResultOf(
            self.database.run(lambda c: c.execute(insert(counters).values(name="x", value=1))),
            TypeError,
        )
        self.assertIn("cursors", failure.getErrorMessage())
        self.assertEqual(self.successResultOf(self.database.read(names)), [])

    def test_json(self) -> None:
        """JSON comes back as it was stored, with numbers of any size, and broken text."""
        value: dict[str, Any] = {"n": [1, -1.5, 2**70, None, True], "é\N{GRINNING FACE}": {}}
        if self.database.engine.dialect.name == "sqlite":
            # PostgreSQL takes no text that is none.
            value["half"] = "\ud800"
        read = self.database.read(lambda c: c.execute(select(literal(value, JSON))).scalar())
        self.assertEqual(self.successResultOf(read), value)

    def test_noValueInAnError(self) -> None:
        """F1: an error's text shows no value of the statement."""
        secret = "hlx_" + "s" * 43
        self.successResultOf(self.database.run(put(secret)))
        failure = self.failureResultOf(self.database.run(put(secret)), IntegrityError)
        statement = str(failure.value).replace(str(failure.value.orig), "")
        self.assertNotIn(secret, statement)


class LimitTests(SynchronousTestCase):
    def test_tooManyWaiting(self) -> None:
        """
        Calls beyond the limit fail at once; when one has ended there is room
        again.
        """
        workers = BreakableThread()
        workers.holding = True
        database = Database("sqlite://", workers, maxWaiting=3)
        self.addCleanup(database.engine.dispose)
        held = [database.read(lambda c: None) for _ in range(3)]
        failure = self.failureResultOf(database.read(lambda c: None), DatabaseUnavailable)
        self.assertIn("too many", failure.getErrorMessage())
        workers.answer()
        self.successResultOf(held[0])
        again = database.read(lambda c: 5)
        for _ in range(3):
            workers.answer()
        self.assertEqual(self.successResultOf(again), 5)

    def test_givingUpIsNotEnding(self) -> None:
        """A call that was cancelled counts until its work has ended."""
        workers = BreakableThread()
        workers.holding = True
        database = Database("sqlite://", workers, maxWaiting=1)
        self.addCleanup(database.engine.dispose)
        call = database.read(lambda c: None)
        call.cancel()
        self.failureResultOf(call, CancelledError)
        self.failureResultOf(database.read(lambda c: None), DatabaseUnavailable)
        closing = Deferred.fromCoroutine(database.close())
        self.assertNoResult(closing)
        workers.holding = False
        workers.answer()
        self.successResultOf(closing)

    def test_closedIsUnavailable(self) -> None:
        """After L{Database.close} every call is refused; closing twice is fine."""
        database = newDatabase(self)
        self.successResultOf(Deferred.fromCoroutine(database.close()))
        self.successResultOf(Deferred.fromCoroutine(database.close()))
        self.failureResultOf(database.run(put("a")), DatabaseUnavailable)


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
        failure = self.failureResultOf(self.database.read(names), DatabaseUnavailable)
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

    def test_wrongStatementsAreNotALostDatabase(self) -> None:
        """A statement that is wrong stays an error of its own."""
        self.failureResultOf(
            self.database.run(lambda c: c.execute(text("SELECT nonsense"))), OperationalError
        )


class TransactionPostgreSQLTests(OnPostgreSQL, TransactionTests):
    """The same on PostgreSQL."""


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


class RevisionTests(SynchronousTestCase):
    def test_noSchema(self) -> None:
        """An empty database is refused, and the text says what to do."""
        database = Database(f"sqlite:///{self.mktemp()}.db", SameThread())
        self.addCleanup(database.engine.dispose)
        failure = self.failureResultOf(
            Deferred.fromCoroutine(database.checkRevision()), WrongRevision
        )
        self.assertIn("helix db upgrade", failure.getErrorMessage())

    def test_currentRevision(self) -> None:
        """C{currentRevision} tells it without a reactor, and C{upgrade} sets it."""
        url = f"sqlite:///{self.mktemp()}.db"
        self.assertIs(currentRevision(url), None)
        database = Database(url, SameThread())
        self.addCleanup(database.engine.dispose)
        self.successResultOf(Deferred.fromCoroutine(database.upgrade()))
        self.successResultOf(Deferred.fromCoroutine(database.checkRevision()))
        self.assertEqual(currentRevision(url), HEAD)
