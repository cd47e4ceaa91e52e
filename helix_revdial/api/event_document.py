# -*- test-case-name: tests.api.test_session_events -*-
"""
An event as callers have it, whichever way it comes to them.
"""

from __future__ import annotations

from typing import Any

from helix_revdial.sessions.events import Event
from helix_revdial.telemetry.timestamps import timestamp


def documentOf(event: Event) -> dict[str, Any]:
    """An event as JSON."""
    return {
        "type": event.type,
        "ts": timestamp(event.at),
        "seq": event.seq,
        "sessionId": event.session,
        **{name: value for name, value in event.data.items() if name not in _OWN},
    }


_OWN = frozenset({"type", "ts", "seq", "sessionId"})
