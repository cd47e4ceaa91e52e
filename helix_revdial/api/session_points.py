# -*- test-case-name: tests.api.test_timeline,tests.api.test_branches -*-
"""
Points of a session's time: how callers name them, and how they are shown.

A time is given as people have it: a number is seconds since the session's begin, a text
is a moment as RFC 3339 writes it.  A snapshot is given by its id, and then there is no
time beside it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec

from helix_revdial.http.problem import Problem, validationProblem
from helix_revdial.sessions.moments import Moment, Snapshot
from helix_revdial.sessions.tasks import CONTROL
from helix_revdial.sessions.timeline import Timeline
from helix_revdial.telemetry.timestamps import timestamp

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=10_000_000_000)]
_Moment = Annotated[str, msgspec.Meta(max_length=40)]

Time = _Seconds | _Moment
"""A time, as a caller names it."""

MOMENT = (
    r"^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
    r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?Z$"
)
"""A moment as the description promises to take it; RFC 3339 has more."""

SnapshotId = Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
"""A snapshot, as a caller names it."""


class MomentDocument(msgspec.Struct, omit_defaults=True):
    """A point that is worth a name; C{offsetSec} is its place in the recording."""

    id: str
    ts: str
    offsetSec: float
    label: str
    kind: str
    fsSnapshotId: str | None = None


class SnapshotPart(msgspec.Struct, omit_defaults=True):
    """A snapshot as its host knows it; C{mount} where it can be read there."""

    id: str | None
    mount: str | None = None


class SnapshotDocument(msgspec.Struct, omit_defaults=True):
    """A session's files at a point."""

    id: str
    ts: str
    offsetSec: float
    label: str
    provider: str
    snapshot: SnapshotPart
    momentId: str | None = None


def written(time: str) -> dict[str, Any]:
    """The rule that a time, where it is a text, is a moment."""
    return {"properties": {time: {"pattern": MOMENT}}}


def eitherOf(time: str) -> dict[str, Any]:
    """The rule that there is a time or a snapshot, and not both."""
    nothing = {"type": "null"}
    return {
        "oneOf": [
            {
                "properties": {
                    time: {"type": ["number", "string"], "pattern": MOMENT},
                    "fsSnapshotId": nothing,
                },
                "required": [time],
            },
            {
                "properties": {time: nothing, "fsSnapshotId": {"type": "string"}},
                "required": ["fsSnapshotId"],
            },
        ]
    }


def instantOf(given: float | str, begin: float, field: str) -> float:
    """
    A time that a caller named.

    @param begin: when the session began, in seconds since the epoch.
    @param field: where it stands in the body.
    @return: seconds since the epoch.
    @raise Problem: 400 for what is none.
    """
    if not isinstance(given, str):
        return begin + given
    try:
        moment = datetime.fromisoformat(given)
        found = moment.timestamp() if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        found = None
    if found is None:
        raise validationProblem(
            {field: ["is seconds since the session's begin, or such as 2026-01-02T03:04:05Z"]}
        )
    return found


def checkAlone(other: object, field: str) -> None:
    """
    Go on only where a snapshot is not named beside a time.

    @param other: the time.
    @raise Problem: 400 where both are.
    """
    if other is not None:
        raise validationProblem({field: ["is not given together with fsSnapshotId"]})


async def snapshotOf(timeline: Timeline, session: str, snapshot: str) -> Snapshot:
    """
    A snapshot that a caller named.

    @raise Problem: 404 where the session has none such.
    """
    found = await timeline.snapshot(session, snapshot)
    if found is None:
        raise Problem(404, f"The session has no snapshot {snapshot}.", code="unknown-snapshot")
    return found


def checkPlain(text: str, field: str) -> None:
    """
    Go on only with text that can be shown in a line, and kept in any database.

    @raise Problem: 400 for other text.
    """
    if CONTROL.search(text) is not None:
        raise validationProblem({field: ["has control characters"]})


def offsetOf(at: float, begin: float) -> float:
    """Seconds from a session's begin, of a moment since the epoch."""
    return max(round(at - begin, 3), 0.0)


def momentDocument(moment: Moment, begin: float) -> MomentDocument:
    """A moment of a session that began then, as seconds since the epoch."""
    return MomentDocument(
        moment.id,
        timestamp(moment.at),
        offsetOf(moment.at, begin),
        moment.label,
        moment.kind,
        moment.snapshot,
    )


def snapshotDocument(snapshot: Snapshot, begin: float, moments: list[Moment]) -> SnapshotDocument:
    """
    A snapshot of a session that began then.

    @param moments: those among which its own may be.
    """
    linked = next((one.id for one in moments if one.snapshot == snapshot.id), None)
    return SnapshotDocument(
        snapshot.id,
        timestamp(snapshot.at),
        offsetOf(snapshot.at, begin),
        snapshot.label,
        snapshot.provider,
        SnapshotPart(snapshot.name, snapshot.mount),
        linked,
    )
