# -*- test-case-name: tests.api.test_timeline -*-
"""
A session's timeline: what there is of it, what people add, and where a point of it
leads.

The rows are L{helix_revdial.sessions.moments}'; the events that tell of them go with
them in one write of the event log.  A snapshot is made by the session's host; what the
host made and this server could not note (it was killed, its database was away) the
host reports, while the session runs.

Times are those of the events: seconds since the epoch.  A session's time begins when
its agent first ran, and ends with the session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, select

from helix_revdial.sessions.changes import lock
from helix_revdial.sessions.events import Appender, EventLog
from helix_revdial.sessions.executor import Executor
from helix_revdial.sessions.lifecycle import TERMINAL
from helix_revdial.sessions.moments import (
    MAX_SNAPSHOTS,
    Moment,
    Snapshot,
    TimelineFull,
    countSnapshots,
    momentOf,
    noteMoment,
    noteSnapshot,
    snapshotOf,
)
from helix_revdial.sessions.records import Session, fromRow
from helix_revdial.storage.database import Database
from helix_revdial.storage.tables import moments, sessions, snapshots

MAX_BRANCHES: Final = 100
"""Branches of one session."""


@dataclass(frozen=True, slots=True)
class Point:
    """
    Where a time of a session leads.

    @ivar at: the time, within the session's.
    @ivar moment: the last one before, or the first after; C{snapshot} likewise.
    """

    at: float
    moment: Moment | None
    snapshot: Snapshot | None


Also = Callable[[Connection, Snapshot, Moment | None], None]
"""What is done in the transaction that notes a snapshot."""


class Timeline:
    """
    The timelines of every session.
    """

    def __init__(
        self, database: Database, events: EventLog, wallClock: Callable[[], float]
    ) -> None:
        """
        @param wallClock: seconds since the epoch.
        """
        self._database = database
        self._events = events
        self._wallClock = wallClock
        self._making: dict[str, int] = {}

    def bounds(self, session: Session) -> tuple[float, float]:
        """When a session's time began, and when it ended or what the time is."""
        begin = session.created if session.started is None else session.started
        end = self._wallClock() if session.ended is None else session.ended
        return begin, max(begin, end)

    # Looking

    async def moments(self, session: str) -> list[Moment]:
        """The moments of a session, oldest first."""
        query = (
            select(moments).where(moments.c.session == session).order_by(moments.c.at, moments.c.id)
        )
        return await self._database.read(
            lambda connection: [momentOf(row) for row in connection.execute(query)]
        )

    async def snapshots(self, session: str) -> list[Snapshot]:
        """The snapshots of a session, oldest first."""
        query = (
            select(snapshots)
            .where(snapshots.c.session == session)
            .order_by(snapshots.c.at, snapshots.c.id)
        )
        return await self._database.read(
            lambda connection: [snapshotOf(row) for row in connection.execute(query)]
        )

    async def snapshot(self, session: str, snapshot: str) -> Snapshot | None:
        """One of them, by its id."""
        for one in await self.snapshots(session):
            if one.id == snapshot:
                return one
        return None

    async def branches(self, session: Session) -> list[Session]:
        """The sessions that began with a snapshot of this one, oldest first."""
        query = (
            select(sessions)
            .where(
                sessions.c.branch_of == session.id,
                sessions.c.tenant == session.tenant,
                sessions.c.deleted.is_(None),
            )
            .order_by(sessions.c.created, sessions.c.id)
            .limit(MAX_BRANCHES)
        )
        return await self._database.read(
            lambda connection: [fromRow(row) for row in connection.execute(query)]
        )

    async def pointAt(self, session: Session, at: float) -> Point:
        """
        Where a time leads.

        @param at: seconds since the epoch; what is outside of the session's time counts
            as its begin or its end.
        """
        begin, end = self.bounds(session)
        at = min(max(at, begin), end)
        return Point(
            at,
            _nearest(await self.moments(session.id), at),
            _nearest(await self.snapshots(session.id), at),
        )

    async def before(self, session: str, at: float) -> Snapshot | None:
        """The last snapshot that was there at a time."""
        found = [one for one in await self.snapshots(session) if one.at <= at]
        return found[-1] if found else None

    # Adding

    async def mark(self, session: Session, label: str, at: float | None = None) -> Moment:
        """
        Set a moment.

        @param at: by default now, or the session's end.
        @raise TimelineFull: when there are too many.
        """
        begin, end = self.bounds(session)
        at = end if at is None else min(max(at, begin), end)

        def write(connection: Connection, log: Appender) -> Moment:
            lock(connection, session.id)
            moment, items = noteMoment(
                connection, session.id, at=at, label=log.clean(label), kind="manual"
            )
            log.extend(items)
            return moment

        return await self._events.write(session.id, write)

    async def keep(
        self, session: Session, executor: Executor, label: str, also: Also | None = None
    ) -> tuple[Snapshot, Moment | None]:
        """
        Have the session's host keep its files as they are.

        @param also: called in the same transaction, with the connection, the snapshot and
            the moment.
        @return: the snapshot, and the moment that it belongs to; no moment where a session
            has as many as it may.
        @raise TimelineFull: when there are too many snapshots.
        @raise ExecutorRefused: when the host cannot.
        @raise ExecutorUnreachable: when it is not known whether it did.
        """
        making = self._making.get(session.id, 0)
        there = await self._database.read(lambda connection: countSnapshots(connection, session.id))
        if there + making >= MAX_SNAPSHOTS:
            raise TimelineFull(f"a session has {MAX_SNAPSHOTS} snapshots at most")
        self._making[session.id] = self._making.get(session.id, 0) + 1
        try:
            made = await executor.snapshot(session.id, label)
        finally:
            self._making[session.id] -= 1
            if not self._making[session.id]:
                del self._making[session.id]

        def write(connection: Connection, log: Appender) -> tuple[Snapshot, Moment | None]:
            lock(connection, session.id)
            snapshot, items = noteSnapshot(
                connection,
                session.id,
                at=made.at,
                label=log.clean(label),
                provider=made.provider,
                name=made.snapshot,
                mount=made.mount,
            )
            moment: Moment | None = None
            try:
                moment, more = noteMoment(
                    connection,
                    session.id,
                    at=snapshot.at,
                    label=log.clean(label),
                    kind="manual",
                    snapshot=snapshot.id,
                )
            except TimelineFull:
                more = []
            log.extend([*items, *more])
            if also is not None:
                also(connection, snapshot, moment)
            return snapshot, moment

        return await self._events.write(session.id, write)

    async def branched(self, source: str, branch: Session) -> None:
        """
        Tell in a session's events that there is a branch of it.
        """
        snapshot = branch.branchSnapshot or {}
        data = {
            "branchId": branch.id,
            "name": branch.name,
            "fsSnapshotId": snapshot.get("id"),
        }
        await self._events.append(source, "timeline.sessionBranch.created", data)


def hasBegun(session: Session) -> bool:
    """Whether there is a time in which something can have a place."""
    return session.started is not None or session.status in TERMINAL


def _nearest(points: list[Any], at: float) -> Any:
    before = [one for one in points if one.at <= at]
    if before:
        return before[-1]
    return points[0] if points else None


__all__ = ["Point", "Timeline", "hasBegun"]
