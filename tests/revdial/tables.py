"""A connection table on a clock, for its tests."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.features import ALL
from helix_revdial.revdial.table import (
    Claimed,
    ConnectionTable,
    Contested,
    Dial,
    DialState,
    Effect,
    Failed,
)

OLD: frozenset[str] = frozenset()

KEY = "sandbox-1"


class TableCase(SynchronousTestCase):
    """A table with a clock, and short ways to say things."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.table = ConnectionTable(self.clock)
        self.generation = 0

    def connect(
        self,
        key: str = KEY,
        owner: str = "family:a",
        credential: str = "cred-a",
        features: frozenset[str] = ALL,
    ) -> int:
        """Register, and take it as given that nothing is in the way."""
        self.generation += 1
        outcome = self.table.claim(key, owner, credential, self.generation, features)
        self.assertIsInstance(outcome, Claimed)
        return self.generation

    def claim(
        self, owner: str = "family:a", features: frozenset[str] = ALL, answered: bool | None = None
    ) -> Claimed | Contested:
        self.generation += 1
        return self.table.claim(KEY, owner, "cred-a", self.generation, features, answered=answered)

    def assertFailed(self, effect: Effect, dial: Dial, error: type[Exception]) -> None:
        self.assertIsInstance(effect, Failed)
        assert isinstance(effect, Failed)
        self.assertIs(effect.dial, dial)
        self.assertIs(type(effect.error), error)
        self.assertIs(dial.state, DialState.OVER)

    def assertNothingLeft(self, table: ConnectionTable | None = None) -> None:
        """No dial, no way to pick one up, no time to wait for."""
        table = self.table if table is None else table
        self.assertEqual(table.stats().pendingDials, 0)
        self.assertEqual(len(table._askings), 0)
        self.assertIsNone(table.nextDeadline())
        self.assertEqual(len(table._deadlines), 0)

    def pickUpOld(self, dial: Dial, credential: str = "cred-a") -> Dial:
        return self.table.pickUp(credential, dialer=dial.dialer, request=dial.request)
