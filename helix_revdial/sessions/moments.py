# -*- test-case-name: tests.api.test_timeline -*-
"""
Points of a session's timeline: moments, and snapshots of its files.

This module owns the tables C{moments} and C{snapshots}.  The functions that note
something run within a write of the event log, on a session's row that is locked, and
give the events that tell of it, which their caller adds.

What holds:

  - each moment is told by two events: C{timeline.sessionMoment}, with all of it, and
    C{moment}, whose C{note} and C{snapshotId} are what a fence says of itself;
  - a snapshot is one row, whoever tells of it first: the host that made it, or the
    caller for whom it was made;
  - a session has L{MAX_MOMENTS} moments and L{MAX_SNAPSHOTS} snapshots at most.  What a
    host tells beyond is not kept; what a caller asks for beyond is L{TimelineFull}.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, Row, func, insert, select

from helix_revdial.storage.ids import newId
from helix_revdial.storage.tables import moments, snapshots

MAX_LABEL: Final = 200
"""Characters of a label."""

MAX_MOMENTS: Final = 1000

MAX_SNAPSHOTS: Final = 50
"""Each may be a copy of all the files."""

MomentKind = Literal["auto", "manual"]

Item = tuple[str, dict[str, Any], float]
"""An event: its type, its data, and when it happened."""


class TimelineFull(Exception):
    """A session has as many points as it may.  HTTP answers 409."""


@dataclass(frozen=True, slots=True)
class Moment:
    """
    A point that is worth a name.

    @ivar at: seconds since the epoch.
    @ivar kind: whether a person set it.
    @ivar snapshot: the id of the snapshot that belongs to it.
    """

    id: str
    session: str
    at: float
    label: str
    kind: MomentKind
    snapshot: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """
    A session's files at a point.

    @ivar at: seconds since the epoch.
    @ivar name: what its host calls it.
    @ivar mount: where it can be read on the host, if it can.
    """

    id: str
    session: str
    at: float
    label: str
    provider: str
    name: str | None
    mount: str | None = None

    @property
    def readOnly(self) -> bool:
        """Whether its provider keeps everybody from changing it."""
        return self.provider in ("btrfs", "zfs")


def momentOf(row: Row[Any]) -> Moment:
    """The moment of a row with every column."""
    return Moment(row.id, row.session, row.at, row.label, row.kind, row.snapshot)


def snapshotOf(row: Row[Any]) -> Snapshot:
    """The snapshot of a row with every column."""
    reference = row.reference or {}
    return Snapshot(
        row.id,
        row.session,
        row.at,
        row.label or "",
        row.provider,
        reference.get("id"),
        reference.get("mount"),
    )


def snapshotNamed(connection: Connection, session: str, name: str | None) -> Snapshot | None:
    """The snapshot that its host calls by that name."""
    if name is None:
        return None
    query = select(snapshots).where(snapshots.c.session == session)
    for row in connection.execute(query.order_by(snapshots.c.at.desc())):
        if (row.reference or {}).get("id") == name:
            return snapshotOf(row)
    return None


def noteMoment(
    connection: Connection,
    session: str,
    *,
    at: float,
    label: str,
    kind: MomentKind,
    note: str | None = None,
    snapshot: str | None = None,
) -> tuple[Moment, list[Item]]:
    """
    Note a moment.

    @param note: what its C{moment} event says, by default the label.
    @param snapshot: the id of a snapshot of the session.
    @raise TimelineFull: when there are too many.
    """
    if _count(connection, moments, session) >= MAX_MOMENTS:
        raise TimelineFull(f"a session has {MAX_MOMENTS} moments at most")
    moment = Moment(newId("mom", at), session, at, label[:MAX_LABEL], kind, snapshot)
    connection.execute(
        insert(moments).values(
            id=moment.id,
            session=session,
            at=at,
            label=moment.label,
            kind=kind,
            snapshot=snapshot,
        )
    )
    told = {"id": moment.id, "label": moment.label}
    return moment, [
        ("timeline.sessionMoment", {**told, "kind": kind, "fsSnapshotId": snapshot}, at),
        ("moment", {**told, "note": note or moment.label, "snapshotId": snapshot}, at),
    ]


def noteSnapshot(
    connection: Connection,
    session: str,
    *,
    at: float,
    label: str,
    provider: str,
    name: str | None,
    mount: str | None,
) -> tuple[Snapshot, list[Item]]:
    """
    Note a snapshot that was made.

    @return: the snapshot; no events for one that is known already.
    @raise TimelineFull: when there are too many.
    """
    known = snapshotNamed(connection, session, name)
    if known is not None:
        return known, []
    if countSnapshots(connection, session) >= MAX_SNAPSHOTS:
        raise TimelineFull(f"a session has {MAX_SNAPSHOTS} snapshots at most")
    snapshot = Snapshot(
        newId("snap", at), session, at, label[:MAX_LABEL], provider[:32], name, mount
    )
    reference = {"id": name, "mount": mount}
    connection.execute(
        insert(snapshots).values(
            id=snapshot.id,
            session=session,
            at=at,
            label=snapshot.label,
            provider=snapshot.provider,
            reference=reference,
        )
    )
    told = {"id": snapshot.id, "label": snapshot.label, "provider": snapshot.provider}
    return snapshot, [("timeline.fsSnapshot.created", {**told, "snapshot": reference}, at)]


def countSnapshots(connection: Connection, session: str) -> int:
    """How many snapshots a session has."""
    return _count(connection, snapshots, session)


def _count(connection: Connection, table: Any, session: str) -> int:
    query = select(func.count()).select_from(table).where(table.c.session == session)
    found: int = connection.execute(query).scalar_one()
    return found


__all__ = ["Moment", "Snapshot", "TimelineFull", "noteMoment", "noteSnapshot"]
