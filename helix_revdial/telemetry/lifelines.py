# -*- test-case-name: tests.telemetry.test_lifelines -*-
"""
What became of each dial and stream, and of each runner: the memory behind
C{helix why}.

L{Lifelines} holds the records of what has ended.  What still lives is not held
here: whoever owns it makes its L{Lifeline} when somebody asks.

Invariants:

  - At most C{perRunner} records of one runner and C{total} in all: a busy runner
    pushes out its own oldest, and only when all together are too many the
    oldest of all goes.
  - At most C{maxRunners} runners are remembered, those that changed last.
  - A record does not change once it is in.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

PER_RUNNER = 50
"""Records of one runner."""

TOTAL = 10_000
"""Records in all."""

MAX_RUNNERS = 10_000
"""Runners whose comings and goings are remembered."""

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Lifeline(NamedTuple):
    """
    One dial, and the stream that came of it.

    @ivar dial: The id of both.
    @ivar runner: The runner's key.
    @ivar target: The service that was asked for; C{None} for the default.
    @ivar generation: The registration that was asked, once one was.
    @ivar startedAt: When the caller asked: seconds since 1970.
    @ivar phases: Seconds from then to each thing that happened, by name.
    @ivar state: C{"waiting"} (for the runner), C{"asked"}, C{"open"} or C{"ended"}.
    @ivar outcome: C{"connected"}, C{"cancelled"}, or the word of the error that the
        dial failed with; C{None} while it is under way.
    @ivar reason: Why it ended, in words.
    @ivar about: What its caller said of it: C{request}, C{trace}.
    @ivar pooled: Whether it went by a connection that was parked.
    """

    dial: str
    runner: str
    target: str | None
    generation: int | None
    startedAt: float
    phases: Mapping[str, float]
    state: str
    outcome: str | None
    reason: str | None
    carrier: str | None
    bytesIn: int
    bytesOut: int
    about: Mapping[str, str] = _NOTHING
    pooled: bool = False


@dataclass(slots=True)
class RunnerLine:
    """
    The comings and goings of one runner since this process began.

    @ivar firstSeen: Seconds since 1970.
    @ivar connectedAt: When it last registered.
    @ivar lostAt: When its control connection was last lost; C{None} if never.
    @ivar lostReason: Why, in words.
    @ivar registrations: How many times it registered.
    """

    key: str
    firstSeen: float
    connectedAt: float
    generation: int
    peer: str
    registrations: int = 1
    lostAt: float | None = None
    lostReason: str | None = None


class Lifelines:
    """
    Remembers the latest of each runner.
    """

    def __init__(
        self,
        *,
        perRunner: int = PER_RUNNER,
        total: int = TOTAL,
        maxRunners: int = MAX_RUNNERS,
    ) -> None:
        self._perRunner = perRunner
        self._total = total
        self._maxRunners = maxRunners
        self._lines: OrderedDict[str, Lifeline] = OrderedDict()
        self._byRunner: dict[str, deque[str]] = {}
        self._runners: OrderedDict[str, RunnerLine] = OrderedDict()

    def add(self, line: Lifeline) -> None:
        """Remember what has ended."""
        if line.dial in self._lines:
            return
        own = self._byRunner.setdefault(line.runner, deque())
        own.append(line.dial)
        self._lines[line.dial] = line
        if len(own) > self._perRunner:
            del self._lines[own.popleft()]
        elif len(self._lines) > self._total:
            _, oldest = self._lines.popitem(last=False)
            others = self._byRunner[oldest.runner]
            others.popleft()
            if not others:
                del self._byRunner[oldest.runner]

    def find(self, dial: str) -> Lifeline | None:
        """The record of one dial."""
        return self._lines.get(dial)

    def recent(self, runner: str | None = None) -> Iterator[Lifeline]:
        """What ended, the latest first; of one runner or of all."""
        if runner is None:
            return reversed(list(self._lines.values()))
        return (self._lines[dial] for dial in reversed(list(self._byRunner.get(runner, ()))))

    def __len__(self) -> int:
        return len(self._lines)

    # Runners

    def registered(self, key: str, at: float, generation: int, peer: str) -> bool:
        """
        A runner registered.

        @param at: Seconds since 1970.
        @return: Whether it had been here before.
        """
        known = self._runners.get(key)
        if known is None:
            self._runners[key] = RunnerLine(key, at, at, generation, peer)
            if len(self._runners) > self._maxRunners:
                self._runners.popitem(last=False)
            return False
        known.connectedAt = at
        known.generation = generation
        known.peer = peer
        known.registrations += 1
        self._runners.move_to_end(key)
        return True

    def lost(self, key: str, at: float, generation: int, reason: str) -> None:
        """The control connection of a generation ended."""
        known = self._runners.get(key)
        if known is not None and known.generation == generation:
            known.lostAt = at
            known.lostReason = reason
            self._runners.move_to_end(key)

    def runner(self, key: str) -> RunnerLine | None:
        """What is remembered of one runner."""
        return self._runners.get(key)

    def runners(self) -> Iterator[RunnerLine]:
        """Every runner that is remembered."""
        return iter(self._runners.values())

    @property
    def runnersKnown(self) -> int:
        """How many runners are remembered."""
        return len(self._runners)


__all__ = ["MAX_RUNNERS", "PER_RUNNER", "TOTAL", "Lifeline", "Lifelines", "RunnerLine"]
