# -*- test-case-name: tests.sessions.test_known_executors -*-
"""
Runner hosts that were there: what they last said of themselves, and when.

What is connected now, L{Executors<helix_revdial.sessions.executors.Executors>} knows.  What
is noted here outlives the connection and the server, so that a host that is gone is
told of, as gone.  A host is noted when it answers, at most once in L{NOTED_EVERY} seconds
while nothing but its load changes; it is forgotten when its runner is there without an
executor, or has not been there for L{KEPT} seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import msgspec
from sqlalchemy import Connection, Row, delete, insert, select, update
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from helix_revdial.sessions.executor import HostHealth
from helix_revdial.sessions.executors import Executors, Registered
from helix_revdial.storage.database import Database
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.storage.tables import executors as table

NOTED_EVERY: Final = 60.0
"""Seconds between two notes that a host lives."""

KEPT: Final = 30 * 24 * 3600.0
"""Seconds for which a host that is gone is known."""

MAX_LISTED: Final = 1000
"""Hosts that are told of at one time, those first that were there last."""


@dataclass(frozen=True, slots=True)
class KnownExecutor:
    """
    A host as it was.

    @ivar id: the runner's key.
    @ivar health: what it said last.
    @ivar lastHeartbeat: about when, in seconds since the epoch.
    """

    id: str
    health: HostHealth
    lastHeartbeat: float


class KnownExecutors:
    """
    Those of one database.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self, database: Database, wallClock: Callable[[], float], executors: Executors
    ) -> None:
        """
        @param wallClock: seconds since the epoch.
        @param executors: those that are there.
        """
        self._database = database
        self._wallClock = wallClock
        self._executors = executors
        self._noted: dict[str, tuple[tuple[str | None, HostHealth], float]] = {}
        executors.onHeard(self._heard)
        executors.onRemoved(self._removed)

    async def gone(self, tenant: str) -> list[KnownExecutor]:
        """
        The hosts that a tenant's sessions could run on and that are not there, by their ids.

        @raise DatabaseUnavailable: if they cannot be read.
        """
        query = (
            select(table)
            .where(
                table.c.tenant.is_(None) | (table.c.tenant == tenant),
                table.c.health.is_not(None),
                table.c.last_heartbeat >= self._wallClock() - KEPT,
            )
            .order_by(table.c.last_heartbeat.desc())
            .limit(MAX_LISTED)
        )
        found = await self._database.read(
            lambda connection: [_known(row) for row in connection.execute(query)]
        )
        absent = [each for each in found if each.id not in self._executors]
        return sorted(absent, key=lambda each: each.id)

    def _heard(self, one: Registered) -> None:
        health, at = one.health, one.lastHeartbeat
        if one.executor.kind != "local" or health is None or at is None:
            return
        lasting = (one.tenant, msgspec.structs.replace(health, running=0, load=None))
        noted = self._noted.get(one.id)
        if noted is not None and noted[0] == lasting and 0 <= at - noted[1] < NOTED_EVERY:
            return
        self._noted[one.id] = (lasting, at)
        row = {
            "tenant": one.tenant,
            "os": health.os[:64],
            "arch": health.arch[:64],
            "capabilities": health.snapshotCapabilities,
            "last_heartbeat": at,
            "health": msgspec.to_builtins(health),
        }
        self._write(lambda connection: _note(connection, one.id, row, at))

    def _removed(self, executor: str) -> None:
        self._noted.pop(executor, None)
        self._write(
            lambda connection: _execute(connection, delete(table).where(table.c.id == executor))
        )

    def _write(self, function: Callable[[Connection], None]) -> None:
        def failed(failure: Failure) -> None:
            if failure.check(DatabaseUnavailable):
                # The next heartbeat is noted, too.
                self._noted.clear()
                return
            self._log.failure("A runner host is not noted", failure)

        Deferred.fromCoroutine(self._run(function)).addErrback(failed)

    async def _run(self, function: Callable[[Connection], None]) -> None:
        await self._database.run(function)


def _execute(connection: Connection, statement: Any) -> None:
    connection.execute(statement)


def _note(connection: Connection, executor: str, row: dict[str, Any], now: float) -> None:
    done = connection.execute(update(table).where(table.c.id == executor).values(**row))
    if not done.rowcount:
        connection.execute(insert(table).values(id=executor, **row))
        connection.execute(delete(table).where(table.c.last_heartbeat < now - KEPT))


def _known(row: Row[Any]) -> KnownExecutor:
    return KnownExecutor(row.id, msgspec.convert(row.health, HostHealth), row.last_heartbeat)
