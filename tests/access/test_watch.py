"""Tests for L{helix_revdial.access.watch}."""

from __future__ import annotations

from helix_revdial.access.watch import INTERVAL, TokenWatch
from tests.access.worlds import START, AccessTestCase
from tests.storage.postgresql import OnPostgreSQL


class TokenWatchTests(AccessTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.told: list[str] = []
        self.tokens.onRevoked(self.told.append)
        self.watch = TokenWatch(self.tokens, self.clock)

    def test_expiryIsNoticed(self) -> None:
        """F3: at most an interval after a token has expired its family is told."""
        record, _ = self.get(
            self.tokens.create("runner", name="n", patterns=["*"], expires=START + 12)
        )
        self.watch.start()
        self.clock.pump([INTERVAL, INTERVAL])
        self.assertEqual(self.told, [])
        self.clock.advance(INTERVAL)
        self.assertEqual(self.told, [record.family])
        self.watch.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aLostDatabaseDoesNotEndIt(self) -> None:
        """It goes on through a loss of the database, and makes up for it."""
        record, _ = self.get(
            self.tokens.create("runner", name="n", patterns=["*"], expires=START + 1)
        )
        self.watch.start()
        self.lose()
        self.clock.pump([INTERVAL] * 3)
        self.workers.lost = KeyError("of another kind")
        self.clock.advance(INTERVAL)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.find()
        self.clock.advance(INTERVAL)
        self.assertEqual(self.told, [record.family])
        self.watch.stop()
        self.watch.stop()


class TokenWatchPostgreSQLTests(OnPostgreSQL, TokenWatchTests):
    """The same on PostgreSQL."""
