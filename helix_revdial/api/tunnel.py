# -*- test-case-name: tests.api.test_tunnel -*-
"""
C{GET /api/v1/revdial}: where agents connect, for control and for data.

Decides who may (by the rules of C{access}) and gives the connection to the
carrier that the request asks for.  Everything after that is C{revdial}'s.

What it answers instead: 400 no or bad runner key; 401 no valid token; 403 not
the owner, not this token's pattern, or a feature that the operator requires
is missing; 404 unknown or spent dial; 409 held by another owner; 426 no
upgrade that we know; 503 no room.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IProtocol
from twisted.python.failure import Failure

from helix_revdial.access.policy import NotPermitted, RunnerPolicy, sessionOf
from helix_revdial.access.principals import Principal
from helix_revdial.api.authority import asking
from helix_revdial.api.problems import problemOf
from helix_revdial.api.services import Services
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem
from helix_revdial.http.request import ConnectionGone, Request
from helix_revdial.http.response import HandedOver
from helix_revdial.revdial import features as words
from helix_revdial.revdial.data_websocket import dataServer
from helix_revdial.revdial.errors import DialError
from helix_revdial.revdial.requests import Classified, RequestKind, classify
from helix_revdial.revdial.switching import switchHead
from helix_revdial.revdial.upgrade import hijackServer, rawServer
from helix_revdial.revdial.websocket import webSocketServer

PATH = "/api/v1/revdial"

ACCESS = "runner"
"""The access table's word for it."""

_RAW = {RequestKind.CONTROL_RAW, RequestKind.DATA_RAW, RequestKind.CHECK_RAW}
_DATA = {RequestKind.DATA_RAW, RequestKind.DATA_WEBSOCKET}
_WEBSOCKET = {
    RequestKind.CONTROL_WEBSOCKET,
    RequestKind.DATA_WEBSOCKET,
    RequestKind.CHECK_WEBSOCKET,
}
UPGRADES = [(b"Upgrade", b"revdial, websocket"), (b"Connection", b"Upgrade")]
_CHECK = {RequestKind.CHECK_RAW, RequestKind.CHECK_WEBSOCKET}


def operations(services: Services) -> list[Operation]:
    """The one row of the table."""
    policy = RunnerPolicy(services.sessions.facts)

    async def connect(call: Call) -> HandedOver:
        request = call.request
        principal = asking(call)
        asked = classify(
            request.method,
            list(request.headers),
            request.query,
            httpVersion=request.httpVersion.decode("ascii"),
        )
        if asked.kind is RequestKind.BAD_RUNNER:
            raise Problem(
                400,
                "A control connection names its runner in the query: runnerid=KEY, where KEY is "
                "up to 128 letters, digits, '.', '_' and '-' and starts with a letter or digit.",
            )
        if asked.kind is RequestKind.UPGRADE_REQUIRED:
            raise Problem(
                426,
                "This is where agents connect: ask for an upgrade to revdial or websocket.",
                headers=UPGRADES,
            )
        requireUpgradable(request, webSocket=asked.kind in _WEBSOCKET)
        if asked.kind in _DATA:
            return pickUp(services, request, principal, asked)
        if asked.kind in _CHECK:
            return await _check(services, policy, request, principal, asked)
        return await _register(services, policy, request, principal, asked)

    return [
        Operation(
            name="connectAgent",
            method="GET",
            path=PATH,
            run=connect,
            access=ACCESS,
            rate=None,
            status=101,
            errors=(400, 401, 403, 404, 409, 426, 503),
            summary="Connect an agent: a control connection, or the data connection of a dial.",
            tags=("tunnel",),
        )
    ]


def requireUpgradable(request: Request, *, webSocket: bool) -> None:
    """
    Refuse what could not be handed over, before a name or a dial is used up for it.

    @param webSocket: Whether WebSocket is asked for.
    @raise Problem: The request has a body, or its WebSocket handshake (RFC 6455,
        section 4.2.1) cannot be answered.
    """
    headers = request.headers
    length = headers.get(b"Content-Length")
    if headers.get(b"Transfer-Encoding") is not None or (length or b"0").strip(b"0"):
        raise Problem(400, "A request that changes the protocol carries no body.")
    if not webSocket:
        return
    if headers.getAll(b"Sec-WebSocket-Version") != [b"13"]:
        raise Problem(
            426,
            "WebSocket version 13 is spoken here.",
            headers=[(b"Sec-WebSocket-Version", b"13"), *UPGRADES],
        )
    keys = headers.getAll(b"Sec-WebSocket-Key")
    try:
        key = b64decode(keys[0], validate=True) if len(keys) == 1 else b""
    except ValueError:
        key = b""
    if len(key) != 16:
        raise Problem(400, "A WebSocket handshake has a Sec-WebSocket-Key of 16 bytes in base64.")


async def _register(
    services: Services,
    policy: RunnerPolicy,
    request: Request,
    principal: Principal,
    asked: Classified,
) -> HandedOver:
    key = asked.runnerId
    assert key is not None
    # Before anything that costs more than to look a token up.
    services.load.tunnel(principal.tenant)
    await services.load.handshake(patient=not asked.offered)
    owner = await _permitted(services, policy, request, principal, key)
    agreed = _agreed(services, asked)
    _requireFeatures(services, agreed)
    try:
        registration = await services.connections.register(
            key,
            owner,
            principal.family,
            features=agreed,
            offered=asked.offered,
            peer=request.clientHost,
            targets=asked.targets,
        )
    except DialError as error:
        raise problemOf(error, f"Runner {key}") from None
    # What was valid when the request came may have been revoked or deleted
    # while the registration waited for its number, and that missed it.
    if not services.stillValid(principal):
        services.connections.revoke(key=key, credential=principal.family)
        raise Problem(401, "The token has been revoked.")
    session = sessionOf(key)
    if session is not None and services.sessions.wasDeleted(session):
        services.connections.revoke(key=key)
        raise Problem(403, f"The session {session} has been deleted.")
    services.load.tunnelled(principal.tenant, request)
    try:
        return _handOver(
            services,
            request,
            asked,
            registration.protocol,
            agreed,
            lambda failure: registration.abandon(),
        )
    except ConnectionGone:
        registration.abandon()
        raise


async def _permitted(
    services: Services, policy: RunnerPolicy, request: Request, principal: Principal, key: str
) -> str:
    """Whose the runner is once this principal has registered it; 403 where it may not."""
    try:
        return await policy.registration(principal, key)
    except NotPermitted as error:
        services.audit.record(
            "registration-refused",
            subject=principal.tokenId,
            tenant=principal.tenant,
            runner=key,
            peer=request.clientHost,
        )
        detail = f"This token may not register the runner {key}: {error}."
        raise Problem(403, detail, code="not-allowed") from None


def _agreed(services: Services, asked: Classified) -> frozenset[str]:
    """What holds between the two: all that is offered, less what is for the operator to allow."""
    if services.config.tunnel.zeroKey or words.ZERO_KEY not in asked.features:
        return asked.features
    return asked.features - {words.ZERO_KEY}


def _requireFeatures(services: Services, agreed: frozenset[str]) -> None:
    missing = sorted(set(services.config.tunnel.requireFeatures) - agreed)
    if missing:
        raise Problem(
            403,
            f"This server accepts only agents that offer: {', '.join(missing)}. "
            "Install a newer agent.",
            code="feature-required",
        )


async def _check(
    services: Services,
    policy: RunnerPolicy,
    request: Request,
    principal: Principal,
    asked: Classified,
) -> HandedOver:
    """All that a registration goes through, but for the registration."""
    key = asked.runnerId
    owner = None
    state = b""
    if key is not None:
        owner = await _permitted(services, policy, request, principal, key)
        state = (services.connections.status(key) or "free").encode("ascii")
    agreed = _agreed(services, asked)
    _requireFeatures(services, agreed)
    try:
        peer = services.connections.check(key, owner, agreed)
    except DialError as error:
        raise problemOf(error, "The server" if key is None else f"Runner {key}") from None
    try:
        return _handOver(
            services,
            request,
            asked,
            peer,
            agreed,
            lambda failure: peer.abandon(),
            [(words.CHECK_HEADER, state)],
        )
    except ConnectionGone:
        peer.abandon()
        raise


def pickUp(
    services: Services, request: Request, principal: Principal, asked: Classified
) -> HandedOver:
    """
    Give a data connection to what it is for.

    @param principal: Who asks, and may connect as an agent.
    @param asked: What is asked for; its upgrade can be answered.
    @raise Problem: It is for nothing, or there is no room.
    """
    services.load.tunnel(principal.tenant)
    parked = _park(services, request, principal, asked)
    if parked is not None:
        return parked
    try:
        pickUp = services.connections.pickUp(
            principal.family,
            ticket=asked.ticket,
            dialer=asked.dialer,
            request=asked.request,
            timing=request.headers.get(words.TIMING_HEADER),
            peer=request.clientHost,
        )
    except DialError as error:
        raise problemOf(error) from None
    services.load.tunnelled(principal.tenant, request)
    try:
        return _handOver(services, request, asked, pickUp.protocol, pickUp.features, pickUp.failed)
    except ConnectionGone as error:
        pickUp.failed(Failure(error))
        raise


def _park(
    services: Services, request: Request, principal: Principal, asked: Classified
) -> HandedOver | None:
    """Take a data connection that is to wait for a dial; C{None} if it is for one already."""
    if asked.ticket is None:
        return None
    isWebSocket = asked.kind is RequestKind.DATA_WEBSOCKET
    key = request.headers.get(b"Sec-WebSocket-Key") if isWebSocket else None

    def head(agreed: frozenset[str]) -> bytes:
        offered = asked.offered
        return switchHead(
            key, [(words.FEATURES_HEADER, words.formatFeatures(agreed))] if offered else []
        )

    try:
        connection = services.connections.park(
            principal.family, asked.ticket, webSocket=isWebSocket, head=head
        )
    except DialError as error:
        raise problemOf(error) from None
    if connection is None:
        return None
    services.load.tunnelled(principal.tenant, request)
    request.purpose = "data"
    try:
        return request.handOver(connection)
    except ConnectionGone as error:
        connection.connectionLost(Failure(error))
        raise


def _handOver(
    services: Services,
    request: Request,
    asked: Classified,
    protocol: IProtocol,
    agreed: frozenset[str],
    failed: Callable[[Failure], None],
    fields: Sequence[tuple[bytes, bytes]] = (),
) -> HandedOver:
    headers = [(words.FEATURES_HEADER, words.formatFeatures(agreed))] if asked.offered else []
    headers.extend(fields)
    request.purpose = "data" if asked.kind in _DATA else "control"
    if asked.kind in _RAW:
        carrier = rawServer(
            protocol, responseHeaders=headers, clock=services.clock, onFailure=failed
        )
        return request.handOver(carrier)
    if asked.kind is RequestKind.CONTROL_HIJACK:
        carrier = hijackServer(
            protocol,
            clock=services.clock,
            http10=request.httpVersion == b"1.0",
            onFailure=failed,
        )
        return request.handOver(carrier)
    if asked.kind is RequestKind.DATA_WEBSOCKET:
        carrier = dataServer(
            protocol,
            key=request.headers.get(b"Sec-WebSocket-Key") or b"",
            eof=words.EOF in agreed,
            responseHeaders=headers,
            clock=services.clock,
            onFailure=failed,
        )
        return request.handOver(carrier)
    carrier = webSocketServer(
        protocol,
        # On a control connection an empty message is nothing, whatever is agreed.
        eof=False,
        responseHeaders=headers,
        clock=services.clock,
        onFailure=failed,
    )
    return request.handOver(carrier, replayHead=True)
