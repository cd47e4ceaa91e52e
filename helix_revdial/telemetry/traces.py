# -*- test-case-name: tests.telemetry.test_traces -*-
"""
W3C Trace Context, and spans for those who have OpenTelemetry.

A L{TraceContext} says of which trace a piece of work is part.  It comes with a
request (C{traceparent}, C{tracestate}), or is made; L{TraceContext.child} goes
with what is asked of others.  Ids go to logs; they are no secrets.

L{Spans} records the work in OpenTelemetry where that is installed and turned on.
The tunnel does not need it: without it nothing is imported and nothing is done.

The header is a stranger's: what is not well-formed (W3C Trace Context, Level 2,
section 3.2) is as if it were not there, and nothing of it is passed on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import randbytes
from typing import Any, Protocol

_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)

MAX_STATE = 512
"""Bytes of a C{tracestate} that are passed on (section 3.3.1.5: at least 512)."""

_STATE = re.compile(rb"[\x20-\x7e]*")

SAMPLED = 0x01


@dataclass(frozen=True, slots=True)
class TraceContext:
    """
    Where a piece of work stands in a trace.

    @ivar traceId: 32 hex digits.
    @ivar spanId: 16 hex digits: the piece of work itself.
    @ivar sampled: Whether whoever began the trace records it.
    @ivar state: The C{tracestate} that came with it, to be passed on as it is.
    @ivar parentId: The piece of work that asked for this one; C{None} if none did.
    """

    traceId: str
    spanId: str
    sampled: bool = False
    state: bytes = b""
    parentId: str | None = None

    def child(self, random: Callable[[int], bytes] = randbytes) -> TraceContext:
        """A piece of work that is part of this one."""
        return TraceContext(self.traceId, _spanId(random), self.sampled, self.state, self.spanId)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What a request carries that is made on behalf of this."""
        parent = f"00-{self.traceId}-{self.spanId}-{SAMPLED if self.sampled else 0:02x}"
        fields = [(b"traceparent", parent.encode("ascii"))]
        if self.state:
            fields.append((b"tracestate", self.state))
        return fields


def received(parent: Sequence[bytes], state: Sequence[bytes] = ()) -> TraceContext | None:
    """
    Read what a request brought.

    @param parent: The values of its C{traceparent} fields.
    @param state: The values of its C{tracestate} fields.
    @return: The caller's own piece of work; C{None} where it said nothing usable.
    """
    if len(parent) != 1:
        return None
    found = _PARENT.fullmatch(parent[0].strip())
    if found is None:
        return None
    version, traceId, spanId, flags, rest = found.groups()
    if version == b"ff" or (version == b"00" and rest is not None):
        return None
    if not traceId.strip(b"0") or not spanId.strip(b"0"):
        return None
    joined = b",".join(state)
    if len(joined) > MAX_STATE or _STATE.fullmatch(joined) is None:
        joined = b""
    return TraceContext(
        traceId.decode("ascii"),
        spanId.decode("ascii"),
        bool(int(flags, 16) & SAMPLED),
        joined,
    )


def began(random: Callable[[int], bytes] = randbytes) -> TraceContext:
    """The first piece of work of a trace that nobody records but our logs."""
    while True:
        traceId = random(16).hex()
        if traceId.strip("0"):
            return TraceContext(traceId, _spanId(random))


def serving(
    parent: Sequence[bytes],
    state: Sequence[bytes] = (),
    random: Callable[[int], bytes] = randbytes,
) -> TraceContext:
    """The context of a request that is being served: part of the caller's trace, or a new one."""
    caller = received(parent, state)
    return began(random) if caller is None else caller.child(random)


def _spanId(random: Callable[[int], bytes]) -> str:
    while True:
        spanId = random(8).hex()
        if spanId.strip("0"):
            return spanId


# OpenTelemetry


class Tracer(Protocol):
    """As much of C{opentelemetry.trace.Tracer} as is used here."""

    def start_span(
        self,
        name: str,
        context: Any = None,
        kind: Any = ...,
        attributes: Any = None,
        links: Any = None,
        start_time: int | None = None,
    ) -> Any: ...


class TracingUnavailable(Exception):
    """Spans were asked for and OpenTelemetry is not installed."""


class Spans:
    """
    Writes spans by an OpenTelemetry tracer.

    A request's span begins with it, since its id goes to whoever is asked on its
    behalf.  A dial's span is written when the dial is over, out of its recorded
    phases, so that a dial under way costs nothing.
    """

    def __init__(self, tracer: Tracer, close: Callable[[], None] | None = None) -> None:
        """
        @param tracer: Of the OpenTelemetry API.
        @param close: Sends what was not sent yet; may take seconds, so it is for
            another thread.
        @raise TracingUnavailable: C{opentelemetry-api} is not installed.
        """
        try:
            from opentelemetry import trace
        except ImportError:
            raise TracingUnavailable(_INSTALL) from None
        self._trace = trace
        self._tracer = tracer
        self.close = close if close is not None else _nothing

    def request(
        self, name: str, caller: TraceContext | None, attributes: Mapping[str, Any]
    ) -> tuple[TraceContext, Callable[[int | None], None]]:
        """
        A request has come.

        @param name: The method; a path would have ids in it.
        @param caller: What the request brought.
        @return: Its context, and what to call with the status of the answer
            (C{None}: there was none).
        """
        span = self._tracer.start_span(
            name,
            context=self._parent(caller),
            kind=self._trace.SpanKind.SERVER,
            attributes=dict(attributes),
        )
        found = span.get_span_context()
        context = TraceContext(
            f"{found.trace_id:032x}",
            f"{found.span_id:016x}",
            bool(found.trace_flags & SAMPLED),
            b"" if caller is None else caller.state,
            None if caller is None else caller.spanId,
        )

        def answered(status: int | None) -> None:
            if status is not None:
                span.set_attribute("http.response.status_code", status)
            if status is None or status >= 500:
                span.set_status(self._trace.StatusCode.ERROR)
            span.end()

        return context, answered

    def dial(
        self,
        parent: TraceContext | None,
        attributes: Mapping[str, Any],
        startedAt: float,
        phases: Mapping[str, float],
        *,
        error: str | None = None,
    ) -> None:
        """
        A dial, and the stream that came of it, are over.

        @param startedAt: Seconds since 1970.
        @param phases: Seconds from then, by name; C{"ended"} among them.
        @param error: The word it failed with.
        """
        begin = int(startedAt * 1e9)
        span = self._tracer.start_span(
            "helix_revdial.dial",
            context=self._parent(parent),
            kind=self._trace.SpanKind.CLIENT,
            attributes={name: value for name, value in attributes.items() if value is not None},
            start_time=begin,
        )
        for phase, seconds in phases.items():
            if phase not in ("ended", "target"):
                span.add_event(phase, timestamp=begin + int(seconds * 1e9))
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(self._trace.StatusCode.ERROR, error)
        span.end(end_time=begin + int(phases.get("ended", 0.0) * 1e9))

    def _parent(self, context: TraceContext | None) -> Any:
        if context is None:
            from opentelemetry.context import Context

            return Context()
        trace = self._trace
        parent = trace.SpanContext(
            int(context.traceId, 16),
            int(context.spanId, 16),
            is_remote=True,
            trace_flags=trace.TraceFlags(SAMPLED if context.sampled else 0),
        )
        return trace.set_span_in_context(trace.NonRecordingSpan(parent))


_INSTALL = "spans need OpenTelemetry: pip install 'helix_revdial[otel]'"


def _nothing() -> None:
    """There is nothing left to send."""


def exportingSpans(version: str, service: str) -> Spans:
    """
    Spans that go out by OTLP over HTTP, from a thread of the exporter's own.

    Where to is said by OpenTelemetry's own variables
    (C{OTEL_EXPORTER_OTLP_ENDPOINT} and its kin).

    @param version: Of this program.
    @param service: The name of the service, unless C{OTEL_SERVICE_NAME} says another.
    @raise TracingUnavailable: The extra C{otel} is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise TracingUnavailable(_INSTALL) from None
    name = os.environ.get("OTEL_SERVICE_NAME") or service
    provider = TracerProvider(
        resource=Resource.create({"service.name": name, "service.version": version})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Spans(provider.get_tracer("helix_revdial", version), provider.shutdown)


__all__ = [
    "Spans",
    "TraceContext",
    "Tracer",
    "TracingUnavailable",
    "began",
    "exportingSpans",
    "received",
    "serving",
]
