# -*- test-case-name: tests.api.test_stream_gateway -*-
"""
C{GET …/stream}: a byte stream from a caller to a runner's target.

Decides who may (the table of targets in C{docs/access.md}), for each stream and each
generation that it is dialled through; the rest is L{StreamGateway
<helix_revdial.gateways.stream.StreamGateway>}'s.

What it answers instead of C{101}: 400 no runner key, no target's name, a body or no
proper handshake; 401 no valid token; 403 not for this caller, said before anything is
told of the runner; 404 no such session; 426 no upgrade that we know; and the dial's
own error.
"""

from __future__ import annotations

import msgspec

from helix_revdial.access.policy import Expose, SessionFacts, mayDial, sessionOf
from helix_revdial.access.principals import Principal
from helix_revdial.api.authority import asking
from helix_revdial.api.observation import aboutOf
from helix_revdial.api.problems import problemOf
from helix_revdial.api.services import Services
from helix_revdial.api.tracing import traceOf
from helix_revdial.api.tunnel import UPGRADES, requireUpgradable
from helix_revdial.api.waiting import waitOf
from helix_revdial.gateways.stream import Ended
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem
from helix_revdial.http.response import HandedOver
from helix_revdial.revdial.errors import DialError, NotAllowed
from helix_revdial.revdial.offered import TARGET_NAME
from helix_revdial.revdial.requests import RUNNER_KEY, upgradeAsked

OPEN: tuple[Expose, ...] = ("operator", "owner")
"""Targets that may be for a caller at all."""


class StreamQuery(msgspec.Struct):
    """Which target; the agent's default where none is named."""

    target: str | None = None


def operations(services: Services) -> list[Operation]:
    """The two rows."""

    async def toRunner(call: Call) -> HandedOver:
        runner = call.params["runner"]
        if RUNNER_KEY.fullmatch(runner) is None:
            raise Problem(400, "A runner key is up to 128 letters, digits, '.', '_' and '-'.")
        principal = asking(call)
        session = sessionOf(runner)
        facts = None if session is None else await services.sessions.facts(session)
        return await open_(call, principal, runner, facts)

    async def toSession(call: Call) -> HandedOver:
        principal = asking(call)
        runner = services.runnerOf(call.resource.id)
        return await open_(call, principal, runner, call.resource)

    async def open_(
        call: Call, principal: Principal, runner: str, session: SessionFacts | None
    ) -> HandedOver:
        request = call.request
        form = upgradeAsked(
            request.method,
            list(request.headers),
            httpVersion=request.httpVersion.decode("ascii"),
        )
        if form is None:
            raise Problem(
                426,
                "A stream is opened here: ask for an upgrade to websocket or revdial.",
                headers=UPGRADES,
            )
        requireUpgradable(request, webSocket=form == b"websocket")
        target = call.query.target or None
        if target is not None and TARGET_NAME.fullmatch(target) is None:
            raise Problem(400, "A target's name is letters, digits, '.', '_' and '-'.")
        what = f"Runner {runner}"
        if not any(mayDial(principal, runner, expose, session) for expose in OPEN):
            # Whether it is connected is not for this caller to know.
            raise refused(call, principal, runner, target, what)
        try:
            return await services.streams.open(
                request,
                webSocket=form == b"websocket",
                caller=f"{principal.tenant}/{principal.user or principal.family}",
                family=principal.family,
                runner=runner,
                target=target,
                deadline=waitOf(request),
                allow=lambda expose: (
                    services.stillValid(principal) and mayDial(principal, runner, expose, session)
                ),
                about=aboutOf(request.requestId, traceOf(request)),
            )
        except NotAllowed:
            raise refused(call, principal, runner, target, what) from None
        except DialError as error:
            raise problemOf(error, what) from None
        except Ended:
            raise Problem(401, "The token has been revoked.", code="unauthenticated") from None

    def refused(
        call: Call, principal: Principal, runner: str, target: str | None, what: str
    ) -> Problem:
        services.audit.record(
            "stream-refused",
            subject=principal.tokenId,
            tenant=principal.tenant,
            runner=runner,
            target=target,
            peer=call.request.clientHost,
        )
        name = "default target" if target is None else f"target {target}"
        return Problem(403, f"{what} has no {name} for this token.", code="not-allowed")

    errors = (400, 401, 403, 426, 502, 503, 504)
    return [
        Operation(
            name="openRunnerStream",
            method="GET",
            path="/api/v1/runners/{runner}/stream",
            run=toRunner,
            access="dial",
            rate=None,
            query=StreamQuery,
            status=101,
            errors=errors,
            summary="Open a stream to a runner's target.",
            description=(
                "An upgrade to websocket or revdial. The target is dialled first, within the "
                "seconds of Prefer: wait=SECONDS; 101 means that it is connected."
            ),
            tags=("streams",),
        ),
        Operation(
            name="openSessionStream",
            method="GET",
            path="/api/v1/sessions/{session}/stream",
            run=toSession,
            access="session-dial",
            rate=None,
            query=StreamQuery,
            status=101,
            errors=(404, *errors),
            summary="Open a stream to a target of a session's runner.",
            description="As to a runner; which of the session's runners it is, the server knows.",
            tags=("streams",),
        ),
    ]


__all__ = ["operations"]
