# -*- test-case-name: tests.api.test_timeline -*-
"""
A session's time: what there is of it, as a list and as a recording; what people add;
and going on from a point of it in another session.

A time is given as people have it: a number is seconds since the session's begin, a text
is a moment as RFC 3339 writes it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any

import msgspec
from twisted.logger import Logger

from helix_revdial.api.authority import asking
from helix_revdial.api.services import Services
from helix_revdial.api.session_document import PATH, Links, RecordingPart, linksOf, recordingOf
from helix_revdial.api.sessions import MAX_PROMPT_BODY
from helix_revdial.api.tasks import checkTask
from helix_revdial.http.openapi import NO_CONTROLS
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem, validationProblem
from helix_revdial.http.response import Response, jsonResponse
from helix_revdial.sessions.moments import MAX_LABEL, Moment, Snapshot, TimelineFull
from helix_revdial.sessions.recording import TYPES, Recording
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.tasks import TaskRequest, TaskWorkspace
from helix_revdial.sessions.timeline import MAX_BRANCHES, hasBegun
from helix_revdial.storage.database import DatabaseUnavailable
from helix_revdial.telemetry.timestamps import timestamp

CAST = "application/x-asciicast"

PIECE = 500
"""Events of a recording that are read at once."""

MAX_MESSAGE = 16 * 1024
"""Characters of what a branch's agent is told."""

_Label = Annotated[
    str,
    msgspec.Meta(min_length=1, max_length=MAX_LABEL, extra_json_schema={"pattern": NO_CONTROLS}),
]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=10_000_000_000)]
_Moment = Annotated[str, msgspec.Meta(max_length=40)]
_Time = _Seconds | _Moment
_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=40)]


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
    ts: _Time | None = None


class NewSnapshot(msgspec.Struct, forbid_unknown_fields=True):
    """What a snapshot is called."""

    label: _Label | None = None


class Seek(msgspec.Struct, forbid_unknown_fields=True):
    """Where to: one of the two."""

    ts: _Time | None = None
    fsSnapshotId: _Id | None = None


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


class NewBranch(msgspec.Struct, forbid_unknown_fields=True):
    """Where from (one of the two), what it is called, and what its agent is told."""

    name: Annotated[
        str,
        msgspec.Meta(min_length=1, max_length=100, extra_json_schema={"pattern": NO_CONTROLS}),
    ]
    fromTs: _Time | None = None
    fsSnapshotId: _Id | None = None
    injectedMessage: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_MESSAGE)] | None = (
        None
    )


def _eitherOf(time: str) -> dict[str, Any]:
    """The rule that there is a time or a snapshot, and not both."""
    nothing = {"type": "null"}
    return {
        "oneOf": [
            {
                "properties": {
                    time: {"type": ["number", "string"]},
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


class BranchWorkspace(msgspec.Struct, omit_defaults=True):
    """What a branch's workspace will be."""

    snapshotProvider: str
    snapshot: SnapshotPart
    executionHostId: str | None = None


class BranchMade(msgspec.Struct, omit_defaults=True):
    """A session that waits for its host."""

    id: str
    sessionId: str
    name: str
    status: str
    sessionBranchOf: str
    fsSnapshotId: str
    workspace: BranchWorkspace
    links: Links


_log = Logger()

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def operations(services: Services) -> list[Operation]:
    """The timeline's."""
    timeline = services.timeline

    async def get(call: Call) -> TimelineDocument:
        session = _task(call)
        begin, end = timeline.bounds(session)
        snapshots = await timeline.snapshots(session.id)
        moments = await timeline.moments(session.id)
        return TimelineDocument(
            session.id,
            timestamp(begin),
            round(end - begin, 3),
            recordingOf(session.id),
            [_moment(one, begin) for one in moments],
            [_snapshot(one, begin, moments) for one in snapshots],
            [_branch(one) for one in await timeline.branches(session)],
        )

    async def recording(call: Call) -> Response:
        session = _task(call)
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
        session = _begun(call)
        begin, _ = timeline.bounds(session)
        asked: NewMoment = call.body
        _plain(asked.label, "label")
        at = None if asked.ts is None else _instant(asked.ts, begin, "ts")
        return jsonResponse(201, _moment(await timeline.mark(session, asked.label, at), begin))

    async def listSnapshots(call: Call) -> SnapshotList:
        session = _task(call)
        begin, _ = timeline.bounds(session)
        moments = await timeline.moments(session.id)
        found = await timeline.snapshots(session.id)
        return SnapshotList([_snapshot(one, begin, moments) for one in found], len(found))

    async def addSnapshot(call: Call) -> Response:
        session = _begun(call)
        if session.executor is None or session.workspace is None or session.status == "stopping":
            raise _conflict(session, "there is nothing to be kept now")
        if session.forgotten is not None:
            raise Problem(410, "The session's workspace has been removed.", code="session-over")
        begin, _ = timeline.bounds(session)
        label = call.body.label or f"snapshot of {session.id}"
        _plain(label, "label")

        def answer(snapshot: Snapshot, moment: Moment | None) -> Response:
            return jsonResponse(201, _snapshot(snapshot, begin, [] if moment is None else [moment]))

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
        session = _begun(call)
        begin, _ = timeline.bounds(session)
        asked: Seek = call.body
        snapshot: Snapshot | None = None
        if asked.fsSnapshotId is not None:
            _oneOf(asked.ts, "ts")
            snapshot = await _known(session, asked.fsSnapshotId)
            point = await timeline.pointAt(session, snapshot.at)
        elif asked.ts is not None:
            point = await timeline.pointAt(session, _instant(asked.ts, begin, "ts"))
            snapshot = point.snapshot
        else:
            raise validationProblem({"ts": ["is required, or fsSnapshotId"]})
        document = SeekDocument(session.id, timestamp(point.at), _offset(point.at, begin))
        if point.moment is not None:
            document.moment = _moment(point.moment, begin)
        if snapshot is not None:
            document.fsSnapshot = _snapshot(snapshot, begin, [])
            document.view = _view(session, snapshot)
        return document

    async def branch(call: Call) -> Response:
        session = _begun(call)
        principal = asking(call)
        assert principal.user is not None
        asked: NewBranch = call.body
        _plain(asked.name, "name")
        snapshot = await _branchingPoint(session, asked)
        if session.forgotten is not None:
            raise Problem(410, "The session's workspace has been removed.", code="session-over")
        if session.executor is None or snapshot.name is None:
            raise _conflict(session, "its host keeps no such snapshot")
        if services.executors.get(session.executor) is None:
            raise Problem(
                503,
                f"The session's runner, {session.executor}, is not known to this server now.",
                headers=[(b"Retry-After", b"5")],
                code="runner-unreachable",
            )
        if len(await timeline.branches(session)) >= MAX_BRANCHES:
            raise Problem(
                409, f"A session has {MAX_BRANCHES} branches at most.", code="too-many-branches"
            )
        request = _branched(session, asked)
        checkTask(services, request, principal.tenant)

        def answer(made: Session) -> Response:
            return jsonResponse(
                201,
                BranchMade(
                    made.id,
                    made.id,
                    made.name,
                    made.status,
                    session.id,
                    snapshot.id,
                    BranchWorkspace(
                        snapshot.provider,
                        SnapshotPart(snapshot.name, snapshot.mount),
                        session.executor,
                    ),
                    linksOf(made.id),
                ),
                location=linksOf(made.id).self,
            )

        made = await services.sessions.createTask(
            request,
            tenant=principal.tenant,
            owner=principal.user,
            project=session.project,
            name=asked.name,
            branchOf=session.id,
            branchSnapshot={"id": snapshot.id, "name": snapshot.name},
            also=lambda connection, made: call.remember(answer(made))(connection),
        )
        services.driver.submit(made)
        try:
            await timeline.branched(session.id, made)
        except DatabaseUnavailable as error:
            # It is there, and stands in the timeline; only its event is missing.
            _log.warn("A branch is not told of: {error}", error=error)
        return answer(made)

    async def _known(session: Session, snapshot: str) -> Snapshot:
        found = await timeline.snapshot(session.id, snapshot)
        if found is None:
            raise Problem(404, f"The session has no snapshot {snapshot}.", code="unknown-snapshot")
        return found

    async def _branchingPoint(session: Session, asked: NewBranch) -> Snapshot:
        if asked.fsSnapshotId is not None:
            _oneOf(asked.fromTs, "fromTs")
            return await _known(session, asked.fsSnapshotId)
        if asked.fromTs is None:
            raise validationProblem({"fromTs": ["is required, or fsSnapshotId"]})
        begin, _ = timeline.bounds(session)
        found = await timeline.before(session.id, _instant(asked.fromTs, begin, "fromTs"))
        if found is None:
            raise Problem(409, "The session had no snapshot by then.", code="no-snapshot")
        return found

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
            rules=_eitherOf("ts"),
            response=SeekDocument,
            errors=(400, *ended),
            summary="Where a time of a session leads: its moment, its snapshot, its files.",
            tags=("timeline",),
        ),
        Operation(
            name="branchSession",
            method="POST",
            path=PATH + "/{session}/session-branch",
            run=branch,
            access="session-operator",
            body=NewBranch,
            rules=_eitherOf("fromTs"),
            maxBody=MAX_PROMPT_BODY,
            response=BranchMade,
            status=201,
            errors=(*ended, 410, 503),
            summary="Do a session's task again from a snapshot of its files on.",
            description="The new session runs on the same host, with the same agent and delivery. "
            "It is told the same prompt, and injectedMessage after it.",
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


def _task(call: Call) -> Session:
    session: Session = call.resource
    if session.kind != "task":
        raise Problem(409, "Somebody else runs this sandbox, not this server.", code="not-a-task")
    return session


def _begun(call: Call) -> Session:
    session = _task(call)
    if not hasBegun(session):
        raise _conflict(session, "it has not begun")
    return session


def _conflict(session: Session, why: str) -> Problem:
    return Problem(
        409, f"The session is {session.status}: {why}.", code=f"session-{session.status}"
    )


def _instant(given: float | str, begin: float, field: str) -> float:
    """Seconds since the epoch."""
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


def _plain(text: str, field: str) -> None:
    """Text that is shown in a line, and kept in any database."""
    if _CONTROL.search(text) is not None:
        raise validationProblem({field: ["has control characters"]})


def _oneOf(other: object, field: str) -> None:
    if other is not None:
        raise validationProblem({field: ["is not given together with fsSnapshotId"]})


def _branched(session: Session, asked: NewBranch) -> TaskRequest:
    """What a branch is asked to do."""
    request = session.request
    request.draftId = None
    if asked.injectedMessage is not None:
        request.prompt = f"{request.prompt}\n\n{asked.injectedMessage}"
    delivery = request.delivery
    if delivery is not None and delivery.mode == "branch":
        # What the first session pushed, or will, is not what this one builds on.
        delivery.targetBranch = None
    workspace = request.workspace or TaskWorkspace()
    workspace.executionHostId = session.executor
    request.workspace = workspace
    return request


def _offset(at: float, begin: float) -> float:
    return max(round(at - begin, 3), 0.0)


def _moment(moment: Moment, begin: float) -> MomentDocument:
    return MomentDocument(
        moment.id,
        timestamp(moment.at),
        _offset(moment.at, begin),
        moment.label,
        moment.kind,
        moment.snapshot,
    )


def _snapshot(snapshot: Snapshot, begin: float, moments: list[Moment]) -> SnapshotDocument:
    linked = next((one.id for one in moments if one.snapshot == snapshot.id), None)
    return SnapshotDocument(
        snapshot.id,
        timestamp(snapshot.at),
        _offset(snapshot.at, begin),
        snapshot.label,
        snapshot.provider,
        SnapshotPart(snapshot.name, snapshot.mount),
        linked,
    )


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
