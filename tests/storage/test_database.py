"""Tests for L{helix_revdial.storage.database}."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import JSON, Connection, insert, literal, select
from sqlalchemy.exc import IntegrityError, InternalError, OperationalError, ProgrammingError
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.storage.database import HEAD, Database, WrongRevision, currentRevision
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.storage.tables import counters
from helix_revdial.storage.threads import SameThread
from tests.storage.databases import BreakableThread, newDatabase
from tests.storage.postgresql import OnPostgreSQL


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


class TransactionPostgreSQLTests(OnPostgreSQL, TransactionTests):
    """The same on PostgreSQL."""


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
