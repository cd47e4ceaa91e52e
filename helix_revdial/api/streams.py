# -*- test-case-name: tests.api.test_observation -*-
"""
What became of dials and streams, and what the process holds.

An administrator asks about any runner or dial; whoever may see a session asks about
the runners of that session.  C{helix why} makes sentences of the answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Annotated, Literal

import msgspec

from helix_revdial.api.observation import Observation
from helix_revdial.api.services import Services
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.telemetry.lifelines import Lifeline
from helix_revdial.telemetry.timestamps import timestamp

MAX_ITEMS = 1000
"""Records of one answer."""

REFUSALS = ("claim-refused", "clone-refused", "registration-refused")
"""What the audit log has of a runner that was not let in."""

REFUSALS_READ = 200
"""Entries of each kind that are looked through."""

Limit = Annotated[int, msgspec.Meta(ge=1, le=MAX_ITEMS)]


class StreamRecord(msgspec.Struct, omit_defaults=False):
    """
    One dial, and the stream that came of it.  C{phases} are milliseconds since
    C{started_at}; C{target} among them is a duration, the agent's own.
    C{state} is C{waiting}, C{asked}, C{open} or C{ended}.  C{pooled}: it went by a data
    connection that was parked, and there was no dial-back.
    """

    dial: str
    runner: str
    target: str | None
    generation: int | None
    state: str
    started_at: str
    phases: dict[str, float]
    outcome: str | None
    reason: str | None
    carrier: str | None
    pooled: bool
    bytes_in: int
    bytes_out: int
    request: str | None
    trace: str | None


class Refusal(msgspec.Struct):
    """The last time that somebody was not let in under a runner's name."""

    at: str
    event: str
    reason: str | None
    peer: str | None
    times: int


class RunnerRecord(msgspec.Struct):
    """
    What is known of a runner.  C{status} is C{connected}, C{grace} or C{none};
    the other fields are null where nothing was seen since C{server_started_at}.
    """

    key: str
    status: str
    server_started_at: str
    first_seen: str | None
    connected_at: str | None
    generation: int | None
    registrations: int
    peer: str | None
    lost_at: str | None
    lost_reason: str | None
    grace_seconds_left: float | None
    last_refusal: Refusal | None


class Streams(msgspec.Struct):
    """Records, the latest first, and the runners that were asked about."""

    items: list[StreamRecord]
    runners: list[RunnerRecord]


class StreamsQuery(msgspec.Struct):
    """Which are wanted: of a runner, of one dial; C{state} says those that live or have ended."""

    runner: str | None = None
    dial: str | None = None
    state: Literal["live", "recent"] | None = None
    limit: Limit = 100


class SessionStreamsQuery(msgspec.Struct):
    """Which are wanted: those that live, or have ended."""

    state: Literal["live", "recent"] | None = None
    limit: Limit = 100


class LedgerRecord(msgspec.Struct):
    """What the process holds, by owner; all of it are numbers."""

    descriptors: dict[str, int]
    descriptor_limit: int
    timers: dict[str, int]
    buffers: dict[str, int]
    pending_dials: dict[str, int]
    streams: int
    tables: dict[str, int]
    threads: int


def operations(services: Services) -> list[Operation]:
    """The three rows."""
    observation = services.observation
    started = services.wallClock()

    async def streams(call: Call) -> Streams:
        query = call.query
        assert isinstance(query, StreamsQuery)
        items = _found(observation, query.runner, query.dial, query.state, query.limit)
        asked = [query.runner] if query.runner is not None else []
        if query.dial is not None and query.runner is None:
            asked = [line.runner for line in items]
        runners = [await _runner(services, key, started) for key in dict.fromkeys(asked)]
        return Streams([_record(line) for line in items], runners)

    async def sessionStreams(call: Call) -> Streams:
        query = call.query
        assert isinstance(query, SessionStreamsQuery)
        keys = [f"{kind}-{call.resource.id}" for kind in ("desktop", "sandbox")]
        lines = [
            line
            for key in keys
            for line in _found(observation, key, None, query.state, query.limit)
        ]
        lines.sort(key=lambda line: line.startedAt, reverse=True)
        runners = [await _runner(services, key, started) for key in keys]
        known = [one for one in runners if one.status != "none" or one.first_seen is not None]
        # Where nothing is known of either, the one that is dialled is told of.
        dialled = services.runnerOf(call.resource.id)
        return Streams(
            [_record(line) for line in lines[: query.limit]],
            known or [one for one in runners if one.key == dialled],
        )

    async def ledger(call: Call) -> LedgerRecord:
        held = observation.ledger()
        return LedgerRecord(
            dict(held.descriptors),
            held.descriptorLimit,
            dict(held.timers),
            dict(held.buffers),
            dict(held.pendingDials),
            held.streams,
            dict(held.tables),
            held.threads,
        )

    return [
        Operation(
            name="listStreams",
            method="GET",
            path="/api/v1/admin/streams",
            run=streams,
            access="admin",
            query=StreamsQuery,
            response=Streams,
            errors=(400, 401, 403, 404),
            summary="Dials and streams, living and ended, with their phases and how they ended.",
            tags=("admin",),
        ),
        Operation(
            name="listSessionStreams",
            method="GET",
            path="/api/v1/external-agents/{session}/streams",
            run=sessionStreams,
            access="session-reader",
            query=SessionStreamsQuery,
            response=Streams,
            errors=(400, 401, 403, 404),
            summary="The dials and streams to the runners of a session.",
            tags=("external-agents",),
        ),
        Operation(
            name="getLedger",
            method="GET",
            path="/api/v1/admin/ledger",
            run=ledger,
            access="server",
            response=LedgerRecord,
            errors=(401, 403),
            summary="What the server holds: descriptors, timers, dials and buffers, by owner.",
            tags=("admin",),
        ),
    ]


def _found(
    observation: Observation,
    runner: str | None,
    dial: str | None,
    state: str | None,
    limit: int,
) -> list[Lifeline]:
    lines: list[Lifeline] = []
    if state != "recent":
        lines += [line for line in observation.living(runner) if dial is None or line.dial == dial]
    if state != "live":
        if dial is None:
            ended: Iterable[Lifeline] = observation.lifelines.recent(runner)
        else:
            line = observation.lifelines.find(dial)
            ended = [] if line is None or runner not in (None, line.runner) else [line]
        lines += islice(ended, limit)
    if dial is not None and not lines:
        raise Problem(
            404,
            f"Nothing is known of the dial {dial}: it is not of this server since its start, or "
            "others have pushed it out since.",
            code="unknown-dial",
        )
    return lines[:limit]


async def _runner(services: Services, key: str, started: float) -> RunnerRecord:
    line = services.observation.lifelines.runner(key)
    left = [one.secondsLeft for one in services.connections.graceEntries() if one.key == key]
    return RunnerRecord(
        key=key,
        status=services.connections.status(key) or "none",
        server_started_at=timestamp(started),
        first_seen=None if line is None else timestamp(line.firstSeen),
        connected_at=None if line is None else timestamp(line.connectedAt),
        generation=None if line is None else line.generation,
        registrations=0 if line is None else line.registrations,
        peer=None if line is None else line.peer,
        lost_at=None if line is None or line.lostAt is None else timestamp(line.lostAt),
        lost_reason=None if line is None else line.lostReason,
        grace_seconds_left=round(left[0], 3) if left else None,
        last_refusal=await _lastRefusal(services, key),
    )


async def _lastRefusal(services: Services, key: str) -> Refusal | None:
    """From the audit log; C{None} also where the database cannot be asked."""
    found = []
    try:
        await services.audit.flush()
        for event in REFUSALS:
            for entry in await services.audit.list(event=event, limit=REFUSALS_READ):
                if entry.fields.get("runner") == key:
                    found.append(entry)
                    break
    except DatabaseUnavailable:
        return None
    if not found:
        return None
    entry = max(found, key=lambda each: each.at)
    reason, peer = entry.fields.get("reason"), entry.fields.get("peer")
    return Refusal(
        timestamp(entry.at),
        entry.event,
        None if reason is None else str(reason),
        None if peer is None else str(peer),
        entry.times,
    )


def _record(line: Lifeline) -> StreamRecord:
    return StreamRecord(
        dial=line.dial,
        runner=line.runner,
        target=line.target,
        generation=line.generation,
        state=line.state,
        started_at=timestamp(line.startedAt),
        phases={name: round(seconds * 1000, 3) for name, seconds in line.phases.items()},
        outcome=line.outcome,
        reason=line.reason,
        carrier=line.carrier,
        pooled=line.pooled,
        bytes_in=line.bytesIn,
        bytes_out=line.bytesOut,
        request=line.about.get("request"),
        trace=line.about.get("trace"),
    )
