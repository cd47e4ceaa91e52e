# -*- test-case-name: tests.api.test_session_events -*-
"""
An event as callers have it, whichever way it comes to them.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from helix_revdial.api.session_points import SnapshotPart
from helix_revdial.sessions.events import Event
from helix_revdial.sessions.lifecycle import Status
from helix_revdial.telemetry.timestamps import timestamp


class _Numbered(msgspec.Struct, tag_field="type"):
    """What every event of a session has; C{seq} is its number, from 1, without a gap."""

    ts: str
    seq: int
    sessionId: str


class StatusEvent(_Numbered, tag="status"):
    """The session is in another state; at its end with how that came."""

    status: Status
    reason: str | None = None
    exitCode: int | None = None
    signal: str | None = None
    error: str | None = None


class LogEvent(_Numbered, tag="log"):
    """A line of what the agent, or its host, said."""

    level: Literal["debug", "info", "warn", "error"]
    message: str
    stream: str | None = None


class MomentEvent(_Numbered, tag="moment"):
    """A point that is worth a name."""

    id: str
    label: str
    note: str
    snapshotId: str | None = None


class DeliveryEvent(_Numbered, tag="delivery"):
    """The session's work is there to be had."""

    mode: str
    url: str | None = None
    size: int | None = None
    sha256: str | None = None


class SessionMomentEvent(_Numbered, tag="timeline.sessionMoment"):
    """The same point as a C{moment}, as the timeline has it."""

    id: str
    label: str
    kind: str
    fsSnapshotId: str | None = None


class SnapshotCreatedEvent(_Numbered, tag="timeline.fsSnapshot.created"):
    """The session's files are kept as they were."""

    id: str
    label: str
    provider: str
    snapshot: SnapshotPart


class BranchCreatedEvent(_Numbered, tag="timeline.sessionBranch.created"):
    """Another session goes on from a snapshot of this one."""

    branchId: str
    name: str
    fsSnapshotId: str | None = None


class ResyncEvent(msgspec.Struct, tag="resync", tag_field="type"):
    """Events before C{firstAvailable} are not kept any more."""

    ts: str
    sessionId: str
    firstAvailable: int


class HeartbeatEvent(msgspec.Struct, tag="heartbeat", tag_field="type"):
    """A sign of life, which has no id."""

    ts: str


EventDocument = (
    StatusEvent
    | LogEvent
    | MomentEvent
    | DeliveryEvent
    | SessionMomentEvent
    | SnapshotCreatedEvent
    | BranchCreatedEvent
    | ResyncEvent
    | HeartbeatEvent
)
"""What the description says of an event; what is told is made of what was stored."""


def documentOf(event: Event) -> dict[str, Any]:
    """An event as JSON."""
    return {
        "type": event.type,
        "ts": timestamp(event.at),
        "seq": event.seq,
        "sessionId": event.session,
        **{name: value for name, value in event.data.items() if name not in _OWN},
    }


_OWN = frozenset({"type", "ts", "seq", "sessionId"})
