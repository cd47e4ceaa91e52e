"""
What tests of access stand on: a database whose calls have fired when they
return, and clocks that go when they are told to.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.access.tokens import Tokens
from helix_revdial.storage.database import Database
from helix_revdial.storage.failures import DatabaseUnavailable
from tests.storage.databases import BreakableThread, newDatabase

T = TypeVar("T")

START = 1_790_000_000.0


class AccessTestCase(SynchronousTestCase):
    """A test with a database, clocks, and tokens."""

    def setUp(self) -> None:
        self.workers = BreakableThread()
        self.database: Database = newDatabase(self, self.workers)
        self.clock = Clock()
        self.tokens = self.newTokens()

    def wallClock(self) -> float:
        """The time of day: goes with the clock."""
        return START + self.clock.seconds()

    def newTokens(self) -> Tokens:
        """The tokens as another process on the same database has them."""
        return Tokens(self.database, self.clock, self.wallClock)

    def lose(self) -> None:
        """The database is lost from here on."""
        self.workers.lost = DatabaseUnavailable("lost")

    def find(self) -> None:
        """The database is back."""
        self.workers.lost = None

    def get(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What a coroutine that does not wait returns."""
        return self.successResultOf(Deferred.fromCoroutine(coroutine))

    def fails(self, coroutine: Coroutine[Any, Any, Any], *kinds: type[Exception]) -> Exception:
        """What it raises."""
        failure = self.failureResultOf(Deferred.fromCoroutine(coroutine), *kinds)
        error: Exception = failure.value
        return error
