"""Runner hosts that are gone are told of, as gone."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from helix_revdial.sessions.executor import HostHealth
from helix_revdial.sessions.executors import Executors
from helix_revdial.sessions.known_executors import KEPT, NOTED_EVERY, KnownExecutors
from helix_revdial.sessions.synthetic import SyntheticExecutor
from helix_revdial.storage.tables import executors as table
from tests.sessions.worlds import SessionTestCase
from tests.storage.postgresql import OnPostgreSQL


class Host(SyntheticExecutor):
    kind = "local"
    load = 0.0

    async def host(self) -> HostHealth:
        self.load += 1
        return HostHealth("linux", "x86_64", ["copy"], [], ["local"], 4, 1, load=self.load)


class KnownExecutorsTests(SessionTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.begin()

    def begin(self) -> None:
        """A server begins."""
        self.executors = Executors(self.clock, self.wallClock, heartbeat=5)
        self.known = KnownExecutors(self.database, self.wallClock, self.executors)
        self.executors.start()
        self.addCleanup(self.executors.stop)

    def gone(self, tenant: str = "acme") -> list[str]:
        return [each.id for each in self.get(self.known.gone(tenant))]

    def noted(self) -> list[float]:
        query = select(table.c.last_heartbeat)
        rows: Any = self.get(_read(self.database, query))
        return [row[0] for row in rows]

    def test_gone(self) -> None:
        """What is there is not gone; what a server of before had is, with what it said."""
        self.executors.add("a", Host(self.clock, self.wallClock))
        self.executors.add("theirs", Host(self.clock, self.wallClock), tenant="other")
        self.executors.add("synthetic", SyntheticExecutor(self.clock, self.wallClock))
        self.assertEqual(self.gone(), [])
        self.executors.stop()
        self.begin()
        [found] = self.get(self.known.gone("acme"))
        self.assertEqual((found.id, found.health.slots, found.health.os), ("a", 4, "linux"))
        self.assertEqual(found.lastHeartbeat, self.wallClock())
        self.assertEqual(self.gone("other"), ["a", "theirs"])
        self.executors.add("a", Host(self.clock, self.wallClock))
        self.assertEqual(self.gone(), [])

    def test_noExecutor(self) -> None:
        """A runner that is there without an executor is forgotten as one."""
        self.executors.add("a", Host(self.clock, self.wallClock))
        self.executors.remove("a")
        self.assertEqual(self.gone(), [])
        self.assertEqual(self.noted(), [])

    def test_seldom(self) -> None:
        """That a host lives is noted from time to time, not with each heartbeat."""
        self.executors.add("a", Host(self.clock, self.wallClock))
        [first] = self.noted()
        self.clock.pump([5] * int(NOTED_EVERY / 5 - 1))
        self.assertEqual(self.noted(), [first])
        self.clock.advance(5)
        self.assertEqual(self.noted(), [first + NOTED_EVERY])

    def test_tooLong(self) -> None:
        """What was not there for long is known no more."""
        self.executors.add("a", Host(self.clock, self.wallClock))
        self.executors.stop()
        self.begin()
        self.clock.advance(KEPT + 1)
        self.assertEqual(self.gone(), [])
        self.executors.add("b", Host(self.clock, self.wallClock))
        self.assertEqual(self.noted(), [self.wallClock()])


async def _read(database: Any, query: Any) -> Any:
    return await database.read(lambda connection: connection.execute(query).all())


class PostgreSQLTests(OnPostgreSQL, KnownExecutorsTests):
    """The same on PostgreSQL."""
