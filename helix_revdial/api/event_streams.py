# -*- test-case-name: tests.api.test_event_streams -*-
"""
Beginning a stream of server-sent events in somebody's name.

What every operation that answers with events does alike: the stream ends when what
its caller showed ends, is no stranger's for as long as it lasts, and has the heartbeats
that the caller asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Literal

import msgspec

from helix_revdial.api.authority import asking
from helix_revdial.api.services import Services
from helix_revdial.http.events import EventStream, HeartbeatForm
from helix_revdial.http.operations import Call
from helix_revdial.http.problem import Problem


class EventsQuery(msgspec.Struct):
    """What any stream of events can be asked for."""

    heartbeat: Literal["comment", "event"] = "comment"


def openEvents(
    services: Services,
    call: Call,
    *,
    first: AsyncIterator[bytes] | None = None,
    form: HeartbeatForm = "comment",
    onClose: Callable[[], None] | None = None,
) -> EventStream:
    """
    Begin a stream; the operation returns its C{response()}.

    @param first: Frames that come before what is pushed.
    @param form: What heartbeats are, C{EventsQuery.heartbeat}.
    @param onClose: Called once when the stream is over, whatever ended it.
    @raise Problem: (401) when what the caller showed has ended meanwhile.
    """
    principal = asking(call)
    if not services.stillValid(principal):
        raise Problem(401, "The token is unknown, revoked or expired.", code="unauthenticated")
    return services.eventStreams.open(
        call.request, first=first, holder=principal.family, form=form, onClose=onClose
    )


__all__ = ["EventsQuery", "openEvents"]
