# -*- test-case-name: tests.api.test_forwards,tests.integration.test_tcp_forward -*-
"""
C{/api/v1/admin/forwards}: ports of the server that lead to targets, made and ended
while it runs.

A forward has what its maker may have, for as long as the token that it was made with
lives, and is there again when the server has been restarted (L{restoreForwards}).  Those
of the configuration are the operator's own.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated

import msgspec
from twisted.logger import Logger

from helix_revdial.access.policy import SessionFacts, mayDial, sessionOf
from helix_revdial.access.principals import Principal
from helix_revdial.api.authority import asking
from helix_revdial.api.services import Services
from helix_revdial.gateways.tcp_forward import (
    Allow,
    Forward,
    ForwardRefused,
    ForwardSettings,
    ForwardTaken,
    Judge,
)
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem, validationProblem
from helix_revdial.http.response import Response, jsonResponse

PATH = "/api/v1/admin/forwards"

_NAME = msgspec.Meta(extra_json_schema={"pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"})
"""As the description says it; what is wrong is said by those who know."""

_LISTEN = msgspec.Meta(extra_json_schema={"pattern": r"^tcp:[0-9]{1,5}(:interface=.+)?$"})

_log = Logger()


class NewForward(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """
    C{listen}: C{tcp:PORT} or C{tcp:PORT:interface=ADDRESS}, port 0 for any that is
    free; C{allow}: networks and addresses, needed beyond loopback.
    """

    listen: Annotated[
        str, msgspec.Meta(extra_json_schema={"pattern": r"^tcp:[0-9]{1,5}(:interface=.+)?$"})
    ]
    runner: Annotated[str, _NAME]
    target: Annotated[str, _NAME] | None = None
    allow: Annotated[
        list[Annotated[str, msgspec.Meta(max_length=100)]],
        msgspec.Meta(max_length=1000),
    ] = []
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
    total: int


def operations(services: Services) -> list[Operation]:
    """List, create, look at, delete."""
    forwards = services.forwards

    async def listForwards(call: Call) -> ForwardList:
        items = [_document(one) for one in forwards.list()]
        return ForwardList(items, len(items))

    async def createForward(call: Call) -> Response:
        principal = asking(call)
        body = call.body
        try:
            settings = ForwardSettings.parse(
                body.listen, body.runner, body.target, body.allow, body.proxyProtocol
            )
            judged = _judge(services, principal, settings.runner)
            allow = judged()
            if not callable(allow):
                await allow
            forward = forwards.create(
                settings,
                judged,
                by=principal.tokenId,
                family=principal.family,
            )
        except ForwardTaken as error:
            errors = {error.field: [str(error)]}
            raise Problem(409, f"There is no room for it: {error}.", errors=errors) from None
        except ForwardRefused as error:
            raise validationProblem({error.field: [str(error)]}) from None
        try:
            await services.keptForwards.add(forward, principal)
        except BaseException:
            # What would be gone after a restart is not promised.
            await forwards.delete(forward)
            raise
        if forwards.get(forward.id) is None:
            # Its token ended while it was written down.
            services.keptForwards.forget(forward.id)
        record("forward-created", principal, forward)
        return jsonResponse(201, _document(forward), location=f"{PATH}/{forward.id}")

    async def getForward(call: Call) -> ForwardDocument:
        name = call.params["forward"]
        forward = forwards.get(name)
        if forward is None:
            raise unknown(name)
        return _document(forward)

    async def deleteForward(call: Call) -> None:
        principal = asking(call)
        name = call.params["forward"]
        forward = forwards.get(name)
        if forward is not None and forward.by is None:
            raise Problem(409, f"The forward {name} stands in the server's configuration.")
        # One that could not listen again after a restart is kept, but not there.
        kept = await services.keptForwards.remove(name)
        if forward is not None:
            await forwards.delete(forward)
            record("forward-deleted", principal, forward)
        elif not kept:
            raise unknown(name)

    def unknown(name: str) -> Problem:
        return Problem(404, f"There is no forward {name}.", code="unknown-forward")

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
            errors=(400, 401, 403, 409, 413, 415),
            summary="Have a port of the server lead to a target.",
            description=(
                "Within forwards.ports and forwards.interfaces; for as long as the token lives "
                "that it is made with, through restarts of the server."
            ),
            tags=("admin",),
        ),
        Operation(
            name="getForward",
            method="GET",
            path=PATH + "/{forward}",
            run=getForward,
            access="admin",
            response=ForwardDocument,
            errors=(401, 403, 404),
            summary="One forward, with what became of its connections.",
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


def _judge(services: Services, principal: Principal, runner: str) -> Judge:
    """What the connections of a forward may have: what its maker may."""

    def judged(facts: SessionFacts | None) -> Allow:
        if not any(mayDial(principal, runner, one, facts) for one in ("operator", "owner")):
            raise ForwardRefused("runner", "this runner's targets are not for you")
        return lambda expose: (
            services.stillValid(principal) and mayDial(principal, runner, expose, facts)
        )

    async def withFacts(session: str) -> Allow:
        return judged(await services.sessions.facts(session))

    def now() -> Allow | Awaitable[Allow]:
        session = sessionOf(runner)
        return judged(None) if session is None else withFacts(session)

    return now


async def restoreForwards(services: Services) -> None:
    """
    Have the forwards listen again that were there before the server was restarted.

    Those whose makers' tokens have ended meanwhile are forgotten.  One that cannot be
    had now (another has its port, the settings do not allow it any more) is logged and
    kept for the next start.

    @raise DatabaseUnavailable: They cannot be had.
    """
    for kept in await services.keptForwards.list():
        principal, settings = kept.principal, kept.settings
        if not await services.outlives(principal):
            await services.keptForwards.remove(kept.id)
            _log.info("Forward {forward} is gone: its maker's token has ended", forward=kept.id)
            continue
        try:
            if settings is None:
                raise ForwardRefused("listen", "this version does not understand it")
            services.forwards.create(
                settings,
                _judge(services, principal, settings.runner),
                by=principal.tokenId,
                family=principal.family,
                name=kept.id,
            )
        except ForwardRefused as error:
            _log.error("Forward {forward} cannot be had: {why}", forward=kept.id, why=str(error))


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


__all__ = ["operations", "restoreForwards"]
