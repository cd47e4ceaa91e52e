# -*- test-case-name: tests.api.test_branches -*-
"""
Going on from a point of a session's time in another session: a branch.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from twisted.logger import Logger

from helix_revdial.api.asked_session import begunOf, checkKept, conflict
from helix_revdial.api.authority import asking
from helix_revdial.api.services import Services
from helix_revdial.api.session_document import PATH, Links, linksOf
from helix_revdial.api.session_points import (
    SnapshotId,
    SnapshotPart,
    Time,
    checkAlone,
    checkPlain,
    eitherOf,
    instantOf,
    snapshotOf,
)
from helix_revdial.api.sessions import MAX_PROMPT_BODY
from helix_revdial.api.tasks import checkTask
from helix_revdial.http.openapi import NO_CONTROLS
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem, validationProblem
from helix_revdial.http.response import Response, jsonResponse
from helix_revdial.sessions.moments import Snapshot
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.tasks import TaskRequest, TaskWorkspace
from helix_revdial.sessions.timeline import MAX_BRANCHES
from helix_revdial.storage.failures import DatabaseUnavailable

MAX_MESSAGE = 16 * 1024
"""Characters of what a branch's agent is told."""


class NewBranch(msgspec.Struct, forbid_unknown_fields=True):
    """Where from (one of the two), what it is called, and what its agent is told."""

    name: Annotated[
        str,
        msgspec.Meta(min_length=1, max_length=100, extra_json_schema={"pattern": NO_CONTROLS}),
    ]
    fromTs: Time | None = None
    fsSnapshotId: SnapshotId | None = None
    injectedMessage: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_MESSAGE)] | None = (
        None
    )


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


def operations(services: Services) -> list[Operation]:
    """The one."""
    timeline = services.timeline

    async def branch(call: Call) -> Response:
        session = begunOf(call)
        principal = asking(call)
        assert principal.user is not None
        asked: NewBranch = call.body
        checkPlain(asked.name, "name")
        snapshot = await _branchingPoint(session, asked)
        checkKept(session)
        if session.executor is None or snapshot.name is None:
            raise conflict(session, "its host keeps no such snapshot")
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

    async def _branchingPoint(session: Session, asked: NewBranch) -> Snapshot:
        if asked.fsSnapshotId is not None:
            checkAlone(asked.fromTs, "fromTs")
            return await snapshotOf(timeline, session.id, asked.fsSnapshotId)
        if asked.fromTs is None:
            raise validationProblem({"fromTs": ["is required, or fsSnapshotId"]})
        begin, _ = timeline.bounds(session)
        found = await timeline.before(session.id, instantOf(asked.fromTs, begin, "fromTs"))
        if found is None:
            raise Problem(409, "The session had no snapshot by then.", code="no-snapshot")
        return found

    return [
        Operation(
            name="branchSession",
            method="POST",
            path=PATH + "/{session}/session-branch",
            run=branch,
            access="session-operator",
            body=NewBranch,
            rules=eitherOf("fromTs"),
            maxBody=MAX_PROMPT_BODY,
            response=BranchMade,
            status=201,
            errors=(401, 403, 404, 409, 410, 503),
            summary="Do a session's task again from a snapshot of its files on.",
            description="The new session runs on the same host, with the same agent and delivery. "
            "It is told the same prompt, and injectedMessage after it.",
            tags=("timeline",),
        ),
    ]


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
