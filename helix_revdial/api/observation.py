# -*- test-case-name: tests.api.test_observation -*-
"""
The server as those see it who run it: what its rooms tell, brought to metrics,
life-lines, spans and the log, and what they hold, counted when somebody asks.

L{Observation} watches the connections (L{Watching
<helix_revdial.revdial.watching.Watching>}) and looks at everything else.

Invariants:

  - Nothing here is needed: what goes wrong in it changes no tunnel.
  - What happens for a dial costs additions and one record.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from twisted.logger import Logger

from helix_revdial.http.factory import HTTPFactory
from helix_revdial.revdial.connections import Connections, Registration
from helix_revdial.revdial.dials import DialState
from helix_revdial.revdial.errors import DialError
from helix_revdial.revdial.pickups import Call
from helix_revdial.revdial.table import TooManyRunners
from helix_revdial.revdial.watching import Watching
from helix_revdial.telemetry.eventloop import LoopLag
from helix_revdial.telemetry.ledger import (
    descriptorLimit,
    descriptors,
    reactorDescriptors,
    timers,
    unsentBytes,
)
from helix_revdial.telemetry.lifelines import Lifeline, Lifelines
from helix_revdial.telemetry.log_writer import LogWriter
from helix_revdial.telemetry.metrics import (
    MAX_RUNNERS,
    RunnerState,
    ServerMetrics,
    ServerState,
)
from helix_revdial.telemetry.traces import Spans, TraceContext

PENDING = {DialState.WAITING: "waiting", DialState.ASKED: "asked"}


@dataclass(frozen=True)
class Ledger:
    """
    What the process holds, by owner.

    @ivar descriptors: Open descriptors, by kind.
    @ivar descriptorLimit: How many it may have.
    @ivar timers: Calls that are to come, by the name of what is called.
    @ivar buffers: Unsent bytes, by kind of connection; C{control-lines} wait above
        their connection.
    @ivar pendingDials: Dials without a stream, by state.
    @ivar streams: Streams that are open.
    @ivar tables: Entries of each table in memory.
    @ivar threads: Threads that run.
    """

    descriptors: Mapping[str, int]
    descriptorLimit: int
    timers: Mapping[str, int]
    buffers: Mapping[str, int]
    pendingDials: Mapping[str, int]
    streams: int
    tables: Mapping[str, int]
    threads: int


class Observation(Watching):
    """
    Watches one server.

    @ivar lifelines: What has ended.
    @ivar gateways: What the ways in have now: how many of what, by its name.
    @ivar metrics: What Prometheus is told.
    @ivar spans: Where they are turned on.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        wallClock: Callable[[], float],
        version: str,
        *,
        runnerLabels: bool = False,
        logStreams: bool = True,
        spans: Spans | None = None,
        logWriter: LogWriter | None = None,
        files: Callable[[str], str | None] = lambda path: None,
    ) -> None:
        """
        @param reactor: Tells the time; whatever else it can say is asked of it.
        @param wallClock: Seconds since 1970.
        @param version: Of this program.
        @param runnerLabels: Whether runners have metrics of their own.
        @param logStreams: Whether each stream and each failed dial is logged.
        @param logWriter: What the log is written by, where it is ours.
        @param files: The kind of an open file, by its path.
        """
        self.lifelines = Lifelines()
        self.gateways: Callable[[], dict[str, int]] = dict
        self.spans = spans
        self._reactor = reactor
        self._wallClock = wallClock
        self._runnerLabels = runnerLabels
        self._logStreams = logStreams
        # Each look at the class's own makes another one.
        self._streamLog = self._log
        self._logWriter = logWriter
        self._files = files
        self._lag = LoopLag(reactor)
        self.metrics = ServerMetrics(self.state, self._lag, version)
        self._connections: Connections | None = None
        self._factory: HTTPFactory | None = None
        self._ready: Callable[[], str] = lambda: "starting"
        self._bytesIn = 0
        self._bytesOut = 0

    def watch(
        self, connections: Connections, factory: HTTPFactory | None, ready: Callable[[], str]
    ) -> None:
        """
        Look at these from now on.

        @param ready: Why the server should get no requests; empty when it should.
        """
        self._connections = connections
        self._factory = factory
        self._ready = ready

    def start(self) -> None:
        """Measure the event loop."""
        self._lag.start()

    def stop(self) -> None:
        """Have no timer any more."""
        self._lag.stop()

    # What the connections tell

    def registered(self, registration: Registration, before: str | None) -> None:
        known = self.lifelines.registered(
            registration.key, self._wallClock(), registration.generation, registration.peer
        )
        if before == "connected":
            how = "takeover"
        elif before == "grace":
            how = "within_grace"
        else:
            how = "after_grace" if known else "first"
        self.metrics.registrations.add(how)

    def registrationRefused(self, key: str, error: DialError) -> None:
        self.metrics.refused.add(error.word)
        if isinstance(error, TooManyRunners):
            self.metrics.limits.add("runners")

    def lost(self, registration: Registration, word: str, reason: str) -> None:
        self.metrics.ended.add(word)
        self.lifelines.lost(registration.key, self._wallClock(), registration.generation, reason)

    def gone(self, key: str, generation: int) -> None:
        self.metrics.gone += 1

    def dialRefused(self, key: str, error: DialError, limit: str | None) -> None:
        self.metrics.dials.add(error.word)
        if limit is not None:
            self.metrics.limits.add(limit)

    def connected(self, call: Call) -> None:
        self.metrics.dialConnected(call.stream.phases)

    def ended(self, call: Call) -> None:
        stream = call.stream
        outcome = call.outcome or "failed"
        if outcome == "connected":
            self.metrics.streamEnded(stream.phases)
        else:
            self.metrics.dialFailed(outcome, stream.phases)
        self._bytesIn += stream.bytesIn
        self._bytesOut += stream.bytesOut
        line = self._lifeline(call, "ended")
        self.lifelines.add(line)
        if self._logStreams:
            self._streamLog.info(
                "Dial {dial} to {runner}: {outcome}, {reason}; {bytesIn} bytes in, {bytesOut} out, "
                "{seconds:.3f} s",
                dial=line.dial,
                runner=line.runner,
                target=line.target,
                generation=line.generation,
                outcome=outcome,
                reason=line.reason,
                bytesIn=line.bytesIn,
                bytesOut=line.bytesOut,
                seconds=stream.phases.get("ended", 0.0),
                requestId=line.about.get("request"),
                trace=line.about.get("trace"),
            )
        if self.spans is not None:
            self.spans.dial(
                _parent(line.about),
                {
                    "helix_revdial.runner": line.runner,
                    "helix_revdial.target": line.target,
                    "helix_revdial.dial": line.dial,
                    "helix_revdial.bytes_in": line.bytesIn,
                    "helix_revdial.bytes_out": line.bytesOut,
                },
                line.startedAt,
                line.phases,
                error=None if outcome == "connected" else outcome,
            )

    # Life-lines

    def living(self, runner: str | None = None) -> list[Lifeline]:
        """Dials and streams that are under way, the latest first."""
        if self._connections is None:
            return []
        found = [
            self._lifeline(call, _state(call))
            for call in self._connections.living()
            if runner is None or call.dial.key == runner
        ]
        found.sort(key=lambda line: line.startedAt, reverse=True)
        return found

    def _lifeline(self, call: Call, state: str) -> Lifeline:
        stream = call.stream
        return Lifeline(
            dial=stream.id,
            runner=stream.runner,
            target=stream.target,
            generation=stream.generation,
            startedAt=self._wallClock() - (self._reactor.seconds() - stream.started),
            phases=dict(stream.phases),
            state=state,
            outcome=call.outcome,
            reason=stream.reason,
            carrier=stream.lastCarrier,
            bytesIn=stream.bytesIn,
            bytesOut=stream.bytesOut,
            about=stream.about if stream.about is not None else {},
            pooled=stream.pooled,
        )

    # What is

    def state(self) -> ServerState:
        """For the metrics."""
        state = ServerState(logDropped=0 if self._logWriter is None else self._logWriter.dropped)
        reactor = self._reactor
        if hasattr(reactor, "getDelayedCalls"):
            state.delayedCalls = len(reactor.getDelayedCalls())
        factory, connections = self._factory, self._connections
        if connections is None:
            return state
        state.ready = not self._ready()
        state.buffered = self._buffered()
        state.connections = connections.carriers()
        if factory is not None:
            state.connections = {
                **state.connections,
                ("http", "http"): factory.sizes()["http"],
            }
            state.unauthenticated = factory.admission.total
            state.requests = dict(factory.answers)
            state.limits = {"connections": factory.full, **factory.admission.refused}
        counts = connections.stats()
        state.grace = counts.gracePeriodEntries
        pending, state.oldestPending = self._pending(connections)
        state.pending = pending
        streams = [call.stream for call in connections.living() if call.stream.carrier is not None]
        state.streams = len(streams)
        state.bytesIn = self._bytesIn + sum(stream.bytesIn for stream in streams)
        state.bytesOut = self._bytesOut + sum(stream.bytesOut for stream in streams)
        state.tables = self.tables()
        state.pool = connections.poolEvents()
        connected = set(counts.connections)
        state.runnersAway = sum(line.key not in connected for line in self.lifelines.runners())
        if self._runnerLabels:
            state.runners = self._runners(connections, connected)
        return state

    def _runners(self, connections: Connections, connected: set[str]) -> list[RunnerState]:
        keys = sorted(line.key for line in self.lifelines.runners())
        found = []
        for place, key in enumerate(keys):
            detail = connections.detail(key) if place < MAX_RUNNERS else None
            found.append(
                RunnerState(
                    key,
                    key in connected,
                    0 if detail is None else detail.openStreams,
                    None if detail is None else detail.roundTrip,
                )
            )
        return found

    def _pending(self, connections: Connections) -> tuple[dict[str, int], float]:
        counts = Counter({"waiting": 0, "asked": 0, "picked_up": 0})
        oldest = now = self._reactor.seconds()
        for call in connections.living():
            if call.stream.carrier is None:
                counts[PENDING.get(call.dial.state, "picked_up")] += 1
                oldest = min(oldest, call.stream.started)
        return dict(counts), now - oldest

    def tables(self) -> dict[str, int]:
        """Entries of each table in memory."""
        found: dict[str, int] = {}
        if self._connections is not None:
            found |= self._connections.sizes()
        if self._factory is not None:
            found |= self._factory.sizes()
        found |= self.gateways()
        found["lifelines"] = len(self.lifelines)
        found["runners_known"] = self.lifelines.runnersKnown
        return found

    def _known(self) -> dict[int, str]:
        known = reactorDescriptors(self._reactor)
        if self._factory is not None:
            known.update(self._factory.descriptors())
        if self._logWriter is not None and self._logWriter.own is not None:
            known[self._logWriter.own] = "log"
        return known

    def _buffered(self, known: Mapping[int, str] | None = None) -> dict[str, int]:
        waiting: list[Any] = getattr(self._reactor, "getWriters", list)()
        kinds = known if known is not None else (self._known() if waiting else {})
        found = unsentBytes(waiting, kinds)
        if self._connections is not None:
            found["control-lines"] = self._connections.unsentBytes()
        return found

    def bufferedBytes(self) -> int:
        """Bytes that wait for their readers, over all connections."""
        writers: list[Any] = getattr(self._reactor, "getWriters", list)()
        lines = 0 if self._connections is None else self._connections.unsentBytes()
        return sum(unsentBytes(writers, {}).values()) + lines

    def ledger(self) -> Ledger:
        """Who owns what, now."""
        known = self._known()
        delayed: list[Any] = getattr(self._reactor, "getDelayedCalls", list)()
        pending: dict[str, int] = {}
        streams = 0
        if self._connections is not None:
            pending, _ = self._pending(self._connections)
            streams = sum(one.stream.carrier is not None for one in self._connections.living())
        return Ledger(
            descriptors(known, self._files),
            descriptorLimit(),
            timers(delayed),
            self._buffered(known),
            pending,
            streams,
            self.tables(),
            threading.active_count(),
        )


def _state(call: Call) -> str:
    if call.stream.carrier is not None:
        return "open"
    return PENDING.get(call.dial.state, "asked")


def aboutOf(requestId: str, trace: TraceContext | None) -> dict[str, str]:
    """What the record of a stream says of the request that it was dialled for."""
    about = {"request": requestId}
    if trace is not None:
        about |= {"trace": trace.traceId, "span": trace.spanId}
        if trace.sampled:
            about["sampled"] = "1"
    return about


def _parent(about: Mapping[str, str]) -> TraceContext | None:
    if "trace" not in about or "span" not in about:
        return None
    return TraceContext(about["trace"], about["span"], "sampled" in about)


def databaseFiles(url: str) -> Callable[[str], str | None]:
    """
    Tells the files of an SQLite database.

    @param url: The database's.
    """
    scheme, _, path = url.partition(":///")
    if not scheme.startswith("sqlite") or not path:
        return lambda file: None
    name = os.path.realpath(path)
    names = {name, f"{name}-wal", f"{name}-shm", f"{name}-journal"}
    return lambda file: "database" if file in names else None


__all__ = ["Ledger", "Observation", "aboutOf", "databaseFiles"]
