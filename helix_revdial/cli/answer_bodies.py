# -*- test-case-name: tests.cli.test_answer_bodies,tests.cli.test_exchange -*-
"""
The body of an answer: whole (L{WholeBody}), or as it comes (L{Pieces}).

What is taken, and what waits for its reader, has a limit, and what was cut short is
never taken for the whole.  Knows no request and no status.
"""

from __future__ import annotations

from collections import deque
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from helix_revdial.cli.failures import BadAnswer, TimedOut, Unreachable

MAX_WAITING = 1024 * 1024
"""Bytes of a body that wait for its reader; after that the sender waits."""


class Pieces(Protocol):
    """
    A body as it comes.

    No more than L{MAX_WAITING} bytes, and what was on its way, wait for the reader.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._end: Failure | None = None
        self._waiting: Deferred[None] | None = None

    async def next(self, silence: float) -> bytes | None:
        """
        The next piece, or L{None} at the body's end.

        @param silence: Seconds that may pass without one.
        @raise Unreachable: It broke off.
        @raise TimedOut: Nothing came.
        """
        if not self._parts and self._end is None:
            waiting = self._waiting = Deferred()
            expired: list[float] = []

            def onTimeout(result: object, seconds: float) -> object:
                expired.append(seconds)
                return None

            waiting.addTimeout(silence, self._clock, onTimeoutCancel=onTimeout)
            try:
                await waiting
            except CancelledError:
                self.close()
                raise
            finally:
                self._waiting = None
            if expired:
                self.close()
                raise TimedOut(f"nothing came for {silence:.3g} s")
        if self._parts:
            piece = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
            if self._paused and self.transport is not None:
                self._paused = False
                cast(Any, self.transport).resumeProducing()
            return piece
        assert self._end is not None
        if self._end.check(ResponseDone):
            return None
        raise Unreachable("the answer broke off")

    def close(self) -> None:
        """Nothing more is wanted: the connection is closed."""
        if self._end is None and self.transport is not None:
            transport = cast(Any, self.transport)
            getattr(transport, "abortConnection", transport.loseConnection)()

    def dataReceived(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_WAITING and not self._paused and self.transport is not None:
            self._paused = True
            cast(Any, self.transport).pauseProducing()
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end = reason
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.called:
            self._waiting.callback(None)


class WholeBody(Protocol):
    """
    Collects a body, up to a limit.

    @ivar finished: Fires once, with the bytes, or fails with L{BadAnswer} or
        L{Unreachable}; cancelling it closes the connection.
    """

    def __init__(self, limit: int, *, cut: bool) -> None:
        """
        @param limit: In bytes.
        @param cut: Take the beginning of what is longer; otherwise that is an error.
        """
        self._limit = limit
        self._cut = cut
        self._parts: list[bytes] = []
        self._size = 0
        self._over = False
        self.finished: Deferred[bytes] = Deferred(self._cancelled)

    def dataReceived(self, data: bytes) -> None:
        if self._over:
            return
        self._size += len(data)
        self._parts.append(data)
        if self._size > self._limit:
            if self._cut:
                self._end(b"".join(self._parts)[: self._limit])
            else:
                self._end(
                    Failure(BadAnswer(f"the answer is larger than {self._limit:,} bytes: refused"))
                )
            self._close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reason.check(ResponseDone):
            self._end(b"".join(self._parts))
        elif reason.check(PotentialDataLoss):
            self._end(
                Failure(BadAnswer("the answer did not say where it ends: it may have been cut"))
            )
        else:
            self._end(Failure(Unreachable(f"the answer broke off after {self._size:,} bytes")))

    def _cancelled(self, deferred: Deferred[bytes]) -> None:
        self._over = True
        self._parts.clear()
        self._close()
        deferred.errback(Failure(CancelledError()))

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def _end(self, result: bytes | Failure) -> None:
        if self._over:
            return
        self._over = True
        self._parts = []
        self.finished.callback(result)


__all__ = ["MAX_WAITING", "Pieces", "WholeBody"]
