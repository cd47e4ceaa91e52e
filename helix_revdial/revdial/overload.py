# -*- test-case-name: tests.revdial.test_descriptors -*-
"""
When the server as a whole has too much to do for one more stream.

A limit of one runner protects the others from it; these protect the server from all of
them together.  They are asked before a dial begins, because that is the last moment at
which nothing is lost by a refusal.  Control connections are not asked: a runner that is
connected costs little, and one that is not is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime

from .errors import TooManyPendingDials

LOOK_EVERY = 0.5
"""Seconds between two looks at how much is buffered."""

RETRY_AFTER = 2.0
"""Seconds after which another try makes sense."""


class Overloaded(TooManyPendingDials):
    """
    The server has too much to do.

    @ivar limit: The name of the limit that was reached.
    """

    def __init__(self, limit: str, text: str) -> None:
        super().__init__(text, retryAfter=RETRY_AFTER)
        self.limit = limit


@dataclass(frozen=True, slots=True)
class OverloadLimits:
    """
    @ivar dials: Dials that wait, or were asked for and are not picked up, in all.
    @ivar bufferedBytes: Bytes that wait for peers to read, over all connections.
    """

    dials: int = 5000
    bufferedBytes: int = 512 * 1024 * 1024


class Overload:
    """
    Says no to a dial that would be too much.

    @ivar limits: What is too much; may be replaced.
    """

    def __init__(
        self,
        clock: IReactorTime,
        limits: OverloadLimits,
        *,
        scarce: Callable[[], bool] = lambda: False,
        buffered: Callable[[], int] = lambda: 0,
        onLimit: Callable[[str], None] | None = None,
    ) -> None:
        """
        @param clock: Tells the time.
        @param scarce: Whether descriptors are running out.
        @param buffered: How many bytes wait for peers to read.
        @param onLimit: Told the name of each limit that refuses a dial.
        """
        self.limits = limits
        self._clock = clock
        self._scarce = scarce
        self._buffered = buffered
        self._onLimit = onLimit
        self._bytes = 0
        self._lookAgain = float("-inf")

    def check(self, dials: int, relieve: Callable[[], None] = lambda: None) -> None:
        """
        May one more dial begin?

        @param dials: Those under way.
        @param relieve: Lets go of descriptors that can be spared; asked to where they are
            running out.
        @raise Overloaded: No.
        """
        if dials >= self.limits.dials:
            raise self._refused("dials", "too many dials are under way")
        if self._scarce() and self._isStillScarce(relieve):
            raise self._refused("descriptors", "the server is short of descriptors")
        now = self._clock.seconds()
        if now >= self._lookAgain:
            self._lookAgain = now + LOOK_EVERY
            self._bytes = self._buffered()
        if self._bytes >= self.limits.bufferedBytes:
            raise self._refused("buffered_bytes", "too many bytes wait for their readers")

    def _isStillScarce(self, relieve: Callable[[], None]) -> bool:
        relieve()
        return self._scarce()

    def _refused(self, limit: str, text: str) -> Overloaded:
        if self._onLimit is not None:
            self._onLimit(limit)
        return Overloaded(limit, text)


__all__ = ["Overload", "OverloadLimits", "Overloaded"]
