# -*- test-case-name: tests.api.test_workspaces -*-
"""
Workspaces: the files of tasks, wherever they are.

A workspace is one session's, and has its id; it is there from the moment a host
has made it until the session is deleted.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from helix_revdial.api.authority import asking
from helix_revdial.api.services import Services
from helix_revdial.api.session_document import WorkspaceDocument, workspaceOf
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem
from helix_revdial.sessions.lifecycle import TERMINAL
from helix_revdial.sessions.records import Session
from helix_revdial.telemetry.timestamps import timestamp

WorkspaceStatus = Literal["active", "paused", "idle"]

_STATUS: Final[dict[str, WorkspaceStatus]] = {
    "queued": "active",
    "provisioning": "active",
    "running": "active",
    "resuming": "active",
    "stopping": "active",
    "pausing": "paused",
    "paused": "paused",
}
"""What a session's status makes of its workspace; C{idle} when it has ended."""


def statusesOf(workspace: WorkspaceStatus) -> list[str]:
    """The statuses of sessions whose workspaces are so."""
    if workspace == "idle":
        return sorted(TERMINAL)
    return [status for status, means in _STATUS.items() if means == workspace]


class WorkspaceTask(msgspec.Struct):
    """A task that used it."""

    sessionId: str
    status: str
    createdAt: str


class WorkspaceItem(msgspec.Struct, omit_defaults=True):
    """A workspace."""

    id: str
    status: WorkspaceStatus
    executorId: str | None
    age: int
    """Seconds since its task was handed in."""
    lastActivity: str
    details: WorkspaceDocument
    taskHistory: list[WorkspaceTask]
    projectId: str | None = None


class WorkspaceList(msgspec.Struct, omit_defaults=True):
    """One page; C{nextPage} is absent on the last."""

    items: list[WorkspaceItem]
    total: int
    nextPage: str | None = None


class WorkspaceQuery(msgspec.Struct):
    """Which workspaces, and which part of their list."""

    status: WorkspaceStatus | None = None
    projectId: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    page: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    perPage: Annotated[int, msgspec.Meta(ge=1, le=200)] = 20


def operations(services: Services) -> list[Operation]:
    """List and get."""

    def document(session: Session, details: WorkspaceDocument) -> WorkspaceItem:
        active = session.updated or session.created
        return WorkspaceItem(
            id=session.id,
            status=_STATUS.get(session.status, "idle"),
            executorId=session.executor,
            age=max(0, int(services.wallClock() - session.created)),
            lastActivity=timestamp(active),
            details=details,
            taskHistory=[WorkspaceTask(session.id, session.status, timestamp(session.created))],
            projectId=session.project,
        )

    async def listAll(call: Call) -> WorkspaceList:
        principal = asking(call)
        query = call.query
        project = query.projectId
        if principal.project is not None:
            if project not in (None, principal.project):
                return WorkspaceList([], 0)
            project = principal.project
        found = await services.sessions.list(
            tenant=principal.tenant,
            project=project,
            ran=True,
            status=() if query.status is None else statusesOf(query.status),
            page=query.page,
            perPage=query.perPage,
        )
        items = []
        for session in found.items:
            details = workspaceOf(session)
            if details is not None:
                items.append(document(session, details))
        following = None if found.nextPage is None else str(found.nextPage)
        return WorkspaceList(items, found.total, following)

    async def get(call: Call) -> WorkspaceItem:
        session: Session = call.resource
        details = workspaceOf(session)
        if details is None:
            raise Problem(404, "There is no such workspace (yet).", code="no-workspace")
        return document(session, details)

    return [
        Operation(
            name="listWorkspaces",
            method="GET",
            path="/api/v1/workspaces",
            run=listAll,
            access="viewer",
            query=WorkspaceQuery,
            response=WorkspaceList,
            errors=(400, 401, 403),
            summary="The workspaces of the tenant's tasks, the newest first.",
            tags=("discovery",),
        ),
        Operation(
            name="getWorkspaceById",
            method="GET",
            path="/api/v1/workspaces/{session}",
            run=get,
            access="task-viewer",
            response=WorkspaceItem,
            errors=(401, 403, 404),
            summary="One workspace.",
            tags=("discovery",),
        ),
    ]
