# -*- test-case-name: tests.cli.test_retrying -*-
"""
Asking again: how long to wait, and how a C{POST} is carried out once however often it is sent.

A C{POST} whose answer did not come may have been carried out.  It is sent with an
C{Idempotency-Key} that is made once, so that the server answers what it is asked again
with what it answered, or would have answered, the first time.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from helix_revdial.cli.edge import CommandError

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from helix_revdial.cli.exchange import Answer, Exchange

FIRST_WAIT = 0.5
"""Seconds before the second attempt, about."""

LONGEST_WAIT = 30.0
"""Seconds between two attempts, at most, unless the server asks for more."""

LONGEST_ASKED = 300.0
"""Seconds of a server's C{Retry-After} that are heeded."""

PATIENCE = 60.0
"""Seconds for which a C{POST} is sent again."""

ATTEMPT = 15.0
"""Seconds that one attempt waits for its answer."""

_KEY_LETTERS = "ABCDEFGHJKMNPQRSTVWXYZ0123456789"


class Backoff:
    """
    The waits between attempts: each about twice the one before it, none like another's.

    @param random: From 0 to 1; with it the clients of a server that was away do not all
        come back at once.
    """

    def __init__(self, random: Callable[[], float], first: float = FIRST_WAIT) -> None:
        self._random = random
        self._first = first
        self._attempts = 0

    def succeeded(self) -> None:
        """The next wait is the first again."""
        self._attempts = 0

    def wait(self, atLeast: float | None = None) -> float:
        """
        Seconds until the next attempt.

        @param atLeast: What the server asked for; it is waited for that long, and a bit.
        """
        wait = min(LONGEST_WAIT, self._first * 2.0 ** min(self._attempts, 30))
        self._attempts += 1
        wait *= 0.5 + 0.5 * self._random()
        if atLeast is not None:
            asked = min(atLeast, LONGEST_ASKED)
            wait = max(wait, asked * (1 + 0.25 * self._random()))
        return wait


def newKey() -> str:
    """A new C{Idempotency-Key}: 26 capital letters and digits, as many as a ULID has."""
    return "".join(secrets.choice(_KEY_LETTERS) for _ in range(26))


def passing(error: CommandError) -> bool:
    """Whether what went wrong may be right at another attempt."""
    from helix_revdial.cli.failures import Refused, TimedOut, Unreachable

    if isinstance(error, Refused):
        return error.status in (408, 425, 429, 500, 502, 503, 504)
    return isinstance(error, TimedOut | Unreachable)


async def postOnce(
    exchange: Exchange,
    path: str,
    body: object,
    *,
    key: str,
    random: Callable[[], float],
    patience: float = PATIENCE,
    onRetry: Callable[[CommandError], object] = lambda error: None,
) -> Answer:
    """
    Have a C{POST} carried out, once.

    That nothing listens there is told at once: nothing has been sent.  Once something
    may have arrived it is asked until an answer comes.

    @param key: The C{Idempotency-Key}.
    @param random: From 0 to 1.
    @param patience: Seconds in all.
    @param onRetry: Told why it is sent again.

    @raise CommandError: As L{Exchange.request}; after C{patience} why the last
        attempt failed.
    """
    from helix_revdial.cli.failures import Refused, Unreachable

    clock = exchange.clock
    backoff = Backoff(random)
    end = clock.seconds() + patience
    arrived = False
    while True:
        try:
            return await exchange.request(
                "POST",
                path,
                body=body,
                headers={"idempotency-key": key},
                deadline=max(1.0, min(ATTEMPT, end - clock.seconds())),
            )
        except CommandError as error:
            refused = error if isinstance(error, Refused) else None
            running = refused is not None and refused.code == "still-running"
            if not running and not passing(error):
                raise
            if isinstance(error, Unreachable) and not error.sent and not arrived:
                raise
            arrived = True
            wait = backoff.wait(None if refused is None else refused.retryAfter)
            if clock.seconds() + wait >= end:
                raise
            if not running:
                onRetry(error)
        await pause(clock, wait)


async def pause(clock: IReactorTime, seconds: float) -> None:
    """Wait."""
    from twisted.internet.task import deferLater

    timer: Any = clock
    await deferLater(timer, seconds)


__all__ = ["PATIENCE", "Backoff", "newKey", "passing", "pause", "postOnce"]
