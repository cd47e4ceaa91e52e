# -*- test-case-name: tests.api.test_observation -*-
"""
Which trace a request is part of (W3C Trace Context).

A request's C{traceparent} is taken over, or a trace begins with it; its id stands in
the access log, in the record of each stream that was dialled for it, and in what is
asked of the desktop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from helix_revdial.http.problem import Problem
from helix_revdial.http.request import Request
from helix_revdial.http.response import HandedOver, Response
from helix_revdial.telemetry.traces import Spans, TraceContext, received, serving

Dispatch = Callable[[Request], Awaitable[Response | HandedOver]]


def traceOf(request: Request) -> TraceContext:
    """
    The context of what is done for a request; always the same for the same request.
    """
    if not isinstance(request.trace, TraceContext):
        request.trace = serving(
            request.headers.getAll(b"traceparent"), request.headers.getAll(b"tracestate")
        )
    return request.trace


async def traced(
    request: Request, dispatch: Dispatch, spans: Spans | None = None
) -> Response | HandedOver:
    """
    Answer a request as part of its trace.

    @param spans: Where each request becomes a span.
    """
    answered = None
    if spans is not None:
        caller = received(
            request.headers.getAll(b"traceparent"), request.headers.getAll(b"tracestate")
        )
        request.trace, answered = spans.request(
            request.method,
            caller,
            {"http.request.method": request.method, "helix_revdial.request": request.requestId},
        )
    request.logged["trace"] = traceOf(request).traceId
    status: int | None = None
    try:
        answer = await dispatch(request)
        status = 101 if isinstance(answer, HandedOver) else answer.status
        return answer
    except Problem as problem:
        status = problem.status
        raise
    finally:
        if answered is not None:
            answered(status)


__all__ = ["traceOf", "traced"]
