# -*- test-case-name: tests.agent.test_reconnect -*-
"""
How long an agent waits before it connects again.

Owns the numbers only: no sockets, no timers, no log.  L{ReconnectPolicy} is
told how each attempt and each connection ended and answers with a number of
seconds; L{AgentService <helix_revdial.agent.service.AgentService>} does the
waiting.

Rules, and why:

  - Full jitter: the wait is drawn evenly between nothing and a ceiling that
    doubles with each failure.  Ten thousand agents that lose one server in the
    same second come back spread over the whole ceiling.
  - The ceiling falls back to the first delay only after a connection that held
    for a while.  A login that passes and is then dropped counts as a failure,
    or an agent would hammer a server that accepts and slams.
  - A server that says when to come back is obeyed: never sooner, and spread
    over some time after, or everybody it told the same would come at once.
  - A server that said that it leaves is about to be back, or another one stands
    in for it: for a while the ceiling stays low, so that the runner is back
    soon after the server is.  The wait is drawn as ever, so the agents of one
    server come back spread.
  - An agent that was superseded waits, so that two hosts with one identity do
    not take the name from each other once a second.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

FIRST_DELAY = 1.0
"""Ceiling of the first wait, in seconds."""

MAX_DELAY = 60.0
"""What the ceiling grows to, in seconds."""

FACTOR = 2.0
"""By how much the ceiling grows with each failure in a row."""

STABLE_AFTER = 30.0
"""Seconds a connection must hold for the failures before it to be forgotten."""

SUPERSEDED_DELAY = 30.0
"""The least wait of a superseded agent whose server named none, in seconds."""

LEAVING_DELAY = 4.0
"""What the ceiling grows to after a server said that it leaves, in seconds."""

LEAVING_ATTEMPTS = 30
"""For how many attempts it stays so low: about a minute's worth."""

MIN_DELAY = 0.1
"""No wait is shorter, in seconds: a draw of nothing must not become a loop."""

MAX_RETRY_AFTER = 3600.0
"""The longest wait that a server can ask for, in seconds."""

SPREAD = 0.5
"""Waits that a server asked for are stretched by up to this share."""


class ReconnectPolicy:
    """
    The waits of one agent.

    @ivar failures: Attempts and short connections in a row so far.
    @ivar asked: Whether the last wait is one that the server asked for.
    """

    def __init__(
        self,
        random: Callable[[], float],
        *,
        firstDelay: float = FIRST_DELAY,
        maxDelay: float = MAX_DELAY,
        stableAfter: float = STABLE_AFTER,
        supersededDelay: float = SUPERSEDED_DELAY,
    ) -> None:
        """
        @param random: Draws evenly from [0, 1), as C{random.random} does.
        @param firstDelay: Ceiling of the first wait, in seconds (C{--reconnect}).
        @param maxDelay: What the ceiling grows to, in seconds.  A first delay above
            it raises it, since the operator asked for that.
        @param stableAfter: Seconds a connection must hold to count as a success.
        @param supersededDelay: The least wait, in seconds, of a superseded agent.
        """
        self._random = random
        self._firstDelay = firstDelay
        self._maxDelay = max(maxDelay, firstDelay)
        self._stableAfter = stableAfter
        self._supersededDelay = supersededDelay
        self._awaiting = 0
        self.failures = 0
        self.asked = False

    def attemptFailed(self, retryAfter: float | None = None) -> float:
        """
        An attempt did not lead to a registered connection.

        @param retryAfter: What the server asked for, in seconds, if it did.
        @return: Seconds to wait before the next attempt.
        """
        return self._next(retryAfter)

    def connectionEnded(
        self,
        held: float,
        *,
        leaving: bool = False,
        superseded: bool = False,
        retryAfter: float | None = None,
    ) -> float:
        """
        A registered connection is over.

        @param held: Seconds that it lasted.
        @param leaving: Whether the server ended it because it goes away.
        @param superseded: Whether the server ended it for a newer connection of
            the same owner.
        @param retryAfter: What the server asked for, in seconds, if it did.
        @return: Seconds to wait before the next attempt.
        """
        # A server that accepts and leaves again and again counts as one that slams.
        self._awaiting = 0
        if leaving and (held >= self._stableAfter or not self.failures):
            self._awaiting = LEAVING_ATTEMPTS
        if held >= self._stableAfter:
            self.failures = 0
        if superseded:
            retryAfter = max(_bounded(retryAfter) or 0.0, self._supersededDelay)
        return self._next(retryAfter)

    def _next(self, retryAfter: float | None) -> float:
        # Beyond 64 doublings the ceiling is reached whatever the first delay is,
        # and a float power would overflow in a long outage.
        ceiling = min(self._maxDelay, self._firstDelay * FACTOR ** min(self.failures, 64))
        if self._awaiting:
            self._awaiting -= 1
            ceiling = min(ceiling, max(LEAVING_DELAY, self._firstDelay))
        self.failures += 1
        asked = _bounded(retryAfter)
        self.asked = asked is not None
        if asked is None:
            return max(MIN_DELAY, self._random() * ceiling)
        return max(MIN_DELAY, asked + self._random() * max(ceiling, asked * SPREAD))


def _bounded(retryAfter: float | None) -> float | None:
    """What a server asked for as far as it makes sense, C{None} where it does not."""
    if retryAfter is None or not isfinite(retryAfter) or retryAfter <= 0:
        return None
    return min(retryAfter, MAX_RETRY_AFTER)


__all__ = [
    "FIRST_DELAY",
    "LEAVING_ATTEMPTS",
    "LEAVING_DELAY",
    "MAX_DELAY",
    "MAX_RETRY_AFTER",
    "MIN_DELAY",
    "STABLE_AFTER",
    "SUPERSEDED_DELAY",
    "ReconnectPolicy",
]
