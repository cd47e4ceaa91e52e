# -*- test-case-name: tests.api.test_operations -*-
"""Who was refused, who took over what, who changed a token: the audit log, for administrators."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from helix_revdial.access.principals import DEFAULT_TENANT
from helix_revdial.api.services import Services
from helix_revdial.http.operations import Call, Operation
from helix_revdial.telemetry.timestamps import timestamp


class AuditDocument(msgspec.Struct, rename="camel"):
    """One thing that happened; C{times} counts repetitions that were not written singly."""

    id: int
    at: str
    event: str
    tenant: str | None
    subject: str | None
    fields: dict[str, Any]
    times: int


MAX_ID = 2**63 - 1
"""The highest id that a database's row can have."""


class AuditQuery(msgspec.Struct, rename="camel"):
    """Which entries."""

    event: Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[a-z-]*$")] | None = None
    before: Annotated[int, msgspec.Meta(ge=1, le=MAX_ID)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


class AuditList(msgspec.Struct, rename="camel"):
    """Newest first; for older ones, ask with C{before} the last id."""

    items: list[AuditDocument]


def operations(services: Services) -> list[Operation]:
    """The one row."""

    async def listAudit(call: Call) -> AuditList:
        tenant, query = call.principal.tenant, call.query
        # What is asked for now includes what happened just now.
        await services.audit.flush()
        found = await services.audit.list(
            tenant=tenant,
            # Strangers and runners are of no tenant: the first one looks after them.
            common=tenant == DEFAULT_TENANT,
            event=query.event,
            before=query.before,
            limit=query.limit,
        )
        return AuditList(
            [
                AuditDocument(
                    entry.id,
                    timestamp(entry.at),
                    entry.event,
                    entry.tenant,
                    entry.subject,
                    dict(entry.fields),
                    entry.times,
                )
                for entry in found
            ]
        )

    return [
        Operation(
            name="listAudit",
            method="GET",
            path="/api/v1/admin/audit",
            run=listAudit,
            access="admin",
            query=AuditQuery,
            response=AuditList,
            errors=(401, 403),
            summary="What was refused, taken over and changed, newest first.",
            tags=("admin",),
        )
    ]
