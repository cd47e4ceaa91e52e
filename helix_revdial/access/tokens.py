# -*- test-case-name: tests.access.test_tokens -*-
"""
Tokens: made, shown, rotated, revoked.

This module owns the C{tokens} table and what is remembered of it.

What holds:

  - a secret leaves this module once, from the call that made it; the table and
    the memory hold its SHA-256 only, and comparisons take the same time
    whatever the difference;
  - a token and its rotations are one I{family}, which is what owns a runner's
    name and what revocation goes by;
  - revocation tells its subscribers at once, before anybody can authenticate
    again, and an answer of the database that is older than a revocation is
    not used;
  - a storm of agents that come back costs one query for each token, and those
    that were known a moment ago are known while the database is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from sqlalchemy import Connection, and_, or_
from sqlalchemy.exc import IntegrityError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from helix_revdial.access import store
from helix_revdial.access.cache import BoundedSet
from helix_revdial.access.files import writePrivately
from helix_revdial.access.principals import DEFAULT_TENANT, Principal
from helix_revdial.access.recent import MAX_ENDED, RecentTokens
from helix_revdial.access.records import TokenError, TokenRecord, newRecord
from helix_revdial.access.secrets import digestOf, isSecret, newSecret
from helix_revdial.access.store import UnknownToken
from helix_revdial.storage.database import Database
from helix_revdial.storage.ids import newId
from helix_revdial.storage.tables import tokens

__all__ = ["TokenConflict", "Tokens"]

MAX_OVERLAP: Final = 30 * 86400.0
"""Seconds for which a rotated token can stay valid, at most."""

DEFAULT_OVERLAP: Final = 3600.0


OVERLAP_OF_LOOKS: Final = 120.0
"""Seconds by which L{Tokens.expiring} looks back before its last look: for
clocks that differ between processes, and transactions that end late."""

Subscriber = Callable[[str], None]

T = TypeVar("T")


class TokenConflict(Exception):
    """The token's state does not allow what was asked.  HTTP answers 409."""


class Tokens:
    """
    Every token of every tenant.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        database: Database,
        clock: IReactorTime,
        wallClock: Callable[[], float],
        *,
        random: Callable[[], str] = newSecret,
    ) -> None:
        """
        @param clock: for the age of what is remembered.
        @param wallClock: the time of day, in seconds since the epoch.
        @param random: makes a secret.
        """
        self._database = database
        self._wallClock = wallClock
        self._newSecret = random
        self._recent = RecentTokens(clock, wallClock, self._fetch)
        self._subscribers: list[Subscriber] = []
        self._looked = wallClock()
        self._told = BoundedSet(MAX_ENDED)

    # Showing a token

    async def authenticate(self, secret: str) -> Principal | None:
        """
        Who shows this secret.

        @return: C{None} when the secret is of no live token.
        @raise DatabaseUnavailable: when it was not seen lately and cannot be
            looked up.
        """
        return await self._recent.authenticate(secret)

    def known(self, secret: str) -> Principal | None:
        """Who shows this secret, as far as it needs no look-up."""
        return self._recent.known(secret)

    def stillValid(self, principal: Principal) -> bool:
        """
        Whether a principal that was authenticated a moment ago has been
        neither revoked (as far as this process knows) nor expired since.

        To be asked just before something lasting is made in its name, without
        waiting in between: a revocation during the wait would miss it.
        """
        return self._recent.stillValid(principal)

    async def isLive(self, family: str) -> bool:
        """
        Whether a token of that family is valid: for what lasts longer than the
        process that authenticated it.
        """
        now = self._wallClock()
        return await self._database.run(lambda connection: store.hasLive(connection, family, now))

    async def tenantOf(self, family: str) -> str | None:
        """
        @return: The tenant of a token family, or C{None} where no token of it is valid.
        """
        now = self._wallClock()
        return await self._database.run(lambda connection: store.tenantOf(connection, family, now))

    # Making tokens

    async def create(
        self,
        kind: str,
        *,
        name: str,
        tenant: str = DEFAULT_TENANT,
        user: str | None = None,
        role: str | None = None,
        patterns: Sequence[str] = (),
        session: str | None = None,
        expires: float | None = None,
    ) -> tuple[TokenRecord, str]:
        """
        Make a token of a family of its own.

        @param kind: C{"user"}, C{"runner"} or C{"session"}.
        @param name: what people call it.
        @param user: who a user token speaks for; of the others, who makes it.
        @param role: of a user token.
        @param patterns: of a runner token: the keys it may register.
        @param session: of a session token.
        @param expires: seconds since the epoch, or C{None} for never.
        @return: the record, and the secret, which is told this once.
        @raise TokenError: for what a token cannot be.
        """
        now = self._wallClock()
        record = newRecord(
            id=newId("tok", now),
            family=newId("fam", now),
            kind=kind,
            name=name,
            tenant=tenant,
            user=user,
            role=role,
            patterns=patterns,
            session=session,
            created=now,
            expires=expires,
        )
        secret = self._newSecret()
        digest = digestOf(secret)
        await self._database.run(lambda connection: store.add(connection, record, digest))
        self._recent.made(digest)
        return record, secret

    async def importSecret(
        self,
        secret: str,
        kind: str,
        *,
        name: str,
        tenant: str = DEFAULT_TENANT,
        user: str | None = None,
        role: str | None = None,
        patterns: Sequence[str] = (),
        session: str | None = None,
        expires: float | None = None,
    ) -> TokenRecord:
        """
        Take a secret that exists already, such as a C{RUNNER_TOKEN} that many
        machines hold, as a token of a family of its own.  Importing it again
        for the same purpose changes nothing.

        @param secret: 8 to 512 visible ASCII characters.
        @return: the record.
        @raise TokenError: for what a token cannot be.
        @raise TokenConflict: when the secret is known for another purpose, or
            was revoked or has expired.
        """
        if not isSecret(secret):
            raise TokenError("token", "an imported token has 8 to 512 visible ASCII characters")
        now = self._wallClock()
        record = newRecord(
            id=newId("tok", now),
            family=newId("fam", now),
            kind=kind,
            name=name,
            tenant=tenant,
            user=user,
            role=role,
            patterns=patterns,
            session=session,
            created=now,
            expires=expires,
        )
        digest = digestOf(secret)

        def write(connection: Connection) -> TokenRecord:
            try:
                with connection.begin_nested():
                    store.add(connection, record, digest)
            except IntegrityError:
                found = store.byDigest(connection, digest)
                if found is None:
                    raise
                return found[1]
            return record

        stored = await self._database.run(write)
        if stored.id != record.id:
            if not stored.isLive(now):
                raise TokenConflict(f"this token was imported before ({stored.id}) and has ended")
            if _purpose(stored) != _purpose(record):
                raise TokenConflict(
                    f"this token is known for another purpose ({stored.id}): revoke that first"
                )
        self._recent.made(digest)
        return stored

    async def rotate(
        self, tokenId: str, overlap: float = DEFAULT_OVERLAP, *, tenant: str | None = None
    ) -> tuple[TokenRecord, str]:
        """
        Give a token a successor of the same family, for the same purpose and
        as long as the token was made for.

        @param overlap: seconds for which the old one is still valid, so that
            there is time to bring the new one to where it is used.
        @param tenant: only a token of this tenant.
        @return: the new record and its secret.
        @raise UnknownToken: when there is no such token.
        @raise TokenConflict: when it was rotated before, or has ended.
        @raise TokenError: for an overlap that cannot be.
        """
        if not 0 <= overlap <= MAX_OVERLAP:
            raise TokenError("overlap", f"an overlap has 0 to {MAX_OVERLAP:.0f} seconds")
        now = self._wallClock()
        successor = newId("tok", now)
        secret = self._newSecret()
        digest = digestOf(secret)

        def write(connection: Connection) -> TokenRecord:
            old = store.find(connection, tokenId, tenant, lock=True)
            if not old.isLive(now):
                raise TokenConflict("the token has ended: make a new one")
            if old.replacement is not None:
                raise TokenConflict(f"the token was rotated already: rotate {old.replacement}")
            record = newRecord(
                id=successor,
                family=old.family,
                kind=old.kind,
                name=old.name,
                tenant=old.tenant,
                user=old.user,
                role=old.role,
                patterns=old.patterns,
                session=old.session,
                created=now,
                expires=None if old.expires is None else now + (old.expires - old.created),
            )
            end = now + overlap if old.expires is None else min(old.expires, now + overlap)
            store.replace(connection, old.id, successor, end)
            store.add(connection, record, digest)
            return record

        record = await self._changing(write)
        self._recent.forget(lambda known: known.id == tokenId)
        return record, secret

    # Ending tokens

    async def revoke(self, which: str, *, tenant: str | None = None) -> list[TokenRecord]:
        """
        End a token, or all of a family, at once.  Subscribers are told its
        family before this returns.

        @param which: a token's id or a family's.
        @param tenant: only of this tenant.
        @return: what was live until now.
        @raise UnknownToken: when there is no such token or family.
        """
        found = or_(tokens.c.id == which, tokens.c.family == which)
        return await self._revoke(
            found if tenant is None else and_(found, tokens.c.tenant == tenant), required=True
        )

    async def revokeSession(self, session: str) -> list[TokenRecord]:
        """
        End every token of a session, such as when it is deleted.

        @return: what was live until now, which may be nothing.
        """
        return await self._revoke(tokens.c.session == session, required=False)

    async def _revoke(self, which: Any, *, required: bool) -> list[TokenRecord]:
        now = self._wallClock()

        def write(connection: Connection) -> list[TokenRecord]:
            records = store.revoke(connection, which, now)
            if required and not records:
                raise UnknownToken("no such token")
            return [record for record in records if record.isLive(now)]

        records = await self._changing(write)
        for record in records:
            self._recent.revoked(record.id)
        self._tell(dict.fromkeys(record.family for record in records))
        return records

    def onRevoked(self, callback: Subscriber) -> Callable[[], None]:
        """
        Have C{callback} called with each family of which a token is revoked,
        or whose last token has expired (see L{expiring}): whatever lives in
        its name has to end.

        @return: ends the subscription.
        """
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

    def tell(self, families: Iterable[str]) -> None:
        """
        Tell the subscribers of L{onRevoked} that credentials have ended that are kept
        elsewhere.
        """
        self._tell(dict.fromkeys(families))

    async def expiring(self, now: float | None = None) -> frozenset[str]:
        """
        The families that ended since the last time this was called: all their
        tokens have expired, or one was revoked, by this process or another.
        Each family is told once, here and to the subscribers.

        A token that expired while another of its family is live is no such
        end: what it holds open belongs to the family.

        @param now: the time of day, if not that of the clock.
        @raise DatabaseUnavailable: when it cannot be told; the next call
            covers the time since.
        """
        until = self._wallClock() if now is None else now
        since = self._looked - OVERLAP_OF_LOOKS
        found = await self._database.read(
            lambda connection: store.endedBetween(connection, since, until)
        )
        self._looked = until
        fresh: dict[str, None] = {}
        for tokenId, family in found:
            if tokenId in self._told or self._recent.isRevoked(tokenId):
                continue
            self._told.add(tokenId)
            fresh[family] = None
        if fresh:
            self._recent.changed()
            self._recent.forget(lambda known: known.family in fresh)
            self._tell(fresh)
        return frozenset(fresh)

    async def nextExpiry(self) -> float | None:
        """
        When the next live token expires, in seconds since the epoch, or
        C{None} when none does.
        """
        now = self._wallClock()
        return await self._database.read(lambda connection: store.nextExpiry(connection, now))

    # Reading

    async def get(self, tokenId: str, *, tenant: str | None = None) -> TokenRecord:
        """
        @raise UnknownToken: when there is no such token.
        """
        return await self._database.read(lambda connection: store.find(connection, tokenId, tenant))

    async def list(
        self,
        *,
        tenant: str | None = None,
        user: str | None = None,
        kind: str | None = None,
        ended: bool = False,
        page: int = 1,
        perPage: int = 50,
    ) -> tuple[list[TokenRecord], int]:
        """
        Tokens, newest first.

        @param ended: those that were revoked or have expired, too.
        @param page: from 1.
        @param perPage: how many, at most 200.
        @return: the page, and how many there are in all.
        """
        liveAt = None if ended else self._wallClock()
        size = min(max(perPage, 1), 200)
        offset = (max(page, 1) - 1) * size
        return await self._database.read(
            lambda connection: store.page(
                connection,
                tenant=tenant,
                user=user,
                kind=kind,
                liveAt=liveAt,
                limit=size,
                offset=offset,
            )
        )

    # The first start

    async def ensureAdmin(self, path: str | Path) -> Path | None:
        """
        Make sure that somebody can administer the server: where no live admin
        token exists, make one and write it to a file that only its owner can
        read.

        The file is there whole before the token counts, and of several
        processes that start at the same time one makes the token: a crash in
        between leaves a file of no use, and the next start replaces it.

        @param path: of the file.
        @return: the file, to be told to people, or C{None} when an admin
            token exists.
        @raise OSError: when the file cannot be written; then no token is made.
        """
        target = Path(path)
        now = self._wallClock()
        record = newRecord(
            id=newId("tok", now),
            family=newId("fam", now),
            kind="user",
            name="first start",
            tenant=DEFAULT_TENANT,
            user="admin",
            role="admin",
            patterns=(),
            session=None,
            created=now,
            expires=None,
        )
        secret = self._newSecret()

        def write(connection: Connection) -> bool:
            if store.hasAdmin(connection, now):
                return False
            writePrivately(target, secret + "\n")
            store.add(connection, record, digestOf(secret))
            return True

        return target if await self._database.run(write) else None

    async def _changing(self, write: Callable[[Connection], T]) -> T:
        """Run a transaction that ends tokens."""
        try:
            return await self._database.run(write)
        finally:
            self._recent.changed()

    async def _fetch(self, digest: str) -> tuple[str, TokenRecord] | None:
        return await self._database.read(lambda connection: store.byDigest(connection, digest))

    def _tell(self, families: dict[str, None]) -> None:
        for family in families:
            for subscriber in list(self._subscribers):
                try:
                    subscriber(family)
                except Exception:
                    self._log.failure(
                        "a subscriber failed to end what {family} holds", family=family
                    )


def _purpose(record: TokenRecord) -> tuple[object, ...]:
    """What two imports of one secret have to agree on."""
    return (
        record.kind,
        record.tenant,
        record.user,
        record.role,
        record.patterns,
        record.session,
    )
