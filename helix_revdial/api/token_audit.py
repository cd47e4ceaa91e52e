# -*- test-case-name: tests.api.test_operations -*-
"""
What became of a token, for the audit log: whatever it was that changed it.
"""

from __future__ import annotations

from helix_revdial.access.audit import AuditLog
from helix_revdial.access.records import TokenRecord
from helix_revdial.api.authority import asking
from helix_revdial.http.operations import Call


def noteToken(audit: AuditLog, call: Call, event: str, record: TokenRecord) -> None:
    """Record that who asked has changed C{record}, and how: the C{event}."""
    principal = asking(call)
    audit.record(
        event,
        subject=principal.tokenId,
        tenant=principal.tenant,
        token=record.id,
        kind=record.kind,
        name=record.name,
        peer=call.request.clientHost,
    )


__all__ = ["noteToken"]
