# -*- test-case-name: tests.api.test_runners -*-
"""
Where sessions can run: runner hosts, live, and what their runtimes are.

A host that serves one tenant is not there for another.  C{/runners} and
C{/executors} are one list under the two names that callers have for it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from helix_revdial.api.authority import asking
from helix_revdial.api.services import Services
from helix_revdial.http.operations import Call, Operation
from helix_revdial.sessions.executor import HostHealth
from helix_revdial.sessions.executors import Registered
from helix_revdial.telemetry.timestamps import timestamp

DISABLED: Final = "disabled"
"""The runtime without a sandbox: a profile of C{local}, where a caller chooses one."""


class RunnerDocument(msgspec.Struct, rename="camel", omit_defaults=True):
    """A host that runs sessions, as it last said of itself."""

    id: str
    kind: str
    health: str
    """C{ok}; C{degraded} after two heartbeats that did not come; C{offline} after three, and
    for 30 days after the host was there."""
    slots: int
    running: int
    snapshotCapabilities: list[str]
    runtimes: list[str]
    agents: list[str]
    """Empty: whatever is asked for."""
    os: str | None = None
    arch: str | None = None
    host: str | None = None
    version: str | None = None
    load: float | None = None
    reflink: bool | None = None
    lastHeartbeat: str | None = None


class RunnerList(msgspec.Struct):
    """Every host that takes the tenant's sessions, or has done so, by its id."""

    items: list[RunnerDocument]
    total: int


class RuntimeDocument(msgspec.Struct, rename="camel"):
    """A kind of place where an agent runs."""

    type: str
    images: list[str]
    paths: list[str]
    sandboxProfiles: list[str]


class RuntimeList(msgspec.Struct):
    """What the hosts that are there can do."""

    items: list[RuntimeDocument]
    total: int


def operations(services: Services) -> list[Operation]:
    """Runners, under both names, and runtimes."""

    def reachable(call: Call) -> list[Registered]:
        tenant = asking(call).tenant
        return [one for one in services.executors if one.tenant in (None, tenant)]

    async def listRunners(call: Call) -> RunnerList:
        items = [_document(one) for one in reachable(call)]
        items += [
            _filled(_gone(one.id, one.lastHeartbeat), one.health, 0)
            for one in await services.knownExecutors.gone(asking(call).tenant)
        ]
        return RunnerList(sorted(items, key=lambda one: one.id), len(items))

    async def listRuntimes(call: Call) -> RuntimeList:
        found = {
            runtime
            for one in reachable(call)
            if one.health is not None and one.standing != "offline"
            for runtime in one.health.runtimes
        }
        allowed = services.config.sessions.allowDisabledRuntime
        items = [
            RuntimeDocument(
                runtime,
                [],
                [],
                ["default", *([DISABLED] if allowed and DISABLED in found else [])],
            )
            for runtime in sorted(found - {DISABLED})
        ]
        return RuntimeList(items, len(items))

    def runners(name: str, path: str) -> Operation:
        return Operation(
            name=name,
            method="GET",
            path=path,
            run=listRunners,
            access="viewer",
            response=RunnerList,
            errors=(401, 403, 503),
            summary="The hosts that run sessions, and how they are now.",
            tags=("discovery",),
        )

    return [
        runners("listRunners", "/api/v1/runners"),
        runners("listExecutors", "/api/v1/executors"),
        Operation(
            name="listRuntimes",
            method="GET",
            path="/api/v1/runtimes",
            run=listRuntimes,
            access="viewer",
            response=RuntimeList,
            errors=(401, 403),
            summary="The runtimes that tasks may ask for, of the hosts that are there.",
            tags=("discovery",),
        ),
    ]


def _document(one: Registered) -> RunnerDocument:
    document = _gone(one.id, one.lastHeartbeat)
    document.kind, document.health = one.executor.kind, one.standing
    document.running = len(one.assigned)
    return document if one.health is None else _filled(document, one.health, len(one.assigned))


def _gone(executor: str, lastHeartbeat: float | None) -> RunnerDocument:
    return RunnerDocument(
        id=executor,
        kind="local",
        health="offline",
        slots=0,
        running=0,
        snapshotCapabilities=[],
        runtimes=[],
        agents=[],
        lastHeartbeat=None if lastHeartbeat is None else timestamp(lastHeartbeat),
    )


def _filled(document: RunnerDocument, health: HostHealth, assigned: int) -> RunnerDocument:
    document.slots, document.running = health.slots, max(health.running, assigned)
    document.snapshotCapabilities = list(health.snapshotCapabilities)
    document.runtimes, document.agents = list(health.runtimes), list(health.agents)
    document.os, document.arch, document.host = health.os, health.arch, health.host
    document.version, document.load = health.version or None, health.load
    document.reflink = health.reflink
    return document
