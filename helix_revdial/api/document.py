# -*- test-case-name: tests.api.test_operations -*-
"""The whole operation table, and its own description as one of its rows."""

from __future__ import annotations

import msgspec

from helix_revdial import __version__
from helix_revdial.api import (
    audit,
    branches,
    connections,
    discovery,
    drafts,
    external_agents,
    forwards,
    health,
    patches,
    proxy,
    reload,
    runners,
    session_events,
    sessions,
    stream_gateway,
    streams,
    tasks,
    timeline,
    tokens,
    tunnel,
    uploads,
    webhooks,
    workspaces,
)
from helix_revdial.api.authority import Authority
from helix_revdial.api.problems import problemOf, retryAfter
from helix_revdial.api.services import Services
from helix_revdial.http.openapi import openapi
from helix_revdial.http.operations import JSON, Call, Operation, OperationTable
from helix_revdial.http.problem import Problem, validationProblem
from helix_revdial.http.response import Response
from helix_revdial.revdial.errors import DialError
from helix_revdial.sessions.sessions import SessionError
from helix_revdial.storage.failures import DatabaseUnavailable


def operationTable(services: Services, authority: Authority) -> OperationTable:
    """Every operation of the server."""
    document = b""

    async def describe(call: Call) -> Response:
        nonlocal document
        if not document:
            document = msgspec.json.encode(openapi(table))
        return Response(200, [(b"Content-Type", JSON.encode())], document)

    table = OperationTable(
        [
            *health.operations(services),
            *(
                Operation(
                    name=name,
                    method="GET",
                    path=path,
                    run=describe,
                    media=(JSON,),
                    summary="This document.",
                    tags=("health",),
                )
                for name, path in (
                    ("getOpenAPI", "/api/v1/openapi.json"),
                    ("getOpenAPIBare", "/openapi.json"),
                )
            ),
            *tunnel.operations(services),
            *connections.operations(services),
            *streams.operations(services),
            *forwards.operations(services),
            *reload.operations(services),
            *external_agents.operations(services),
            *stream_gateway.operations(services),
            *proxy.operations(services),
            *tasks.operations(services),
            *drafts.operations(services),
            *uploads.operations(services),
            *webhooks.operations(services),
            *sessions.operations(services),
            *session_events.operations(services),
            *timeline.operations(services),
            *branches.operations(services),
            *patches.operations(services),
            *discovery.operations(services),
            *runners.operations(services),
            *workspaces.operations(services),
            *tokens.operations(services),
            *audit.operations(services),
        ],
        authenticate=authority.authenticate,
        authorise=authority.authorise,
        translate=translate,
        once=services.replays.once,
        title="helix_revdial",
        version=__version__,
        description="Reach services beside agents that only dial out.",
    )
    return table


def translate(error: Exception) -> Problem | None:
    """What the errors of the rooms below mean to a caller; C{None}: a fault of ours."""
    match error:
        case DatabaseUnavailable():
            return Problem(
                503,
                "The server cannot reach its database now; try again.",
                headers=retryAfter(2.0),
                code="database-unavailable",
            )
        case SessionError():
            return validationProblem({error.field: [str(error)]})
        case DialError():
            return problemOf(error)
        case _:
            return (
                sessions.translate(error)
                or timeline.translate(error)
                or drafts.translate(error)
                or uploads.translate(error)
                or tokens.translate(error)
            )
