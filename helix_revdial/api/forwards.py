# -*- test-case-name: tests.api.test_forwards,tests.integration.test_tcp_forward -*-
"""
C{/api/v1/admin/forwards}: ports of the server that lead to targets, made and ended
while it runs.

A forward has what its maker may have, for as long as the token that it was made with
lives.  Those of the configuration are the operator's own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from helix_revdial.access.policy import Expose, mayDial, sessionOf
from helix_revdial.access.principals import Principal
from helix_revdial.api.authority import asking
from helix_revdial.api.services import Services
from helix_revdial.gateways.tcp_forward import Forward, ForwardRefused, ForwardSettings
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem, validationProblem
from helix_revdial.http.response import Response

PATH = "/api/v1/admin/forwards"


class NewForward(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """
    C{listen}: C{tcp:PORT} or C{tcp:PORT:interface=ADDRESS}, port 0 for any that is
    free; C{allow}: networks and addresses, needed beyond loopback.
    """

    listen: str
    runner: str
    target: str | None = None
    allow: list[str] = []
    proxyProtocol: bool = False


class ForwardDocument(msgspec.Struct, rename="camel"):
    """
    One forward.  C{createdBy} is the id of a token; null where it stands in the
    configuration.  Of the connections that were C{accepted} so far, C{refused} were
    not on the list or too many, and C{failed} had no target.
    """

    id: str
    listen: str
    runner: str
    target: str | None
    allow: list[str]
    proxyProtocol: bool
    createdBy: str | None
    connections: int
    accepted: int
    refused: int
    failed: int
    lastError: str | None


class ForwardList(msgspec.Struct, rename="camel"):
    """Every forward, oldest first."""

    items: list[ForwardDocument]


def operations(services: Services) -> list[Operation]:
    """List, create, delete."""
    forwards = services.forwards

    async def listForwards(call: Call) -> ForwardList:
        return ForwardList([_document(one) for one in forwards.list()])

    async def createForward(call: Call) -> Response:
        principal = asking(call)
        body = call.body
        try:
            settings = ForwardSettings.parse(
                body.listen, body.runner, body.target, body.allow, body.proxyProtocol
            )
            judged = judge(principal, settings.runner)
            await judged()
            forward = forwards.create(
                settings,
                judged,
                by=principal.tokenId,
                family=principal.family,
            )
        except ForwardRefused as error:
            raise validationProblem({error.field: [str(error)]}) from None
        record("forward-created", principal, forward)
        return Response(
            201,
            [
                (b"Content-Type", b"application/json; charset=utf-8"),
                (b"Location", f"{PATH}/{forward.id}".encode("ascii")),
            ],
            msgspec.json.encode(_document(forward)),
        )

    async def deleteForward(call: Call) -> None:
        principal = asking(call)
        name = call.params["forward"]
        forward = forwards.get(name)
        if forward is None:
            raise Problem(404, f"There is no forward {name}.", code="unknown-forward")
        if forward.by is None:
            raise Problem(409, f"The forward {name} stands in the server's configuration.")
        await forwards.delete(forward)
        record("forward-deleted", principal, forward)

    def judge(
        principal: Principal, runner: str
    ) -> Callable[[], Awaitable[Callable[[Expose], bool]]]:
        async def now() -> Callable[[Expose], bool]:
            session = sessionOf(runner)
            facts = None if session is None else await services.sessions.facts(session)
            if not any(mayDial(principal, runner, one, facts) for one in ("operator", "owner")):
                raise ForwardRefused("runner", "this runner's targets are not for you")
            return lambda expose: (
                services.stillValid(principal) and mayDial(principal, runner, expose, facts)
            )

        return now

    def record(event: str, principal: Principal, forward: Forward) -> None:
        services.audit.record(
            event,
            subject=principal.tokenId,
            tenant=principal.tenant,
            forward=forward.id,
            listen=forward.settings.listen,
            runner=forward.settings.runner,
            target=forward.settings.target,
        )

    return [
        Operation(
            name="listForwards",
            method="GET",
            path=PATH,
            run=listForwards,
            access="admin",
            response=ForwardList,
            errors=(401, 403),
            summary="The server's ports that lead to targets.",
            tags=("admin",),
        ),
        Operation(
            name="createForward",
            method="POST",
            path=PATH,
            run=createForward,
            access="admin",
            body=NewForward,
            response=ForwardDocument,
            status=201,
            errors=(400, 401, 403, 413, 415),
            summary="Have a port of the server lead to a target.",
            description="Within forwards.ports and forwards.interfaces; until the server ends.",
            tags=("admin",),
        ),
        Operation(
            name="deleteForward",
            method="DELETE",
            path=PATH + "/{forward}",
            run=deleteForward,
            access="admin",
            status=204,
            errors=(401, 403, 404, 409),
            summary="End a forward: its port is free again, its connections are cut.",
            tags=("admin",),
        ),
    ]


def _document(forward: Forward) -> ForwardDocument:
    settings = forward.settings
    return ForwardDocument(
        id=forward.id,
        listen=forward.listen,
        runner=settings.runner,
        target=settings.target,
        allow=[str(one) for one in settings.allow],
        proxyProtocol=settings.proxyProtocol,
        createdBy=forward.by,
        connections=len(forward.connections),
        accepted=forward.accepted,
        refused=forward.refused,
        failed=forward.failed,
        lastError=forward.lastError,
    )


__all__ = ["operations"]
