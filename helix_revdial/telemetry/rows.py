# -*- test-case-name: tests.telemetry.test_metrics -*-
"""
The names of everything that Prometheus is told.

A metric that is not in L{SERVER} or L{AGENT} does not exist, and
C{docs/observability.md} has the same rows.  The words that stand for label values
are here too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PREFIX = "helix_revdial_"

OUTCOMES = (
    "connected",
    "cancelled",
    "not-connected",
    "reconnect-timeout",
    "busy",
    "timed-out",
    "target-timed-out",
    "target-refused",
    "broken",
    "not-allowed",
    "failed",
)
"""How a dial comes out: C{connected}, C{cancelled} by its caller, or the word of its error."""

PHASES = ("asked", "dial_back", "target", "first_byte_out", "first_byte_in")

RETURNS = ("first", "within_grace", "after_grace", "takeover")

ENDS = (
    "silence",
    "superseded",
    "revoked",
    "shutdown",
    "protocol-error",
    "goodbye",
    "closed",
    "lost",
    "unresponsive",
)

LIMITS = (
    "pending_dials_per_runner",
    "streams_per_runner",
    "streams_per_user",
    "http_requests",
    "runners",
    "connections",
    "unauthenticated",
    "unauthenticated_per_address",
    "connections_per_address",
    "connections_per_tenant",
    "dials",
    "buffered_bytes",
    "descriptors",
    "handshakes",
    "handshakes_queued",
    "event_queue",
    "calls_per_user",
    "calls_per_project",
    "calls_per_tenant",
)

BACKENDS = ("dialled", "reused", "replaced")

FORWARDED = ("accepted", "refused", "failed")

REFUSALS = ("held", "busy", "not-connected")

ATTEMPTS = ("connected", "refused", "unreachable", "timed-out", "no-token")

ANSWERS = (
    "connected",
    "target-refused",
    "target-timed-out",
    "unknown-target",
    "busy",
    "unreachable",
    "withdrawn",
)


@dataclass(frozen=True, slots=True)
class Row:
    """
    One metric.

    @ivar name: Without the prefix.
    @ivar kind: C{"gauge"}, C{"counter"} or C{"histogram"}.
    @ivar labels: The names of its labels.
    @ivar meaning: One sentence, for C{HELP} and the documentation.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def fullName(self) -> str:
        """As Prometheus shows it."""
        return PREFIX + self.name


_G, _C, _H = "gauge", "counter", "histogram"

COMMON: tuple[Row, ...] = (
    Row("build_info", _G, ("version", "python", "twisted"), "1, with what is running."),
    Row("open_descriptors", _G, (), "Descriptors that the process has open."),
    Row("descriptor_limit", _G, (), "Descriptors that the process may have open."),
    Row("event_loop_lag_seconds", _H, (), "How late the event loop was, each half second."),
    Row("event_loop_lag_worst_seconds", _G, (), "The longest lag since the last scrape."),
    Row("delayed_calls", _G, (), "Timers that are to come."),
    Row("buffered_bytes", _G, ("kind",), "Bytes that wait before a socket for their peer to read."),
    Row("log_lines_dropped_total", _C, (), "Lines of the log that nobody took in time."),
)

SERVER: tuple[Row, ...] = (
    *COMMON,
    Row("ready", _G, (), "1 while the server should get requests."),
    Row(
        "connections",
        _G,
        ("kind", "carrier"),
        "Open connections: control, data, http; by what carries them.",
    ),
    Row("unauthenticated_connections", _G, (), "Connections whose peers have not shown a token."),
    Row("http_requests_total", _C, ("status",), "Requests, by the class of their answer."),
    Row("grace_entries", _G, (), "Runners that were lost and keep their names for a while."),
    Row(
        "runners_away",
        _G,
        (),
        "Runners that were connected since the server started, and are not now.",
    ),
    Row(
        "registrations_total",
        _C,
        ("how",),
        "Control connections accepted: first, returned within or after grace, or taken over.",
    ),
    Row(
        "registrations_refused_total", _C, ("error",), "Control connections refused, by the error."
    ),
    Row("control_ended_total", _C, ("reason",), "Control connections that ended, by the reason."),
    Row(
        "runners_gone_total",
        _C,
        (),
        "Runners awaited no more: their grace ran out, they left, or were cut off.",
    ),
    Row("pending_dials", _G, ("state",), "Dials without a stream: for a lost runner, or asked."),
    Row("pending_dial_oldest_seconds", _G, (), "How long the oldest of them waits."),
    Row("dials_total", _C, ("outcome",), "Dials that are decided, by how."),
    Row(
        "dial_wait_seconds",
        _H,
        ("result",),
        "From a dial to its stream (connected) or its error (failed).",
    ),
    Row(
        "dial_phase_seconds",
        _H,
        ("phase",),
        "asked: until the agent was asked; dial_back: from there to its connection; target: what "
        "the agent's service took; first_byte_out, first_byte_in: from the connection.",
    ),
    Row("streams", _G, (), "Streams that are open."),
    Row("stream_seconds", _H, (), "How long streams lived."),
    Row(
        "stream_bytes_total",
        _C,
        ("direction",),
        "Payload of streams, from (in) and to (out) agents.",
    ),
    Row(
        "http_backends_total",
        _C,
        ("how",),
        "Connections that HTTP requests to services went by: dialled, or reused; and of these "
        "those that were found ended and replaced.",
    ),
    Row(
        "forward_connections_total",
        _C,
        ("how",),
        "Connections to ports of TCP forwards: accepted; of these refused, since they were not on "
        "the list or too many, and failed, since there was no target.",
    ),
    Row(
        "pool_total",
        _C,
        ("event",),
        "Parked data connections: opened, taken for a dial, missed by one; dials that failed over "
        "to another or raced a dial-back; and why connections were closed.",
    ),
    Row("limits_hit_total", _C, ("limit",), "Refusals because of a limit, by which."),
    Row("table_entries", _G, ("table",), "Entries of each table that the server keeps in memory."),
    Row(
        "runner_connected", _G, ("runner",), "1 connected, 0 not; with metrics.runner_labels only."
    ),
    Row("runner_streams", _G, ("runner",), "Open streams; with metrics.runner_labels only."),
    Row(
        "runner_round_trip_seconds",
        _G,
        ("runner",),
        "The last sign of life; with metrics.runner_labels only.",
    ),
    Row("runner_labels_omitted", _G, (), "Runners beyond the most that have labels of their own."),
)

AGENT: tuple[Row, ...] = (
    *COMMON,
    Row("agent_runners", _G, (), "Runners that this agent is to register."),
    Row("agent_connected", _G, (), "Runners that are connected."),
    Row("agent_connections", _G, ("carrier",), "Control connections, by what carries them."),
    Row("agent_attempts_total", _C, ("outcome",), "Attempts to connect, by how they came out."),
    Row("agent_control_ended_total", _C, ("reason",), "Control connections that ended, by reason."),
    Row(
        "agent_round_trip_seconds",
        _G,
        (),
        "The last sign of life of the server; the slowest runner's.",
    ),
    Row(
        "agent_silence_seconds",
        _G,
        (),
        "Since the server was last heard; the longest of any runner.",
    ),
    Row("agent_dials_total", _C, ("outcome",), "Dials of the server, by how they were answered."),
    Row("agent_dials_under_way", _G, (), "Dials that are being answered."),
    Row("agent_dial_back_seconds", _H, (), "From the server's question to the stream."),
    Row("agent_streams", _G, (), "Streams that are open."),
    Row(
        "agent_stream_bytes_total",
        _C,
        ("direction",),
        "Payload of streams, from (in) and to (out) the server.",
    ),
)


def tableText(rows: Iterable[Row]) -> str:
    """The table of metrics as C{docs/observability.md} has it, in Markdown."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    lines.extend(
        f"| `{row.fullName}` | {row.kind} | {', '.join(f'`{name}`' for name in row.labels)} "
        f"| {row.meaning} |"
        for row in rows
    )
    return "\n".join(lines) + "\n"


__all__ = [
    "AGENT",
    "ANSWERS",
    "ATTEMPTS",
    "BACKENDS",
    "ENDS",
    "FORWARDED",
    "LIMITS",
    "OUTCOMES",
    "PHASES",
    "REFUSALS",
    "RETURNS",
    "SERVER",
    "Row",
    "tableText",
]
