# -*- test-case-name: tests.access.test_tokens -*-
"""
The tokens that were shown lately.

A storm of agents that come back is one query for each token, however often it
is shown; those that were known a moment ago are known while the database is
lost.  What has ended is out of it before anybody can ask again, and an answer
of the database that is older than an end is asked for again.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from helix_revdial.access.cache import AnswerCache, BoundedSet
from helix_revdial.access.principals import Principal
from helix_revdial.access.records import TokenRecord
from helix_revdial.access.secrets import digestOf, isSecret
from helix_revdial.storage.failures import DatabaseUnavailable

FRESH: Final = 30.0
"""Seconds for which a token that was found is not looked up again."""

FRESH_REFUSAL: Final = 5.0
"""Seconds for which a token that was not found is not looked up again."""

KEPT: Final = 3600.0
"""Seconds for which a token that was found is taken while the database is
lost."""

MAX_KNOWN: Final = 20_000
"""Tokens that are remembered, and as many refusals."""

MAX_ENDED: Final = 100_000
"""Ended tokens that are remembered."""

Fetch = Callable[[str], Awaitable[tuple[str, TokenRecord] | None]]


class RecentTokens:
    """
    Authenticates, and asks the database as little as it can.
    """

    def __init__(self, clock: IReactorTime, wallClock: Callable[[], float], fetch: Fetch) -> None:
        """
        @param clock: for the age of what is remembered.
        @param wallClock: the time of day, in seconds since the epoch.
        @param fetch: gives the digest and the record that are stored under a
            digest, or fails with L{DatabaseUnavailable}.
        """
        self._wallClock = wallClock
        self._fetch = fetch
        self._known: AnswerCache[str, TokenRecord] = AnswerCache(
            clock.seconds, limit=MAX_KNOWN, fresh=FRESH, kept=KEPT
        )
        # Apart from the known ones: guesses must not push those out.
        self._refused: AnswerCache[str, bool] = AnswerCache(
            clock.seconds, limit=MAX_KNOWN, fresh=FRESH_REFUSAL, kept=FRESH_REFUSAL
        )
        self._asking: dict[str, list[Deferred[None]]] = {}
        self._changes = 0
        self._revoked = BoundedSet(MAX_ENDED)

    async def authenticate(self, secret: str) -> Principal | None:
        """
        @return: who shows this secret, or C{None} when it is of no live token.
        @raise DatabaseUnavailable: when it is not remembered and cannot be
            looked up.
        """
        if not isSecret(secret):
            return None
        digest = digestOf(secret)
        while True:
            record = self._known.get(digest)
            if record is not None:
                return self._principal(record)
            if self._refused.get(digest):
                return None
            waiting = self._asking.get(digest)
            if waiting is None:
                return await self._ask(digest)
            turn: Deferred[None] = Deferred()
            waiting.append(turn)
            await turn

    def known(self, secret: str) -> Principal | None:
        """Who shows this secret, if that is fresh in memory."""
        record = self._known.get(digestOf(secret)) if isSecret(secret) else None
        return None if record is None else self._principal(record)

    def stillValid(self, principal: Principal) -> bool:
        """Whether a principal has neither expired nor been revoked here."""
        expired = principal.expires is not None and principal.expires <= self._wallClock()
        return not expired and not self.isRevoked(principal.tokenId)

    def isRevoked(self, tokenId: str) -> bool:
        """Whether this process revoked that token, not too many ago."""
        return tokenId in self._revoked

    def made(self, digest: str) -> None:
        """A token with this digest exists from now on."""
        self._refused.forget(digest)

    def revoked(self, tokenId: str) -> None:
        """That token has been revoked."""
        self._revoked.add(tokenId)
        self.forget(lambda record: record.id == tokenId)

    def forget(self, which: Callable[[TokenRecord], bool]) -> None:
        """Look these up again."""
        self._known.forgetWhere(which)

    def changed(self) -> None:
        """
        Tokens have ended: a look-up that began before now may have seen the
        state before that, so it looks again.
        """
        self._changes += 1

    async def _ask(self, digest: str) -> Principal | None:
        """Look a token up; who shows the same meanwhile shares the answer."""
        self._asking[digest] = []
        failure: Failure | None = None
        try:
            return await self._lookUp(digest)
        except CancelledError:
            raise  # the one who gave up is not the others: they ask themselves
        except Exception:
            failure = Failure()
            raise
        finally:
            for turn in self._asking.pop(digest):
                if failure is None:
                    turn.callback(None)
                else:
                    turn.errback(failure)

    async def _lookUp(self, digest: str) -> Principal | None:
        while True:
            changes = self._changes
            try:
                found = await self._fetch(digest)
            except DatabaseUnavailable:
                kept = self._known.get(digest, stale=True)
                if kept is None:
                    raise
                return self._principal(kept)
            if changes == self._changes:
                break
        # The index finds what is equal; this makes sure of it, and takes the
        # same time whatever the difference.
        record = None
        if found is not None and hmac.compare_digest(found[0], digest):
            record = found[1]
        if record is None or not record.isLive(self._wallClock()):
            self._known.forget(digest)
            self._refused.put(digest, True)
            return None
        self._known.put(digest, record)
        return self._principal(record)

    def _principal(self, record: TokenRecord) -> Principal | None:
        return record.principal() if record.isLive(self._wallClock()) else None
