# -*- test-case-name: tests.api.test_timeline -*-
"""
A session's time: what there is of it, as a list and as a recording; where a point of it
leads; and what people add.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import msgspec

from helix_revdial.api.asked_session import begunOf, checkKept, conflict, taskOf
from helix_revdial.api.services import Services
from helix_revdial.api.session_document import PATH, RecordingPart, recordingOf
from helix_revdial.api.session_points import (
    MomentDocument,
    SnapshotDocument,
    SnapshotId,
    Time,
    checkAlone,
    checkPlain,
    eitherOf,
    instantOf,
    momentDocument,
    offsetOf,
    snapshotDocument,
    snapshotOf,
    written,
)
from helix_revdial.http.openapi import NO_CONTROLS
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem, validationProblem
from helix_revdial.http.response import Response, jsonResponse
from helix_revdial.sessions.moments import MAX_LABEL, Moment, Snapshot, TimelineFull
from helix_revdial.sessions.recording import TYPES, Recording
from helix_revdial.sessions.records import Session
from helix_revdial.telemetry.timestamps import timestamp

CAST = "application/x-asciicast"

PIECE = 500
"""Events of a recording that are read at once."""

_Label = Annotated[
    str,
    msgspec.Meta(min_length=1, max_length=MAX_LABEL, extra_json_schema={"pattern": NO_CONTROLS}),
]


class BranchDocument(msgspec.Struct):
    """A session that began with a snapshot of this one."""

    sessionId: str
    ts: str
    name: str
    status: str
    fsSnapshotId: str | None


class TimelineDocument(msgspec.Struct):
    """All that there is of a session's time."""

    sessionId: str
    startedAt: str
    durationSec: float
    recording: RecordingPart
    moments: list[MomentDocument]
    fsSnapshots: list[SnapshotDocument]
    branches: list[BranchDocument]


class SnapshotList(msgspec.Struct):
    """Every snapshot of a session, oldest first."""

    items: list[SnapshotDocument]
    total: int


class NewMoment(msgspec.Struct, forbid_unknown_fields=True):
    """A moment; now, or at the session's end, when no time is given."""

    label: _Label
    ts: Time | None = None


class NewSnapshot(msgspec.Struct, forbid_unknown_fields=True):
    """What a snapshot is called."""

    label: _Label | None = None


class Seek(msgspec.Struct, forbid_unknown_fields=True):
    """Where to: one of the two."""

    ts: Time | None = None
    fsSnapshotId: SnapshotId | None = None


class ViewPart(msgspec.Struct, omit_defaults=True):
    """Where the files of then can be read."""

    mount: str
    readOnly: bool
    host: str | None = None
    executionHostId: str | None = None


class SeekDocument(msgspec.Struct, omit_defaults=True):
    """Where a time leads; C{view} where the snapshot's provider has one."""

    sessionId: str
    ts: str
    offsetSec: float
    moment: MomentDocument | None = None
    fsSnapshot: SnapshotDocument | None = None
    view: ViewPart | None = None


def operations(services: Services) -> list[Operation]:
    """The timeline's."""
    timeline = services.timeline

    async def get(call: Call) -> TimelineDocument:
        session = taskOf(call)
        begin, end = timeline.bounds(session)
        snapshots = await timeline.snapshots(session.id)
        moments = await timeline.moments(session.id)
        return TimelineDocument(
            session.id,
            timestamp(begin),
            round(end - begin, 3),
            recordingOf(session.id),
            [momentDocument(one, begin) for one in moments],
            [snapshotDocument(one, begin, moments) for one in snapshots],
            [_branch(one) for one in await timeline.branches(session)],
        )

    async def recording(call: Call) -> Response:
        session = taskOf(call)
        headers = [
            (b"Content-Type", CAST.encode()),
            (
                b"Content-Disposition",
                f'attachment; filename="{session.id}.cast"'.encode("ascii"),
            ),
        ]
        return Response(200, headers, _recording(session))

    async def _recording(session: Session) -> AsyncIterator[bytes]:
        begin, _ = timeline.bounds(session)
        made = Recording(session.name, begin, maxBytes=services.config.sessions.recordingBytes)
        yield made.head()
        after = 0
        while not made.full and after < session.lastSeq:
            events = await services.events.read(session.id, after, PIECE, types=TYPES)
            # What happens from now on is not in it: the answer has an end.
            lines = made.add(event for event in events if event.seq <= session.lastSeq)
            if lines:
                yield lines
            if not events:
                return
            after = events[-1].seq

    async def addMoment(call: Call) -> Response:
        session = begunOf(call)
        begin, _ = timeline.bounds(session)
        asked: NewMoment = call.body
        checkPlain(asked.label, "label")
        at = None if asked.ts is None else instantOf(asked.ts, begin, "ts")
        return jsonResponse(
            201, momentDocument(await timeline.mark(session, asked.label, at), begin)
        )

    async def listSnapshots(call: Call) -> SnapshotList:
        session = taskOf(call)
        begin, _ = timeline.bounds(session)
        moments = await timeline.moments(session.id)
        found = await timeline.snapshots(session.id)
        return SnapshotList([snapshotDocument(one, begin, moments) for one in found], len(found))

    async def addSnapshot(call: Call) -> Response:
        session = begunOf(call)
        if session.executor is None or session.workspace is None or session.status == "stopping":
            raise conflict(session, "there is nothing to be kept now")
        checkKept(session)
        begin, _ = timeline.bounds(session)
        label = call.body.label or f"snapshot of {session.id}"
        checkPlain(label, "label")

        def answer(snapshot: Snapshot, moment: Moment | None) -> Response:
            return jsonResponse(
                201, snapshotDocument(snapshot, begin, [] if moment is None else [moment])
            )

        snapshot, moment = await timeline.keep(
            session,
            services.executors.reach(session.executor),
            label,
            also=lambda connection, snapshot, moment: call.remember(answer(snapshot, moment))(
                connection
            ),
        )
        return answer(snapshot, moment)

    async def seek(call: Call) -> SeekDocument:
        session = begunOf(call)
        begin, _ = timeline.bounds(session)
        asked: Seek = call.body
        snapshot: Snapshot | None = None
        if asked.fsSnapshotId is not None:
            checkAlone(asked.ts, "ts")
            snapshot = await snapshotOf(timeline, session.id, asked.fsSnapshotId)
            point = await timeline.pointAt(session, snapshot.at)
        elif asked.ts is not None:
            point = await timeline.pointAt(session, instantOf(asked.ts, begin, "ts"))
            snapshot = point.snapshot
        else:
            raise validationProblem({"ts": ["is required, or fsSnapshotId"]})
        document = SeekDocument(session.id, timestamp(point.at), offsetOf(point.at, begin))
        if point.moment is not None:
            document.moment = momentDocument(point.moment, begin)
        if snapshot is not None:
            document.fsSnapshot = snapshotDocument(snapshot, begin, [])
            document.view = _view(session, snapshot)
        return document

    ended = (401, 403, 404, 409)
    return [
        Operation(
            name="getSessionTimeline",
            method="GET",
            path=PATH + "/{session}/timeline",
            run=get,
            access="task-viewer",
            response=TimelineDocument,
            errors=ended,
            summary="A session's recording, moments, snapshots and branches.",
            tags=("timeline",),
        ),
        Operation(
            name="getSessionRecording",
            method="GET",
            path=PATH + "/{session}/recording",
            run=recording,
            access="task-viewer",
            media=(CAST,),
            errors=ended,
            summary="A session's output as a recording of a terminal (asciicast, version 2).",
            description="What there is when it is asked for; moments are markers.",
            tags=("timeline",),
        ),
        Operation(
            name="createSessionMoment",
            method="POST",
            path=PATH + "/{session}/moments",
            run=addMoment,
            access="session-operator",
            body=NewMoment,
            rules=written("ts"),
            response=MomentDocument,
            status=201,
            errors=ended,
            summary="Give a point of a session's time a name.",
            tags=("timeline",),
        ),
        Operation(
            name="listSessionSnapshots",
            method="GET",
            path=PATH + "/{session}/fs-snapshots",
            run=listSnapshots,
            access="task-viewer",
            response=SnapshotList,
            errors=ended,
            summary="The snapshots of a session's files.",
            tags=("timeline",),
        ),
        Operation(
            name="createSessionSnapshot",
            method="POST",
            path=PATH + "/{session}/fs-snapshots",
            run=addSnapshot,
            access="session-operator",
            body=NewSnapshot,
            response=SnapshotDocument,
            status=201,
            errors=(*ended, 410, 503),
            summary="Have a session's host keep its files as they are.",
            description="What runs is frozen meanwhile. There is a moment of the same label.",
            tags=("timeline",),
        ),
        Operation(
            name="seekSession",
            method="POST",
            path=PATH + "/{session}/seek",
            run=seek,
            access="task-viewer",
            body=Seek,
            rules=eitherOf("ts"),
            response=SeekDocument,
            errors=(400, *ended),
            summary="Where a time of a session leads: its moment, its snapshot, its files.",
            tags=("timeline",),
        ),
    ]


def translate(error: Exception) -> Problem | None:
    """What the errors of timelines mean to a caller."""
    match error:
        case TimelineFull():
            text = str(error)
            return Problem(409, text[:1].upper() + text[1:] + ".", code="timeline-full")
        case _:
            return None


def _branch(session: Session) -> BranchDocument:
    snapshot = session.branchSnapshot or {}
    return BranchDocument(
        session.id, timestamp(session.created), session.name, session.status, snapshot.get("id")
    )


def _view(session: Session, snapshot: Snapshot) -> ViewPart | None:
    if snapshot.mount is None or session.forgotten is not None:
        return None
    host = (session.workspace or {}).get("host")
    return ViewPart(snapshot.mount, snapshot.readOnly, host, session.executor)
