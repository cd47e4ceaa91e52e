# -*- test-case-name: tests.api.test_operations,tests.api.test_tasks -*-
"""
Sessions: what runs, and what people do to it.

Ending a session ends its tokens and cuts its tunnel.
"""

from __future__ import annotations

from shlex import quote
from typing import Annotated, Any, Final, Literal

import msgspec
from twisted.internet.task import deferLater

from helix_revdial.api.asked_session import taskOf
from helix_revdial.api.authority import asking
from helix_revdial.api.services import Services
from helix_revdial.api.session_document import (
    PATH,
    SessionDocument,
    WorkspaceDocument,
    documentOf,
    workspaceOf,
)
from helix_revdial.api.token_audit import noteToken
from helix_revdial.http.openapi import NO_CONTROLS
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem
from helix_revdial.http.response import Response, jsonResponse
from helix_revdial.sessions.executor import ExecutorRefused, ExecutorUnreachable
from helix_revdial.sessions.lifecycle import TERMINAL, Illegal
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.sessions import LISTED
from helix_revdial.telemetry.timestamps import timestamp

MAX_PROMPT = 16 * 1024
"""Characters of a prompt to a session that runs."""

MAX_PROMPT_BODY = 256 * 1024
"""Bytes of a body with such a prompt: as JSON a character may take 12 of them."""

_Prompt = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PROMPT)]


class NewSession(msgspec.Struct, forbid_unknown_fields=True):
    """What a sandbox's session is made from."""

    name: Annotated[
        str,
        msgspec.Meta(min_length=1, max_length=200, extra_json_schema={"pattern": NO_CONTROLS}),
    ]


class Page(msgspec.Struct, rename="camel"):
    """Which part of a list."""

    page: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    perPage: Annotated[int, msgspec.Meta(ge=1, le=200)] = 20


_STATUS = "(" + "|".join(LISTED) + ")"
_STATUSES = f"^{_STATUS}(,{_STATUS})*$"


class SessionQuery(Page):
    """Which sessions, and which part of their list."""

    status: list[Annotated[str, msgspec.Meta(extra_json_schema={"pattern": _STATUSES})]] = (
        msgspec.field(default_factory=list)
    )
    agent: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    projectId: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    tenantId: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None


class SessionList(msgspec.Struct, omit_defaults=True):
    """One page; C{nextPage} is absent on the last."""

    items: list[SessionDocument]
    total: int
    nextPage: str | None = None


class SessionState(msgspec.Struct):
    """What has become of what was asked for, so far."""

    id: str
    status: str


class StopReason(msgspec.Struct, forbid_unknown_fields=True):
    """Why; it stands in the session's events."""

    reason: Annotated[str, msgspec.Meta(max_length=1000)] | None = None


class ResumePrompt(msgspec.Struct, forbid_unknown_fields=True):
    """What the agent is told when it goes on."""

    prompt: _Prompt | None = None


class Prompt(msgspec.Struct, forbid_unknown_fields=True):
    """What the agent is told."""

    prompt: _Prompt


class PromptAccepted(msgspec.Struct):
    """The agent's host has it."""

    sessionId: str
    accepted: bool
    ts: str


class FleetPart(msgspec.Struct):
    """The hosts of a session."""

    leader: str | None
    followers: list[dict[str, Any]]


class EndpointsPart(msgspec.Struct):
    """Where to look."""

    events: str


class SessionInfo(msgspec.Struct):
    """A session in short."""

    id: str
    status: str
    fleet: FleetPart
    endpoints: EndpointsPart


class OpenIde(msgspec.Struct, forbid_unknown_fields=True):
    """With what."""

    ide: Literal["vscode", "cursor", "windsurf"]


class IdeCommands(msgspec.Struct):
    """What to type on one's own machine."""

    ide: str
    commands: list[str]
    notes: str


PIECE: Final = 256 * 1024
"""Characters of prompts that a list looks through in one go."""

_IDE_PROGRAMS = {"vscode": "code", "cursor": "cursor", "windsurf": "windsurf"}


def operations(services: Services) -> list[Operation]:
    """Create, list, get, and what is done to a session."""

    def document(session: Session) -> SessionDocument:
        return documentOf(session, services.secretSettings(session.agentType or ""))

    async def create(call: Call) -> Response:
        principal = asking(call)
        assert principal.user is not None
        session = await services.sessions.create(
            name=call.body.name,
            tenant=principal.tenant,
            owner=principal.user,
            project=principal.project,
            also=lambda connection, session: call.remember(_created(session))(connection),
        )
        return _created(session)

    async def listAll(call: Call) -> SessionList:
        principal = asking(call)
        query = call.query
        project = query.projectId
        if query.tenantId not in (None, principal.tenant):
            return SessionList([], 0)
        if principal.project is not None:
            if project not in (None, principal.project):
                return SessionList([], 0)
            project = principal.project
        found = await services.sessions.list(
            tenant=principal.tenant,
            visibleTo=None if principal.hasRole("admin") else principal.user,
            status=[word for text in query.status for word in text.split(",")],
            agent=query.agent,
            project=project,
            page=query.page,
            perPage=query.perPage,
        )
        items: list[SessionDocument] = []
        written = 0
        for session in found.items:
            items.append(document(session))
            written += len(items[-1].prompt or "")
            if written > PIECE:
                # To look through so much text takes time that others are to have, too.
                await deferLater(services.clock, 0)
                written = 0
        return SessionList(
            items,
            found.total,
            None if found.nextPage is None else str(found.nextPage),
        )

    async def get(call: Call) -> SessionDocument:
        return document(call.resource)

    async def info(call: Call) -> SessionInfo:
        session: Session = call.resource
        return SessionInfo(
            session.id,
            session.status,
            FleetPart(session.executor, []),
            EndpointsPart(f"{PATH}/{session.id}/events"),
        )

    async def delete(call: Call) -> Response:
        session: Session = call.resource
        if session.kind == "task" and session.status not in TERMINAL:
            try:
                ending = await services.driver.end(session.id, cancel=True)
            except Illegal:
                # It has ended in the meantime.
                pass
            else:
                return _state(ending)
        # The control plane cuts the tunnel when it is told of the deletion.
        await services.driver.delete(session)
        for record in await services.tokens.revokeSession(session.id):
            noteToken(services.audit, call, "token-revoked", record)
        return Response(204)

    async def stop(call: Call) -> Response:
        session = taskOf(call)
        return _state(await services.driver.end(session.id, reason=call.body.reason))

    async def pause(call: Call) -> Response:
        return _state(await services.driver.pause(taskOf(call).id))

    async def resume(call: Call) -> Response:
        return _state(await services.driver.resume(taskOf(call).id, call.body.prompt))

    async def prompt(call: Call) -> PromptAccepted:
        session = taskOf(call)
        if session.status in TERMINAL:
            raise Problem(410, f"The session is {session.status}.", code="session-over")
        await services.driver.prompt(session, call.body.prompt)
        return PromptAccepted(session.id, True, timestamp(services.wallClock()))

    async def workspace(call: Call) -> WorkspaceDocument:
        return _workspace(taskOf(call))

    async def openIde(call: Call) -> IdeCommands:
        session = taskOf(call)
        place = _workspace(session)
        program = _IDE_PROGRAMS[call.body.ide]
        runner = services.runnerOf(session.id)
        return IdeCommands(
            call.body.ide,
            [
                f"helix forward {runner} 127.0.0.1:2222:ssh",
                f"{program} --remote ssh-remote+127.0.0.1:2222 {quote(place.mountPath)}",
            ],
            "The first command keeps a port of this machine open to the session's sshd, where its "
            "sandbox offers the target ssh; run the second beside it.",
        )

    ended = (401, 403, 404, 409)
    return [
        Operation(
            name="createSession",
            method="POST",
            path=PATH,
            run=create,
            access="operator",
            body=NewSession,
            response=SessionDocument,
            status=201,
            errors=(401, 403),
            summary="Make the session of a sandbox that somebody else runs, owned by the caller.",
            tags=("sessions",),
        ),
        Operation(
            name="listSessions",
            method="GET",
            path=PATH,
            run=listAll,
            access="user",
            query=SessionQuery,
            response=SessionList,
            errors=(401, 403),
            summary="The tenant's tasks and the caller's sandboxes, newest first.",
            tags=("sessions",),
        ),
        Operation(
            name="getSession",
            method="GET",
            path=PATH + "/{session}",
            run=get,
            access="task-viewer",
            response=SessionDocument,
            errors=(401, 403, 404),
            summary="One session.",
            tags=("sessions",),
        ),
        Operation(
            name="getSessionInfo",
            method="GET",
            path=PATH + "/{session}/info",
            run=info,
            access="task-viewer",
            response=SessionInfo,
            errors=(401, 403, 404),
            summary="One session in short.",
            tags=("sessions",),
        ),
        Operation(
            name="deleteSession",
            method="DELETE",
            path=PATH + "/{session}",
            run=delete,
            access="session-operator",
            response=SessionState,
            status=202,
            otherStatuses=(204,),
            errors=(401, 403, 404),
            summary="End a session and remove what is left of it.",
            description="A task that runs is cancelled: 202, and it becomes cancelled. What has "
            "ended, and a sandbox's session, is removed: 204.",
            tags=("sessions",),
        ),
        Operation(
            name="stopSession",
            method="POST",
            path=PATH + "/{session}/stop",
            run=stop,
            access="session-operator",
            body=StopReason,
            response=SessionState,
            status=202,
            errors=ended,
            summary="Ask a task to end; it is ended by force at a deadline.",
            tags=("sessions",),
        ),
        Operation(
            name="pauseSession",
            method="POST",
            path=PATH + "/{session}/pause",
            run=pause,
            access="session-operator",
            response=SessionState,
            status=202,
            errors=ended,
            summary="Freeze a task that runs.",
            tags=("sessions",),
        ),
        Operation(
            name="resumeSession",
            method="POST",
            path=PATH + "/{session}/resume",
            run=resume,
            access="session-operator",
            body=ResumePrompt,
            maxBody=MAX_PROMPT_BODY,
            response=SessionState,
            status=202,
            errors=ended,
            summary="Let a paused task go on.",
            tags=("sessions",),
        ),
        Operation(
            name="promptSession",
            method="POST",
            path=PATH + "/{session}/prompt",
            run=prompt,
            access="session-operator",
            body=Prompt,
            maxBody=MAX_PROMPT_BODY,
            response=PromptAccepted,
            status=202,
            errors=(*ended, 410, 503),
            summary="Tell the agent of a task that runs more.",
            tags=("sessions",),
        ),
        Operation(
            name="getSessionWorkspace",
            method="GET",
            path=PATH + "/{session}/workspace",
            run=workspace,
            access="task-viewer",
            response=WorkspaceDocument,
            errors=ended,
            summary="Where a task's files are.",
            tags=("sessions",),
        ),
        Operation(
            name="openSessionInIde",
            method="POST",
            path=PATH + "/{session}/open/ide",
            run=openIde,
            access="session-operator",
            body=OpenIde,
            response=IdeCommands,
            errors=ended,
            summary="The commands that open a task's files in an editor.",
            tags=("sessions",),
        ),
    ]


def translate(error: Exception) -> Problem | None:
    """What the errors of sessions mean to a caller."""
    match error:
        case Illegal():
            return Problem(409, str(error), code=f"session-{error.status}")
        case ExecutorRefused():
            return Problem(409, f"The session's runner refuses it: {error}.", code="refused")
        case ExecutorUnreachable():
            return Problem(
                503,
                "The session's runner cannot be reached now; try again.",
                headers=[(b"Retry-After", b"2")],
                code="runner-unreachable",
            )
        case _:
            return None


def _workspace(session: Session) -> WorkspaceDocument:
    found = workspaceOf(session)
    if found is None:
        why = (
            "it never had a workspace" if session.status in TERMINAL else "it has no workspace yet"
        )
        raise Problem(409, f"The session is {session.status}: {why}.", code="no-workspace")
    return found


def _created(session: Session) -> Response:
    return jsonResponse(201, documentOf(session), location=f"{PATH}/{session.id}")


def _state(session: Session) -> Response:
    return jsonResponse(202, SessionState(session.id, session.status))
