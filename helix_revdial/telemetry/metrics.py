# -*- test-case-name: tests.telemetry.test_metrics -*-
"""
Everything that Prometheus is told.

The names are those of L{helix_revdial.telemetry.rows}.  L{ServerMetrics} and
L{AgentMetrics} count what happens; what merely is (connections, waiting dials) is
looked at when somebody asks, through the callable each is given.

Invariants:

  - A registry for each service; nothing of the process's own is shared.
  - Label values come from fixed words, with one exception:
    runner keys, only where the operator turned them on, and at most
    C{maxRunners} of them.
  - What happens for a dial costs additions: no lock, no label is looked up.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from twisted import __version__ as twistedVersion

from .eventloop import LoopLag
from .ledger import descriptorLimit, openDescriptors
from .measures import DURATIONS, Histogram, Tally
from .rows import (
    AGENT,
    ANSWERS,
    ATTEMPTS,
    BACKENDS,
    ENDS,
    FORWARDED,
    LIMITS,
    OUTCOMES,
    PHASES,
    REFUSALS,
    RETURNS,
    SERVER,
    Row,
)

MAX_RUNNERS = 1000
"""Runners that have labels of their own, where they are turned on."""


@dataclass
class ProcessState:
    """
    What the process holds now.

    @ivar delayedCalls: Timers.
    @ivar buffered: Unsent bytes by kind of connection.
    @ivar logDropped: Lines of the log that were dropped.
    """

    delayedCalls: int = 0
    buffered: Mapping[str, int] = field(default_factory=dict)
    logDropped: int = 0


@dataclass
class RunnerState:
    """One runner, where runners have labels."""

    key: str
    connected: bool
    streams: int = 0
    roundTrip: float | None = None


@dataclass
class ServerState(ProcessState):
    """
    What the server holds now; the names are those of the metrics.

    @ivar connections: By kind and carrier.
    @ivar runners: Those that get labels; empty where labels are off.
    """

    ready: bool = False
    connections: Mapping[tuple[str, str], int] = field(default_factory=dict)
    unauthenticated: int = 0
    requests: Mapping[str, int] = field(default_factory=dict)
    grace: int = 0
    runnersAway: int = 0
    pending: Mapping[str, int] = field(default_factory=dict)
    oldestPending: float = 0.0
    streams: int = 0
    bytesIn: int = 0
    bytesOut: int = 0
    limits: Mapping[str, int] = field(default_factory=dict)
    pool: Mapping[str, int] = field(default_factory=dict)
    tables: Mapping[str, int] = field(default_factory=dict)
    runners: Sequence[RunnerState] = ()


@dataclass
class AgentState(ProcessState):
    """What the agent holds now, over all its runners."""

    runners: int = 0
    connected: int = 0
    carriers: Mapping[str, int] = field(default_factory=dict)
    roundTrip: float | None = None
    silence: float | None = None
    dialsUnderWay: int = 0
    streams: int = 0
    bytesIn: int = 0
    bytesOut: int = 0


Sample = tuple[tuple[str, ...], float]


class _Page(Collector):
    """Makes the families of one table."""

    def __init__(self, rows: Iterable[Row], lag: LoopLag, version: str) -> None:
        self._rows = {row.name: row for row in rows}
        self._lag = lag
        self._version = version

    def describe(self) -> list[Metric]:
        """The families without samples, so that registering asks nothing of anybody."""
        return [self._family(row) for row in self._rows.values()]

    def _family(self, row: Row) -> GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily:
        kinds = {
            "gauge": GaugeMetricFamily,
            "counter": CounterMetricFamily,
            "histogram": HistogramMetricFamily,
        }
        family: GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily = kinds[row.kind](
            row.fullName, row.meaning, labels=row.labels
        )
        return family

    def numbers(self, name: str, samples: Iterable[Sample]) -> Metric:
        """A gauge or a counter."""
        family = self._family(self._rows[name])
        assert not isinstance(family, HistogramMetricFamily)
        for labels, value in samples:
            family.add_metric(labels, value)
        return family

    def number(self, name: str, value: float) -> Metric:
        """One without labels."""
        return self.numbers(name, [((), value)])

    def words(self, name: str, counts: Iterable[tuple[str, float]]) -> Metric:
        """One with one label."""
        return self.numbers(name, [((word,), count) for word, count in counts])

    def histogram(self, name: str, parts: Iterable[tuple[tuple[str, ...], Histogram]]) -> Metric:
        """One histogram for each set of labels."""
        family = self._family(self._rows[name])
        assert isinstance(family, HistogramMetricFamily)
        for labels, measured in parts:
            family.add_metric(labels, measured.buckets(), measured.total)
        return family

    def process(self, state: ProcessState) -> Iterator[Metric]:
        """What both services tell."""
        version = (self._version, platform.python_version(), twistedVersion)
        yield self.numbers("build_info", [(version, 1)])
        yield self.number("open_descriptors", openDescriptors())
        yield self.number("descriptor_limit", descriptorLimit())
        yield self.histogram("event_loop_lag_seconds", [((), self._lag.lags)])
        yield self.number("event_loop_lag_worst_seconds", self._lag.takeWorst())
        yield self.number("delayed_calls", state.delayedCalls)
        yield self.words("buffered_bytes", state.buffered.items())
        yield self.number("log_lines_dropped_total", state.logDropped)

    def collect(self) -> Iterator[Metric]:
        raise RuntimeError("a page says what is on it")


class ServerMetrics(_Page):
    """
    The server's metrics.

    @ivar registry: Holds them, and those of the process.
    """

    def __init__(self, observe: Callable[[], ServerState], lag: LoopLag, version: str) -> None:
        """
        @param observe: Looks at what is.
        @param lag: Of the event loop; started and stopped by its owner.
        @param version: Of this program.
        """
        super().__init__(SERVER, lag, version)
        self._observe = observe
        self.registrations = Tally(RETURNS)
        self.refused = Tally(REFUSALS)
        self.ended = Tally(ENDS)
        self.gone = 0
        self.dials = Tally(OUTCOMES)
        self.limits = Tally(LIMITS)
        self.backends = Tally(BACKENDS)
        self.forwarded = Tally(FORWARDED)
        self.waits = {"connected": Histogram(), "failed": Histogram()}
        self.phases = {phase: Histogram() for phase in PHASES}
        self.lives = Histogram(DURATIONS)
        self.registry = _registry(self)

    def dialConnected(self, phases: Mapping[str, float]) -> None:
        """
        A dial has its stream.

        @param phases: Seconds since the dial began, by the names of a stream's record.
        """
        self.dials.add("connected")
        up = phases.get("dialBack", 0.0)
        self.waits["connected"].observe(up)
        self._dialledBack(phases, up)
        target = phases.get("target")
        if target is not None:
            self.phases["target"].observe(target)

    def streamEnded(self, phases: Mapping[str, float]) -> None:
        """
        The stream of a dial that connected is over.

        @param phases: As for L{dialConnected}.
        """
        up = phases.get("dialBack", 0.0)
        self.lives.observe(phases.get("ended", up) - up)
        out = phases.get("firstByteOut")
        if out is not None:
            # Sent before the agent's answer, it waited for nothing.
            self.phases["first_byte_out"].observe(max(0.0, out - up))
        back = phases.get("firstByteIn")
        if back is not None:
            self.phases["first_byte_in"].observe(back - up)

    def dialFailed(self, outcome: str, phases: Mapping[str, float]) -> None:
        """
        A dial ended without a stream for its caller.

        @param outcome: One of L{OUTCOMES}.
        @param phases: As for L{dialConnected}.
        """
        self.dials.add(outcome)
        self.waits["failed"].observe(phases.get("ended", 0.0))
        self._dialledBack(phases, phases.get("dialBack"))

    def _dialledBack(self, phases: Mapping[str, float], up: float | None) -> None:
        asked = phases.get("asked")
        if asked is not None:
            self.phases["asked"].observe(asked)
        if up is not None:
            self.phases["dial_back"].observe(up - (asked or 0.0))

    def collect(self) -> Iterator[Metric]:
        """Every family of L{SERVER}."""
        state = self._observe()
        yield from self.process(state)
        yield self.number("ready", int(state.ready))
        yield self.numbers("connections", sorted(state.connections.items()))
        yield self.number("unauthenticated_connections", state.unauthenticated)
        yield self.words("http_requests_total", state.requests.items())
        yield self.number("grace_entries", state.grace)
        yield self.number("runners_away", state.runnersAway)
        yield self.words("registrations_total", self.registrations.items())
        yield self.words("registrations_refused_total", self.refused.items())
        yield self.words("control_ended_total", self.ended.items())
        yield self.number("runners_gone_total", self.gone)
        yield self.words("pending_dials", state.pending.items())
        yield self.number("pending_dial_oldest_seconds", state.oldestPending)
        yield self.words("dials_total", self.dials.items())
        yield self.histogram("dial_wait_seconds", _labelled(self.waits))
        yield self.histogram("dial_phase_seconds", _labelled(self.phases))
        yield self.number("streams", state.streams)
        yield self.histogram("stream_seconds", [((), self.lives)])
        yield self.words("stream_bytes_total", [("in", state.bytesIn), ("out", state.bytesOut)])
        yield self.words("http_backends_total", self.backends.items())
        yield self.words("forward_connections_total", self.forwarded.items())
        yield self.words("pool_total", state.pool.items())
        hits = dict(self.limits.items())
        for limit, count in state.limits.items():
            hits[limit] = hits.get(limit, 0) + count
        yield self.words("limits_hit_total", hits.items())
        yield self.words("table_entries", state.tables.items())
        yield from self._runners(state.runners)

    def _runners(self, runners: Sequence[RunnerState]) -> Iterator[Metric]:
        shown = runners[:MAX_RUNNERS]
        yield self.words("runner_connected", [(one.key, int(one.connected)) for one in shown])
        yield self.words("runner_streams", [(one.key, one.streams) for one in shown])
        yield self.words(
            "runner_round_trip_seconds",
            [(one.key, one.roundTrip) for one in shown if one.roundTrip is not None],
        )
        yield self.number("runner_labels_omitted", len(runners) - len(shown))


class AgentMetrics(_Page):
    """
    The agent's metrics, over all its runners.

    @ivar registry: Holds them, and those of the process.
    """

    def __init__(self, observe: Callable[[], AgentState], lag: LoopLag, version: str) -> None:
        super().__init__(AGENT, lag, version)
        self._observe = observe
        self.attempts = Tally(ATTEMPTS)
        self.ended = Tally((*ENDS, "held", "silent server", "left"))
        self.dials = Tally(ANSWERS)
        self.dialBacks = Histogram()
        self.registry = _registry(self)

    def collect(self) -> Iterator[Metric]:
        """Every family of L{AGENT}."""
        state = self._observe()
        yield from self.process(state)
        yield self.number("agent_runners", state.runners)
        yield self.number("agent_connected", state.connected)
        yield self.words("agent_connections", state.carriers.items())
        yield self.words("agent_attempts_total", self.attempts.items())
        yield self.words("agent_control_ended_total", self.ended.items())
        for name, value in (
            ("agent_round_trip_seconds", state.roundTrip),
            ("agent_silence_seconds", state.silence),
        ):
            yield self.numbers(name, [] if value is None else [((), value)])
        yield self.words("agent_dials_total", self.dials.items())
        yield self.number("agent_dials_under_way", state.dialsUnderWay)
        yield self.histogram("agent_dial_back_seconds", [((), self.dialBacks)])
        yield self.number("agent_streams", state.streams)
        yield self.words(
            "agent_stream_bytes_total", [("in", state.bytesIn), ("out", state.bytesOut)]
        )


def _labelled(parts: Mapping[str, Histogram]) -> list[tuple[tuple[str, ...], Histogram]]:
    return [((word,), measured) for word, measured in parts.items()]


def _registry(page: Collector) -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(page)
    return registry


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """
    The page for a scraper.

    @param accept: What its C{Accept} field says.
    @return: The page, and its content type.
    """
    encode, kind = choose_encoder(accept)
    return encode(registry), kind


__all__ = [
    "MAX_RUNNERS",
    "AgentMetrics",
    "AgentState",
    "ProcessState",
    "RunnerState",
    "ServerMetrics",
    "ServerState",
    "exposition",
]
