"""Tests for L{helix_revdial.access.idempotency}: calls that are made again."""

from __future__ import annotations

from sqlalchemy import Connection, text
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.idempotency import (
    KEPT,
    LEASE,
    MAX_BODY,
    Attempt,
    Idempotency,
    KeyReused,
    Replay,
    StillRunning,
    digestOf,
    freeKeys,
    scopeOf,
)
from helix_revdial.storage.failures import DatabaseUnavailable
from tests.storage.databases import BreakableThread, newDatabase
from tests.storage.postgresql import OnPostgreSQL

HEADERS = ((b"Content-Type", b"application/json"), (b"Location", b"/x/1"))


class IdempotencyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.thread = BreakableThread()
        self.database = newDatabase(self, self.thread)
        self.keys = self.process()

    def process(self, maxEntries: int = 1000) -> Idempotency:
        """One more process on the same database."""
        return Idempotency(
            self.database, self.clock, lambda: 1000.0 + self.clock.seconds(), maxEntries=maxEntries
        )

    def begin(
        self, scope: str = "s", digest: str = "d", keys: Idempotency | None = None
    ) -> Attempt | Replay:
        return self.successResultOf(
            Deferred.fromCoroutine((keys or self.keys).begin(scope, digest))
        )

    def attempt(self, scope: str = "s", digest: str = "d") -> Attempt:
        found = self.begin(scope, digest)
        assert isinstance(found, Attempt), found
        return found

    def refused(
        self, expected: type[Exception], digest: str = "d", keys: Idempotency | None = None
    ) -> None:
        self.failureResultOf(
            Deferred.fromCoroutine((keys or self.keys).begin("s", digest)), expected
        )

    def finish(self, attempt: Attempt, body: bytes | None = b"{}") -> None:
        self.successResultOf(Deferred.fromCoroutine(self.keys.finish(attempt, 201, HEADERS, body)))

    def test_replay(self) -> None:
        """What was answered is replayed, by any process, until its time is over."""
        self.finish(self.attempt())
        for keys in (self.keys, self.process()):
            self.assertEqual(self.begin(keys=keys), Replay(201, HEADERS, b"{}"))
        self.clock.advance(KEPT - 1)
        self.assertEqual(self.begin(), Replay(201, HEADERS, b"{}"))
        self.clock.advance(2)
        self.assertIsInstance(self.begin(), Attempt)

    def test_otherCall(self) -> None:
        """The key of another call is refused, while that runs and after."""
        attempt = self.attempt()
        for keys in (self.keys, self.process()):
            self.refused(KeyReused, "other", keys)
        self.finish(attempt)
        self.refused(KeyReused, "other")

    def test_atOnce(self) -> None:
        """Of two calls at the same time one is carried out, in whichever process."""
        self.attempt()
        for keys in (self.keys, self.process()):
            self.refused(StillRunning, keys=keys)

    def test_beforeTheRow(self) -> None:
        """Also where the first has not reached the database yet."""
        self.thread.holding = True
        first = Deferred.fromCoroutine(self.keys.begin("s", "d"))
        self.assertNoResult(first)
        self.thread.holding = False
        self.refused(StillRunning)
        self.thread.answer()
        self.assertIsInstance(self.successResultOf(first), Attempt)

    def test_release(self) -> None:
        """A call without effect leaves the key free, for another body too."""
        attempt = self.attempt()
        self.successResultOf(Deferred.fromCoroutine(self.keys.release(attempt)))
        self.attempt(digest="other")

    def test_crash(self) -> None:
        """A process that dies while it carries a call out does not lock the key for ever."""
        self.attempt()
        self.clock.advance(LEASE - 1)
        after = self.process()
        self.refused(StillRunning, keys=after)
        self.clock.advance(2)
        self.assertIsInstance(self.begin(keys=after), Attempt)

    def test_restartAlone(self) -> None:
        """Where no other process is, a start frees what ran; what was answered stays."""
        self.finish(self.attempt("answered"))
        self.attempt()
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(freeKeys(self.database))), 1)
        after = self.process()
        self.assertIsInstance(self.begin(keys=after), Attempt)
        self.assertIsInstance(self.begin("answered", keys=after), Replay)

    def test_renewed(self) -> None:
        """A call that takes long holds its key."""
        self.keys.start()
        self.addCleanup(self.keys.stop)
        attempt = self.attempt()
        self.clock.pump([10] * 30)
        self.refused(StillRunning, keys=self.process())
        self.finish(attempt)
        self.assertIsInstance(self.begin(keys=self.process()), Replay)

    def test_takenOver(self) -> None:
        """An attempt that was given up writes nothing when it ends after all."""
        first = self.attempt()
        self.clock.advance(LEASE + 1)
        second = self.begin(keys=self.process())
        assert isinstance(second, Attempt)
        self.finish(first, b"late")
        self.refused(StillRunning)
        self.finish(second, b"second")
        self.assertEqual(self.begin(), Replay(201, HEADERS, b"second"))

    def test_withTheEffect(self) -> None:
        """An answer written with the effect is there exactly if the effect is."""
        attempt = self.attempt()

        def fail(connection: Connection) -> None:
            attempt.write(connection, 201, HEADERS, b"1")
            raise ZeroDivisionError

        self.failureResultOf(self.database.run(fail), ZeroDivisionError)
        self.refused(StillRunning, keys=self.process())
        self.successResultOf(
            self.database.run(lambda connection: attempt.write(connection, 201, HEADERS, b"2"))
        )
        # The process dies here: another knows the answer.
        self.assertEqual(self.begin(keys=self.process()), Replay(201, HEADERS, b"2"))
        self.finish(attempt, b"3")
        self.assertEqual(self.begin(), Replay(201, HEADERS, b"2"))

    def test_notKept(self) -> None:
        """An answer that is too large or not to be kept is known, without its body."""
        for body in (None, b"x" * (MAX_BODY + 1)):
            attempt = self.attempt(f"s{body is None}")
            self.finish(attempt, body)
            self.assertEqual(self.begin(attempt.scope), Replay(201, HEADERS, None))

    def test_databaseLost(self) -> None:
        """Where nothing can be told the call is refused, and the key is not lost."""
        self.thread.lost = DatabaseUnavailable("gone")
        self.refused(DatabaseUnavailable)
        self.thread.lost = None
        attempt = self.attempt()
        self.thread.lost = DatabaseUnavailable("gone")
        self.failureResultOf(
            Deferred.fromCoroutine(self.keys.finish(attempt, 201, HEADERS, b"")),
            DatabaseUnavailable,
        )
        self.assertEqual(self.keys.sizes(), {"idempotency_running": 0})

    def rows(self) -> int:
        def count(connection: Connection) -> int:
            number: int = connection.execute(text("SELECT count(*) FROM idempotency")).scalar_one()
            return number

        return self.successResultOf(self.database.read(count))

    def test_sweep(self) -> None:
        """What is over its time is swept; the table is bounded: the oldest go first."""
        keys = self.process(maxEntries=5)
        keys.start()
        self.addCleanup(keys.stop)
        for number in range(8):
            self.finish(self.attempt(f"s{number}"))
            self.clock.advance(1)
        self.assertEqual(self.rows(), 8)
        self.clock.advance(600)
        self.assertEqual(self.rows(), 5)
        self.assertIsInstance(self.begin("s7"), Replay)
        self.clock.advance(KEPT)
        self.assertEqual(self.rows(), 0)

    def test_sweepGoesOn(self) -> None:
        """A database that is lost for a while ends no sweeping."""
        self.keys.start()
        self.addCleanup(self.keys.stop)
        self.finish(self.attempt())
        self.thread.lost = DatabaseUnavailable("gone")
        self.clock.pump([600, 600])
        self.thread.lost = None
        self.clock.advance(KEPT)
        self.assertEqual(self.rows(), 0)


class IdempotencyPostgreSQLTests(OnPostgreSQL, IdempotencyTests):
    """The same on PostgreSQL."""


class NameTests(SynchronousTestCase):
    def test_scope(self) -> None:
        """Another caller, method, path or key is another call, however they are put together."""
        scopes = {
            scopeOf(("user", "t", "ann"), "POST", "/a", "k"),
            scopeOf(("user", "t", "bob"), "POST", "/a", "k"),
            scopeOf(("user", "u", "ann"), "POST", "/a", "k"),
            scopeOf(("user", "t", "ann"), "POST", "/b", "k"),
            scopeOf(("user", "t", "ann"), "POST", "/a", "j"),
        }
        self.assertEqual(len(scopes), 5)

    def test_digest(self) -> None:
        """Nothing can be moved from the query to the body."""
        self.assertNotEqual(digestOf(b"ab", b"c"), digestOf(b"a", b"bc"))
        self.assertEqual(digestOf(b"a", b"b"), digestOf(b"a", b"b"))
