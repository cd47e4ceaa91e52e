"""
Ten thousand agents that lose their server, in virtual time: our own policy for how long
they wait, our own limit for how fast they are let in, and nothing of what is slow.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from helix_revdial.access.handshakes import Handshakes, TooManyHandshakes
from helix_revdial.agent.reconnect import ReconnectPolicy


class HeapClock(Clock):
    """A clock that stays quick with tens of thousands of timers, none of which is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self._heap: list[tuple[float, int, Callable[[], Any]]] = []
        self._numbers = itertools.count()

    def later(self, delay: float, call: Callable[[], Any]) -> None:
        """As C{callLater}, without anything to hold on to."""
        heapq.heappush(self._heap, (self.rightNow + delay, next(self._numbers), call))

    def run(self) -> None:
        """Until there is nothing left to do."""
        while self._heap or self.calls:
            if self.calls and (not self._heap or self.calls[0].getTime() <= self._heap[0][0]):
                self.advance(max(0.0, self.calls[0].getTime() - self.rightNow))
            else:
                when, _, call = heapq.heappop(self._heap)
                self.rightNow = max(when, self.rightNow)
                call()


class Storm:
    """
    All agents lose the server at once.

    @ivar rejoined: When each was back, in seconds from the moment at which the server
        could be reached again.
    @ivar handshakes: Registrations by the second.
    @ivar attempts: Attempts that reached the server, by the second.
    """

    def __init__(
        self,
        agents: int,
        *,
        away: float,
        rate: float,
        burst: int,
        old: int = 0,
        told: bool = False,
        seed: int = 1,
    ) -> None:
        """
        @param away: Seconds for which the server is not there.
        @param rate: As of L{Handshakes}.
        @param burst: Likewise.
        @param old: How many of the agents are old: they come back every second, for ever.
        @param told: Whether the server said that it leaves.
        """
        self.clock = HeapClock()
        self.rejoined: list[float] = []
        self.handshakes: Counter[int] = Counter()
        self.attempts: Counter[int] = Counter()
        self.oldRejoined: list[float] = []
        self._away = away
        self._handshakes = Handshakes(self.clock, rate=rate, burst=burst)
        random = Random(seed)
        for number in range(agents):
            if number < old:
                self.clock.later(random.random(), self._oldAttempt)
                continue
            policy = ReconnectPolicy(random.random)
            wait = policy.connectionEnded(3600.0, leaving=told)
            self.clock.later(wait, partial(self._attempt, policy))
        self.clock.run()

    def after(self, share: float) -> float:
        """Seconds after which that share of the agents was back."""
        return sorted(self.rejoined)[math.ceil(share * len(self.rejoined)) - 1]

    def _attempt(self, policy: ReconnectPolicy) -> None:
        now = self.clock.seconds()
        if now < self._away:
            self.clock.later(policy.attemptFailed(), lambda: self._attempt(policy))
            return
        self.attempts[int(now)] += 1

        def refused(failure: Failure) -> None:
            failure.trap(TooManyHandshakes)
            asked = max(1, math.ceil(cast(TooManyHandshakes, failure.value).retryAfter))
            self.clock.later(policy.attemptFailed(asked), lambda: self._attempt(policy))

        self._enter(False, self.rejoined).addErrback(refused)

    def _oldAttempt(self) -> None:
        now = self.clock.seconds()
        if now < self._away:
            self.clock.later(1.0, self._oldAttempt)
            return
        self.attempts[int(now)] += 1

        def refused(failure: Failure) -> None:
            failure.trap(TooManyHandshakes)
            self.clock.later(1.0, self._oldAttempt)

        self._enter(True, self.oldRejoined).addErrback(refused)

    def _enter(self, patient: bool, rejoined: list[float]) -> Deferred[None]:
        def entered(_: None) -> None:
            self.handshakes[int(self.clock.seconds())] += 1
            rejoined.append(self.clock.seconds() - self._away)

        return Deferred.fromCoroutine(self._handshakes.enter(patient=patient)).addCallback(entered)
