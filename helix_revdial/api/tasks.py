# -*- test-case-name: tests.api.test_tasks -*-
"""
Handing in a task.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection

from helix_revdial.api.authority import asking
from helix_revdial.api.services import Services
from helix_revdial.api.session_document import Links, linksOf
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem, validationProblem
from helix_revdial.http.response import Response, jsonResponse
from helix_revdial.sessions import drafts, uploads
from helix_revdial.sessions.drafts import UnknownDraft
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.tasks import (
    TaskForbidden,
    TaskInvalid,
    TaskPolicy,
    TaskRequest,
    validateTask,
)
from helix_revdial.sessions.uploads import UploadUnusable
from helix_revdial.sessions.webhook_calls import problemOf as webhookProblem
from helix_revdial.settings import webhookNetworks

MAX_TASK = 800 * 1024
"""Bytes of a task as JSON: the longest prompt, written with 12 bytes for each character, and
the rest; and less than a host takes (C{executor.operations.MAX_SPEC})."""


class TaskAccepted(msgspec.Struct):
    """A task that waits for its executor: C{id}, C{sessionId} and C{taskId} are one."""

    id: str
    sessionId: str
    taskId: str
    status: str
    links: Links


_MISSING: dict[str, Any] = {"type": ["string", "null"], "maxLength": 0}

RULES: dict[str, Any] = {
    "properties": {
        "repo": {
            "oneOf": [
                {
                    "properties": {
                        "mode": {"const": "git"},
                        "url": {"type": "string", "minLength": 1},
                    },
                    "required": ["url"],
                },
                {
                    "properties": {
                        "mode": {"const": "upload"},
                        "url": _MISSING,
                        "uploadToken": {"type": "string", "minLength": 1},
                    },
                    "required": ["uploadToken"],
                },
                {"properties": {"mode": {"const": "none"}, "url": _MISSING}},
            ]
        }
    }
}
"""What goes with each way to begin a workspace."""


def operations(services: Services) -> list[Operation]:
    """Create."""

    async def create(call: Call) -> Response:
        principal = asking(call)
        assert principal.user is not None
        request: TaskRequest = call.body
        if principal.project is not None:
            if request.projectId not in (None, principal.project):
                raise Problem(403, "The token is confined to another project.", code="not-allowed")
            request.projectId = principal.project
        checkTask(services, request, principal.tenant)

        def answer(session: Session) -> Response:
            accepted = TaskAccepted(
                session.id, session.id, session.id, session.status, linksOf(session.id)
            )
            return jsonResponse(201, accepted, location=accepted.links.self)

        tenant, owner = principal.tenant, principal.user

        def also(connection: Connection, session: Session) -> None:
            if request.draftId is not None:
                drafts.consume(connection, request.draftId, tenant, owner)
            if request.repo.mode == "upload" and request.repo.uploadToken is not None:
                uploads.consume(
                    connection,
                    request.repo.uploadToken,
                    tenant=tenant,
                    owner=owner,
                    session=session.id,
                    now=session.created,
                )
            services.outbox.know(session)
            call.remember(answer(session))(connection)

        try:
            session = await services.sessions.createTask(
                request, tenant=tenant, owner=owner, also=also
            )
        except UnknownDraft as error:
            raise validationProblem({"draftId": [str(error)]}) from None
        except UploadUnusable as error:
            raise validationProblem({"repo.uploadToken": [str(error)]}) from None
        services.driver.submit(session)
        return answer(session)

    return [
        Operation(
            name="createTask",
            method="POST",
            path="/api/v1/tasks",
            run=create,
            access="task-creator",
            body=TaskRequest,
            rules=RULES,
            maxBody=MAX_TASK,
            response=TaskAccepted,
            status=201,
            errors=(401, 403),
            summary="Hand in a task: an agent does it in a session of its own.",
            tags=("tasks",),
        ),
    ]


def checkTask(services: Services, request: TaskRequest, tenant: str) -> None:
    """
    Make sure that a task can be run here, for whatever way it came.

    @raise Problem: 400 with what is wrong with which field, or 403.
    """

    def hasExecutor(name: str) -> bool:
        known = services.executors.get(name)
        return known is not None and known.tenant in (None, tenant)

    policy = TaskPolicy(
        tenant=tenant,
        disabledRuntime=services.config.sessions.allowDisabledRuntime,
        agentFaults=lambda agent: services.agents.faults(agent.type, agent.version, agent.settings),
        hasExecutor=hasExecutor,
        webhookURL=lambda url: webhookProblem(url, webhookNetworks(services.config.webhooks)),
    )
    try:
        validateTask(request, policy)
    except TaskInvalid as error:
        raise validationProblem(error.errors) from None
    except TaskForbidden as error:
        raise Problem(403, str(error), code="runtime-not-allowed") from None
