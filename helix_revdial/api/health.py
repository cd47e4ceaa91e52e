# -*- test-case-name: tests.api.test_operations -*-
"""
Whether the server lives (C{/healthz}), should get requests (C{/readyz}), and
what it is (C{/version}).  Open to all; the same under C{/api/v1}.
"""

from __future__ import annotations

import platform

import msgspec

from helix_revdial import __version__
from helix_revdial.api.services import Services
from helix_revdial.http.operations import Call, Operation
from helix_revdial.http.problem import Problem
from helix_revdial.telemetry.timestamps import timestamp


class Health(msgspec.Struct):
    """The server answers."""

    status: str
    timestamp: str


class BuildInfo(msgspec.Struct, omit_defaults=True):
    """What it was made from, where that is known."""

    git_commit: str | None = None
    build_date: str | None = None


class Version(msgspec.Struct):
    """What is running."""

    version: str
    python: str
    build_info: BuildInfo = msgspec.field(default_factory=BuildInfo)


def operations(services: Services) -> list[Operation]:
    """The rows, each under both paths."""

    def now() -> str:
        return timestamp(services.wallClock())

    async def healthz(call: Call) -> Health:
        return Health("ok", now())

    async def readyz(call: Call) -> Health:
        reason = services.ready()
        if reason:
            raise Problem(503, f"Not ready: {reason}.", headers=[(b"Retry-After", b"1")])
        return Health("ready", now())

    async def version(call: Call) -> Version:
        return Version(__version__, platform.python_version())

    rows = []
    for prefix, suffix in (("", ""), ("/api/v1", "V1")):
        rows += [
            Operation(
                name=f"healthz{suffix}",
                method="GET",
                path=f"{prefix}/healthz",
                run=healthz,
                response=Health,
                summary="Whether the server lives.",
                tags=("health",),
            ),
            Operation(
                name=f"readyz{suffix}",
                method="GET",
                path=f"{prefix}/readyz",
                run=readyz,
                response=Health,
                errors=(503,),
                summary="Whether the server should get requests.",
                tags=("health",),
            ),
            Operation(
                name=f"version{suffix}",
                method="GET",
                path=f"{prefix}/version",
                run=version,
                response=Version,
                summary="What is running.",
                tags=("health",),
            ),
        ]
    return rows
