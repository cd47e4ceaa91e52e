# -*- test-case-name: tests.access.test_watch -*-
"""
Notices tokens that end while something lives in their name.

What this process revokes it knows at once.  What expires, and what another
process revokes, is found by looking: every few seconds, one query that reads
an index.
"""

from __future__ import annotations

from typing import ClassVar, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from helix_revdial.access.tokens import Tokens
from helix_revdial.storage.failures import DatabaseUnavailable

INTERVAL: Final = 5.0
"""Seconds between two looks: for so long a tunnel may outlive its token."""


class TokenWatch:
    """
    Calls L{Tokens.expiring} again and again, which tells the subscribers of
    L{Tokens.onRevoked}.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(self, tokens: Tokens, clock: IReactorTime, interval: float = INTERVAL) -> None:
        """
        @param interval: seconds from one look to the next.
        """
        self._tokens = tokens
        self._interval = interval
        self._loop = LoopingCall(self._look)
        self._loop.clock = clock

    def start(self) -> None:
        """Begin to look, after the first interval."""
        self._loop.start(self._interval, now=False).addErrback(
            lambda failure: self._log.failure("the token watch ended", failure=failure)
        )

    def stop(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    def _look(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.look())

    async def look(self) -> None:
        """Look now; what cannot be told is in the log."""
        try:
            await self._tokens.expiring()
        except DatabaseUnavailable as error:
            self._log.warn(
                "cannot tell which tokens have ended: {reason}; tried again in {interval} s",
                reason=str(error),
                interval=self._interval,
            )
        except Exception:
            self._log.failure("cannot tell which tokens have ended")
