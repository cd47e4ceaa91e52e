"""Tests for L{helix_revdial.storage.threads}, with real threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from helix_revdial.storage.database import READ_GROUP, Database, openDatabase
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.storage.tables import metadata
from helix_revdial.storage.threads import ReactorThreads, SameThread


class SameThreadTests(SynchronousTestCase):
    def test_resultsAreThereAtOnce(self) -> None:
        """The stand-in has run the function before it returns."""
        self.assertEqual(
            self.successResultOf(SameThread().call(threading.get_ident)), threading.get_ident()
        )

    def test_errorsAreFailures(self) -> None:
        """What the function raises is a failure."""
        self.failureResultOf(SameThread().call(lambda: 1 / 0), ZeroDivisionError)


class StoppedTime:
    """The reactor, but nothing ever takes long."""

    def __init__(self) -> None:
        self.callLater = Clock().callLater

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


class ReactorThreadsTests(TestCase):
    """The threads that a server uses."""

    timeout = 20

    async def test_queriesRunElsewhereAndResultsHere(self) -> None:
        """No query runs on the reactor's thread; every result fires there."""
        database = openDatabase(f"sqlite:///{self.mktemp()}.db", reactor, threads=2)
        seen = await gatherResults(
            [database.read(lambda connection: threading.get_ident()) for _ in range(20)]
        )
        self.assertNotIn(threading.get_ident(), seen)
        self.assertLessEqual(len(set(seen)), 2)
        await database.close()

    async def test_writersTakeTurns(self) -> None:
        """
        Transactions that read and then write, all at the same time, none of
        them loses another's change or is refused.
        """
        database = openDatabase(f"sqlite:///{self.mktemp()}.db", reactor, threads=4)
        await database.upgrade()

        def increment(connection) -> None:  # type: ignore[no-untyped-def]
            rows = connection.exec_driver_sql("SELECT value FROM counters").scalar()
            if rows is None:
                connection.exec_driver_sql("INSERT INTO counters VALUES ('n', 1)")
            else:
                connection.exec_driver_sql(f"UPDATE counters SET value = {rows + 1}")

        await gatherResults([database.run(increment) for _ in range(100)], consumeErrors=True)
        value = await database.read(
            lambda c: c.exec_driver_sql("SELECT value FROM counters").scalar()
        )
        self.assertEqual(value, 100)
        await database.close()

    async def test_readsShareATransaction(self) -> None:
        """
        Reads that wait share transactions, a few each; what one raises is its own, also
        where it tries to write.
        """
        database = openDatabase(f"sqlite:///{self.mktemp()}.db", reactor, threads=1)
        await database.run(metadata.create_all)
        begun: list[object] = []
        event.listen(database.engine, "begin", begun.append)
        release = threading.Event()
        self.addCleanup(release.set)

        def wrong(connection: Connection) -> int:
            raise KeyError("wrong")

        def write(connection: Connection) -> int:
            connection.exec_driver_sql("INSERT INTO counters VALUES ('n', 1)")
            return 0

        def count(connection: Connection) -> int:
            return len(connection.exec_driver_sql("SELECT * FROM counters").all())

        first = database.read(lambda connection: release.wait(20))
        # The rest waits for the one thread.
        functions = [count, wrong, write] + [count] * 21
        reads = [database.read(function) for function in functions]
        release.set()
        self.assertTrue(await first)
        with self.assertRaises(KeyError):
            await reads[1]
        with self.assertRaises(OperationalError):
            await reads[2]
        for read in (reads[0], *reads[3:]):
            self.assertEqual(await read, 0)
        self.assertLessEqual(len(begun), 1 + -(-24 // READ_GROUP) + 1)
        await database.close()

    async def test_readSeesWhatWasWritten(self) -> None:
        """A read that is asked for after a write was told of sees what it wrote."""
        database = openDatabase(f"sqlite:///{self.mktemp()}.db", reactor, threads=3)
        await database.run(metadata.create_all)

        def count(connection: Connection) -> int:
            return len(connection.exec_driver_sql("SELECT * FROM counters").all())

        def add(number: int) -> Callable[[Connection], None]:
            return lambda connection: connection.exec_driver_sql(
                f"INSERT INTO counters VALUES ('n{number}', 1)"
            ).close()

        for number in range(50):
            before = [database.read(count) for _ in range(3)]
            await database.run(add(number))
            self.assertEqual(await database.read(count), number + 1)
            for read in before:
                self.assertIn(await read, (number, number + 1))
        await database.close()

    async def test_closeWaitsForWhatRuns(self) -> None:
        """Closing waits for the transactions under way, then refuses others."""
        database = openDatabase(f"sqlite:///{self.mktemp()}.db", reactor, threads=1)
        await database.run(metadata.create_all)
        release = threading.Event()

        def slow(connection) -> None:  # type: ignore[no-untyped-def]
            release.wait(10)
            connection.exec_driver_sql("INSERT INTO counters VALUES ('n', 1)")

        running = database.run(slow)
        closing = Deferred.fromCoroutine(database.close())
        self.assertFalse(closing.called)
        refused = database.run(lambda c: None)
        self.failureResultOf(refused, DatabaseUnavailable)
        release.set()
        await running
        await closing
        self.assertEqual(
            [t for t in threading.enumerate() if "database" in t.name], [], "threads left over"
        )

    async def test_oneAfterAnother(self) -> None:
        """
        What is ready to run stays in one thread, in order, and its results come in order:
        several would only take the interpreter from each other.
        """
        threads = ReactorThreads(StoppedTime(), 4, eager=1)
        self.addCleanup(threads.stop)
        order: list[int] = []

        def done(ident: int, index: int) -> int:
            order.append(index)
            return ident

        idents = await gatherResults(
            [threads.call(threading.get_ident).addCallback(done, index) for index in range(50)]
        )
        self.assertEqual(order, list(range(50)))
        self.assertEqual(len(set(idents)), 1)

    async def test_othersGoOnBesideOneThatIsStuck(self) -> None:
        """One call that takes long holds up none of those behind it, up to all threads."""
        threads = ReactorThreads(reactor, 3, eager=1)
        self.addCleanup(threads.stop)
        release = threading.Event()
        self.addCleanup(release.set)
        stuck = [threads.call(release.wait) for _ in range(2)]
        self.assertEqual(
            await gatherResults([threads.call(lambda: 1) for _ in range(20)]), [1] * 20
        )
        self.assertEqual([each.called for each in stuck], [False, False])
        release.set()
        await gatherResults(stuck)

    async def test_firstIsFirst(self) -> None:
        """
        What comes first begins at once beside what runs; where no thread is left, it goes
        before what waits.
        """
        threads = ReactorThreads(reactor, 2, eager=1)
        self.addCleanup(threads.stop)
        release = threading.Event()
        self.addCleanup(release.set)
        stuck = threads.call(release.wait)
        self.assertEqual(await threads.callFirst(lambda: "written"), "written")
        alsoStuck = threads.callFirst(release.wait)
        order: list[str] = []
        last = threads.call(lambda: order.append("waited"))
        first = threads.callFirst(lambda: order.append("first"))
        release.set()
        for each in (stuck, alsoStuck, last, first):
            await each
        self.assertEqual(order, ["first", "waited"])

    async def test_errorsOfThreads(self) -> None:
        """What a function raises is its own failure; the next runs in the same thread."""
        threads = ReactorThreads(reactor, 1)
        self.addCleanup(threads.stop)
        wrong, right = threads.call(lambda: 1 / 0), threads.call(lambda: 1)
        with self.assertRaises(ZeroDivisionError):
            await wrong
        self.assertEqual(await right, 1)

    async def test_memoryHasOneThread(self) -> None:
        """A database in memory works with threads too, one of them."""
        database = openDatabase("sqlite://", reactor)
        await database.run(metadata.create_all)
        count = await database.read(
            lambda c: c.exec_driver_sql("SELECT count(*) FROM tokens").scalar()
        )
        self.assertEqual(count, 0)
        await database.close()
        with self.assertRaises(ValueError):
            Database("sqlite://", ReactorThreads(reactor, 2))
