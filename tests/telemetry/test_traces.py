"""W3C Trace Context, and spans in an exporter in memory."""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.telemetry.traces import (
    MAX_STATE,
    Spans,
    TraceContext,
    TracingUnavailable,
    began,
    exportingSpans,
    received,
    serving,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01".encode()


class ReceivedTests(SynchronousTestCase):
    """L{received}: what a stranger's header may be."""

    def test_example(self) -> None:
        """The specification's own example."""
        self.assertEqual(received([PARENT]), TraceContext(TRACE, SPAN, True))

    def test_notSampled(self) -> None:
        """The lowest bit of the flags alone says whether it is recorded."""
        for flags, sampled in ((b"00", False), (b"02", False), (b"03", True), (b"ff", True)):
            found = received([PARENT[:-2] + flags])
            assert found is not None
            self.assertEqual(found.sampled, sampled, flags)

    def test_aLaterVersionMayHaveMore(self) -> None:
        """Section 3.2.2: a higher version is read as far as it is known."""
        self.assertIsNotNone(received([b"cc" + PARENT[2:] + b"-what-comes-later"]))

    def test_malformed(self) -> None:
        """What is not well-formed is as if it were not there."""
        for value in (
            b"",
            b"00",
            b"ff" + PARENT[2:],
            PARENT + b"-more",
            PARENT.upper(),
            PARENT[:-1],
            PARENT.replace(TRACE.encode(), b"0" * 32),
            PARENT.replace(SPAN.encode(), b"0" * 16),
            PARENT.replace(b"-", b"_"),
            b"\xff" * 55,
        ):
            self.assertIsNone(received([value]), value)

    def test_twoHeadersSayNothing(self) -> None:
        """Which of two is meant cannot be known."""
        self.assertIsNone(received([PARENT, PARENT]))

    def test_stateIsPassedOn(self) -> None:
        """C{tracestate} fields are joined; one that is too long or unclean is dropped alone."""
        for fields, expected in (
            ([b"a=1", b"b=2"], b"a=1,b=2"),
            ([b"a=" + b"x" * MAX_STATE], b""),
            ([b"a=1\x00"], b""),
        ):
            found = received([PARENT], fields)
            assert found is not None
            self.assertEqual(found.state, expected)

    @settings(deadline=None, max_examples=100)
    @given(st.binary(max_size=80))
    def test_neverRaises(self, value: bytes) -> None:
        """Any bytes are a context that is written back the same, or nothing."""
        found = received([value])
        if found is not None:
            self.assertEqual(received([dict(found.headers())[b"traceparent"]]), found)


class ServingTests(SynchronousTestCase):
    """L{serving}, L{began} and L{TraceContext.child}."""

    def test_part(self) -> None:
        """A request is a piece of work of its own in its caller's trace."""
        context = serving([PARENT], [b"a=1"])
        self.assertEqual((context.traceId, context.parentId, context.state), (TRACE, SPAN, b"a=1"))
        self.assertNotEqual(context.spanId, SPAN)
        asked = context.child()
        self.assertEqual(asked.parentId, context.spanId)
        self.assertEqual(
            asked.headers(),
            [(b"traceparent", f"00-{TRACE}-{asked.spanId}-01".encode()), (b"tracestate", b"a=1")],
        )

    def test_new(self) -> None:
        """Without a usable header a trace begins, which nobody is told to record."""
        context = serving([b"nonsense"])
        self.assertNotEqual(context.traceId, serving([]).traceId)
        self.assertFalse(context.sampled)
        self.assertEqual(received([context.headers()[0][1]]), context)

    def test_zeroIdsAreNone(self) -> None:
        """Section 3.2.2.3: an id of zeros is invalid, however the dice fall."""
        draws = [bytes(16), b"\x01" * 16, bytes(8), b"\x02" * 8]
        context = began(lambda size: draws.pop(0))
        self.assertEqual((context.traceId, context.spanId), ("01" * 16, "02" * 8))


class SpansTests(SynchronousTestCase):
    """L{Spans}, with the SDK's exporter in memory."""

    def setUp(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.spans = Spans(provider.get_tracer("test"))

    def finished(self) -> Any:
        (span,) = self.exporter.get_finished_spans()
        self.exporter.clear()
        return span

    def test_request(self) -> None:
        """A request is a server's span in its caller's trace, with its status."""
        caller = received([PARENT], [b"a=1"])
        context, answered = self.spans.request("GET", caller, {"x": 1})
        self.assertEqual((context.traceId, context.parentId, context.state), (TRACE, SPAN, b"a=1"))
        answered(200)
        span = self.finished()
        self.assertEqual(f"{span.context.span_id:016x}", context.spanId)
        self.assertEqual(f"{span.parent.span_id:016x}", SPAN)
        self.assertEqual(span.kind.name, "SERVER")
        self.assertEqual(span.attributes, {"x": 1, "http.response.status_code": 200})
        self.assertTrue(span.status.is_ok)

    def test_requestThatFailed(self) -> None:
        """5xx and no answer at all are errors; 4xx are the caller's."""
        for status, ok in ((404, True), (503, False), (None, False)):
            _, answered = self.spans.request("GET", None, {})
            answered(status)
            self.assertEqual(self.finished().status.is_ok, ok, status)

    def test_dial(self) -> None:
        """A dial's span has its phases for events, at their times."""
        parent = TraceContext(TRACE, SPAN, True)
        phases = {"asked": 0.5, "dialBack": 1.0, "target": 0.1, "firstByteIn": 1.5, "ended": 2.0}
        self.spans.dial(parent, {"runner": "wolf-1", "target": None}, 1000.0, phases)
        span = self.finished()
        self.assertEqual(f"{span.context.trace_id:032x}", TRACE)
        self.assertEqual(f"{span.parent.span_id:016x}", SPAN)
        self.assertEqual((span.start_time, span.end_time), (1000 * 10**9, 1002 * 10**9))
        self.assertEqual(
            [(event.name, event.timestamp / 1e9) for event in span.events],
            [("asked", 1000.5), ("dialBack", 1001.0), ("firstByteIn", 1001.5)],
        )
        self.assertEqual(span.attributes, {"runner": "wolf-1"})

    def test_dialThatFailed(self) -> None:
        """The word of its error is on the span; without a request it begins a trace."""
        self.spans.dial(None, {}, 1000.0, {"ended": 0.25}, error="target-refused")
        span = self.finished()
        self.assertIsNone(span.parent)
        self.assertFalse(span.status.is_ok)
        self.assertEqual(span.attributes, {"error.type": "target-refused"})

    def test_notInstalled(self) -> None:
        """Where OpenTelemetry is not installed, one sentence says what to install."""
        tracer = TracerProvider().get_tracer("x")
        with (
            patch.dict(sys.modules, {"opentelemetry": None}),
            self.assertRaises(TracingUnavailable) as caught,
        ):
            Spans(tracer)
        self.assertIn("pip install 'helix_revdial[otel]'", str(caught.exception))
        with (
            patch.dict(sys.modules, {"opentelemetry.exporter": None}),
            self.assertRaises(TracingUnavailable) as caught,
        ):
            exportingSpans("1", "x")
        self.assertIn("pip install 'helix_revdial[otel]'", str(caught.exception))
