# -*- test-case-name: tests.api.test_operations -*-
"""
What the server knows of its runners' connections.

The administrator's status has the field names of the original system, in
snake_case; so has a session's own view of its runner, which the self-test of
the command line reads.
"""

from __future__ import annotations

import msgspec

from helix_revdial.api.services import Services
from helix_revdial.http.operations import Call, Operation
from helix_revdial.revdial.connections import ConnectionDetail, GraceEntry
from helix_revdial.telemetry.timestamps import timestamp


class Target(msgspec.Struct):
    """A service beside the agent, as the agent describes it."""

    name: str
    expose: str
    default: bool


class Connection(msgspec.Struct):
    """
    One live control connection.  C{connected_since} is RFC 3339 in UTC;
    C{round_trip_ms} is null where nothing was measured yet; C{targets}, where the
    agent says nothing of them.
    """

    key: str
    generation: int
    carrier: str
    features: list[str]
    remote_address: str
    connected_since: str
    last_heard_seconds: float
    round_trip_ms: float | None
    open_streams: int
    bytes_in: int
    bytes_out: int
    pending_dials: int
    targets: list[Target] | None


class Grace(msgspec.Struct):
    """A runner that was lost and is awaited."""

    key: str
    generation: int
    seconds_left: float
    pending_dials: int


class Status(msgspec.Struct):
    """All runners, in numbers and by key."""

    active_connections: int
    grace_period_entries: int
    pending_dials_total: int
    connections: list[str]
    details: list[Connection] | msgspec.UnsetType = msgspec.UNSET
    grace: list[Grace] | msgspec.UnsetType = msgspec.UNSET


class StatusQuery(msgspec.Struct):
    """What else is wanted."""

    detail: bool = False


class SessionConnection(msgspec.Struct):
    """
    The runner that a session's screenshots and clipboard go through.
    C{status} is C{connected}, C{grace} or C{none}.
    """

    session_id: str
    runner: str
    status: str
    detail: Connection | None
    grace_seconds_left: float | None


def operations(services: Services) -> list[Operation]:
    """The two views."""

    async def status(call: Call) -> Status:
        query = call.query
        assert isinstance(query, StatusQuery)
        stats = services.connections.stats()
        answer = Status(
            active_connections=stats.activeConnections,
            grace_period_entries=stats.gracePeriodEntries,
            pending_dials_total=stats.pendingDialsTotal,
            connections=stats.connections,
        )
        if query.detail:
            answer.details = [_connection(one) for one in services.connections.details()]
            answer.grace = [_grace(one) for one in services.connections.graceEntries()]
        return answer

    async def connection(call: Call) -> SessionConnection:
        session = call.resource
        runner = services.runnerOf(session.id)
        detail = services.connections.detail(runner)
        left = [
            entry.secondsLeft
            for entry in services.connections.graceEntries()
            if entry.key == runner
        ]
        return SessionConnection(
            session_id=session.id,
            runner=runner,
            status=services.connections.status(runner) or "none",
            detail=None if detail is None else _connection(detail),
            grace_seconds_left=round(left[0], 3) if left else None,
        )

    return [
        Operation(
            name="getRevdialStatus",
            method="GET",
            path="/api/v1/admin/revdial/status",
            run=status,
            access="admin",
            query=StatusQuery,
            response=Status,
            errors=(401, 403),
            summary="Which runners are connected, which are awaited, how many dials wait.",
            tags=("admin",),
        ),
        Operation(
            name="getSessionConnection",
            method="GET",
            path="/api/v1/external-agents/{session}/connection",
            run=connection,
            access="session-reader",
            response=SessionConnection,
            errors=(401, 403, 404),
            summary="The connection of the runner that serves a session.",
            tags=("external-agents",),
        ),
    ]


def _connection(detail: ConnectionDetail) -> Connection:
    return Connection(
        key=detail.key,
        generation=detail.generation,
        carrier=detail.carrier,
        features=sorted(detail.features),
        remote_address=detail.remoteAddress,
        connected_since=timestamp(detail.connectedSince),
        last_heard_seconds=round(detail.lastHeard, 3),
        round_trip_ms=None if detail.roundTrip is None else round(detail.roundTrip * 1000, 3),
        open_streams=detail.openStreams,
        bytes_in=detail.bytesIn,
        bytes_out=detail.bytesOut,
        pending_dials=detail.pendingDials,
        targets=None
        if detail.targets is None
        else [Target(each.name, each.expose, each.default) for each in detail.targets],
    )


def _grace(entry: GraceEntry) -> Grace:
    return Grace(entry.key, entry.generation, round(entry.secondsLeft, 3), entry.pendingDials)
