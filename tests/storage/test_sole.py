"""Tests for L{helix_revdial.storage.sole}."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.storage.sole import WAIT, InUse, SoleUse
from tests.storage.databases import newURL
from tests.storage.postgresql import OnPostgreSQL, cluster


class SoleUseTests(SynchronousTestCase):
    """One server for one database."""

    holder = r"process \d+"

    def setUp(self) -> None:
        self.url = newURL(self)
        self.now = 0.0
        self.onSleep: Callable[[], None] = lambda: None
        self.one, self.other = self.use(), self.use()

    def use(self, url: str | None = None) -> SoleUse:
        use = SoleUse(url or self.url, clock=lambda: self.now, sleep=self.sleep)
        self.addCleanup(use.release)
        return use

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.onSleep()

    def test_second(self) -> None:
        """A second one waits for a while, and is refused; the text says who is there."""
        self.one.take()
        self.assertEqual(self.now, 0.0)
        with self.assertRaises(InUse) as raised:
            self.other.take()
        self.assertGreaterEqual(self.now, WAIT)
        self.assertRegex(
            str(raised.exception),
            rf"^another server works with this database \({self.holder}\): end it, or give",
        )
        self.assertTrue(self.one.check())

    def test_next(self) -> None:
        """When the first lets go, even while the second waits, the second has it."""
        self.one.take()
        self.onSleep = self.one.release
        self.other.take()
        self.assertTrue(self.other.check())

    def test_databasesOfTheirOwn(self) -> None:
        """Another database is no concern of this one's."""
        self.one.take()
        self.use(newURL(self)).take(0)


class SoleUsePostgreSQLTests(OnPostgreSQL, SoleUseTests):
    """The same, and a lock that can be lost."""

    holder = r"on this host, since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"

    def lose(self) -> None:
        """End every connection that holds a lock."""
        cluster().run(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory'"
        )

    def test_lostAndTakenAgain(self) -> None:
        """A connection that broke is made anew, with the lock."""
        self.one.take()
        self.lose()
        self.assertTrue(self.one.check())
        with self.assertRaises(InUse):
            self.other.take(0)

    def test_lostToAnother(self) -> None:
        """Who finds another in its place is told, and stays told."""
        self.one.take()
        self.lose()
        self.other.take(0)
        self.assertFalse(self.one.check())
        self.assertTrue(self.other.check())

    def test_unreachable(self) -> None:
        """While the database cannot be reached nobody is sent away."""
        url = "postgresql+psycopg://helix@/postgres?host=/nonexistent"
        self.assertTrue(self.use(url).check())


class MemoryTests(SynchronousTestCase):
    """A database in memory is nobody else's."""

    def test_memory(self) -> None:
        """It is taken at once."""
        use = SoleUse("sqlite://")
        use.take()
        self.assertTrue(use.check())
        use.release()
