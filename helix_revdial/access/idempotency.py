# -*- test-case-name: tests.access.test_idempotency -*-
"""
What a call that is made again gets: the answer of the first time.

A caller who names a call with a key (C{Idempotency-Key}) and does not hear the answer
asks again with the same key, and the call is not carried out twice.  This module owns
the C{idempotency} table: which calls are under way, and what those that are over were
answered with.  It knows no HTTP but statuses and header fields.

What holds:

  - Of all calls with one key, at any time at most one is carried out, in whichever
    process; the others are told so at once.
  - An answer is replayed for L{KEPT} seconds, also after a restart.  It is written in
    the same transaction as the effect of its call where the call can do that
    (L{Attempt.write}), so that no crash separates the two.
  - A process that dies leaves no key locked: an attempt holds its key for L{LEASE}
    seconds, which are renewed while it is carried out.  One that was taken over
    writes nothing any more.
  - Answers with a secret, and those larger than L{MAX_BODY}, are not kept: only that
    the call was carried out, and where what it made is.
  - The table is bounded: what is over its time is swept, and beyond L{MAX_ENTRIES}
    the oldest go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import ReturningInsert
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from helix_revdial.storage.database import Database
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.storage.tables import idempotency

KEPT: Final = 86_400.0
"""Seconds for which an answer is replayed."""

LEASE: Final = 60.0
"""Seconds after which a key is free whose process says nothing any more."""

RENEW: Final = 20.0
"""Seconds between two renewals."""

SWEEP: Final = 600.0
"""Seconds between two sweeps."""

SWEPT_AT_ONCE: Final = 1000
"""Rows that one transaction of a sweep deletes."""

MAX_BODY: Final = 256 * 1024
"""Bytes of an answer that is kept."""

MAX_ENTRIES: Final = 1_000_000
"""Rows of the table."""

T = TypeVar("T")

Headers = Sequence[tuple[bytes, bytes]]


class KeyReused(Exception):
    """The key was used for another call.  HTTP answers 422."""


class StillRunning(Exception):
    """The first call with this key is not over.  HTTP answers 409."""


@dataclass(frozen=True, slots=True)
class Replay:
    """
    What was answered.

    @ivar body: C{None}: it is not kept.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | None


def scopeOf(who: Sequence[str], method: str, path: str, key: str) -> str:
    """
    What makes two calls the same to the caller.

    @param who: Whoever asks, the same after a token is rotated.
    """
    return _digest("\0".join((*who, method, path, key)).encode("utf-8"))


def digestOf(*parts: bytes) -> str:
    """
    What makes two calls the same to us.

    @param parts: Query and body in a form that says the same thing in one way only.
    """
    return _digest(b"".join(b"%d:%s" % (len(part), part) for part in parts))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Attempt:
    """
    One call that is carried out under a key.

    @ivar written: Whether L{write} was called; whether that transaction took effect is
        told by the call's own success.
    """

    __slots__ = ("_kept", "_wallClock", "began", "scope", "written")

    def __init__(
        self, scope: str, began: float, wallClock: Callable[[], float], kept: float
    ) -> None:
        self.scope = scope
        self.began = began
        self.written = False
        self._wallClock = wallClock
        self._kept = kept

    def write(
        self, connection: Connection, status: int, headers: Headers, body: bytes | None
    ) -> None:
        """
        Keep the answer, in a transaction that has begun.  Does nothing when the key
        was taken over meanwhile.

        @param body: C{None} for what is not to be kept.
        """
        now = self._wallClock()
        self.written = True
        connection.execute(
            _DONE,
            {
                "of_scope": self.scope,
                "of_began": self.began,
                "state": "done",
                "status": status,
                "headers": [
                    [name.decode("latin-1"), value.decode("latin-1")] for name, value in headers
                ],
                "body": body if body is not None and len(body) <= MAX_BODY else None,
                "expires": now + self._kept,
            },
        )

    def row(self) -> ColumnElement[bool]:
        """The row of this attempt, while it is its own."""
        return and_(
            idempotency.c.scope == self.scope,
            idempotency.c.state == "running",
            idempotency.c.created == self.began,
        )


class Idempotency:
    """
    Every key of every caller.
    """

    _log = Logger()

    def __init__(
        self,
        database: Database,
        clock: IReactorTime,
        wallClock: Callable[[], float],
        *,
        maxEntries: int = MAX_ENTRIES,
    ) -> None:
        """
        @param clock: When to renew and to sweep.
        @param wallClock: Seconds since 1970.
        """
        self._database = database
        self._wallClock = wallClock
        self._maxEntries = maxEntries
        self._running: dict[str, Attempt] = {}
        self._renewing = LoopingCall(self._renew)
        self._sweeping = LoopingCall(self._sweep)
        for loop in (self._renewing, self._sweeping):
            loop.clock = clock

    def start(self) -> None:
        """Renew and sweep from now on."""
        for loop, interval in ((self._renewing, RENEW), (self._sweeping, SWEEP)):
            loop.start(interval, now=False).addErrback(
                lambda failure: self._log.failure("a loop over the keys ended", failure=failure)
            )

    def stop(self) -> None:
        """Do so no more."""
        for loop in (self._renewing, self._sweeping):
            if loop.running:
                loop.stop()

    def sizes(self) -> Mapping[str, int]:
        """Entries of the tables in memory."""
        return {"idempotency_running": len(self._running)}

    async def begin(self, scope: str, digest: str) -> Attempt | Replay:
        """
        Carry a call out, or get what it was answered with.

        @param scope: See L{scopeOf}.
        @param digest: See L{digestOf}.
        @return: An L{Attempt}, to be ended by L{finish} or L{release}.
        @raise KeyReused: The key is another call's.
        @raise StillRunning: The first call is not over.
        @raise DatabaseUnavailable: It cannot be told.
        """
        if scope in self._running:
            # The row says the same, but for who asks again and again it costs nothing.
            await self._sameCall(scope, digest)
            raise StillRunning
        now = self._wallClock()
        attempt = Attempt(scope, now, self._wallClock, KEPT)
        self._running[scope] = attempt
        try:
            found = await self._database.run(
                lambda connection: _take(connection, scope, digest, now)
            )
        except BaseException:
            self._forget(attempt)
            raise
        if found is None:
            return attempt
        self._forget(attempt)
        return found

    async def _sameCall(self, scope: str, digest: str) -> None:
        known = await self._database.read(
            lambda connection: connection.execute(
                select(idempotency.c.request_digest).where(idempotency.c.scope == scope)
            ).scalar()
        )
        if known is not None and known != digest:
            raise KeyReused

    async def finish(
        self, attempt: Attempt, status: int, headers: Headers, body: bytes | None
    ) -> None:
        """
        The call is over: keep its answer, unless L{Attempt.write} has done so.

        @param body: C{None} for what is not to be kept.
        """
        try:
            if not attempt.written:
                await self._database.run(
                    lambda connection: attempt.write(connection, status, headers, body)
                )
        finally:
            self._forget(attempt)

    async def release(self, attempt: Attempt) -> None:
        """The call had no effect: the key is free."""
        try:
            await self._database.run(
                lambda connection: (
                    connection.execute(delete(idempotency).where(attempt.row())).rowcount
                )
            )
        finally:
            self._forget(attempt)

    def _forget(self, attempt: Attempt) -> None:
        if self._running.get(attempt.scope) is attempt:
            del self._running[attempt.scope]

    def _renew(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.renew())

    async def renew(self) -> None:
        """Hold the keys of the calls that are carried out now."""
        attempts = list(self._running.values())
        if not attempts:
            return
        until = self._wallClock() + LEASE

        def write(connection: Connection) -> None:
            for attempt in attempts:
                connection.execute(update(idempotency).where(attempt.row()).values(expires=until))

        await self._quietly(self._database.run(write))

    def _sweep(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.sweep())

    async def sweep(self) -> None:
        """Delete what is over its time, and the oldest of what is too much."""
        now = self._wallClock()
        while True:
            swept = await self._quietly(
                self._database.run(lambda connection: _sweepSome(connection, now))
            )
            if swept is None or swept < SWEPT_AT_ONCE:
                break
        await self._quietly(
            self._database.run(lambda connection: _trim(connection, self._maxEntries))
        )

    async def _quietly(self, result: Deferred[T]) -> T | None:
        try:
            return await result
        except DatabaseUnavailable as error:
            self._log.warn("The keys of calls are not kept up: {reason}", reason=str(error))
        except Exception:
            self._log.failure("The keys of calls are not kept up")
        return None


async def freeKeys(database: Database) -> int:
    """
    Free every key of a process that is gone.  Only where no other process uses the
    database.

    @return: How many there were.
    """
    return await database.run(
        lambda connection: (
            connection.execute(delete(idempotency).where(idempotency.c.state == "running")).rowcount
        )
    )


@cache
def _takeOn(dialect: str) -> ReturningInsert[tuple[str]]:
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(idempotency).on_conflict_do_nothing().returning(idempotency.c.scope)


_DONE: Final = update(idempotency).where(
    idempotency.c.scope == bindparam("of_scope"),
    idempotency.c.state == "running",
    idempotency.c.created == bindparam("of_began"),
)
"""Sets the row of an attempt, while it is its own."""


def _take(connection: Connection, scope: str, digest: str, now: float) -> Replay | None:
    """
    Take the key.

    @return: C{None}: it is taken.
    """
    row = {
        "request_digest": digest,
        "state": "running",
        "status": None,
        "headers": None,
        "body": None,
        "created": now,
        "expires": now + LEASE,
    }
    take = _takeOn(connection.dialect.name)
    if connection.execute(take, {"scope": scope, **row}).scalar_one_or_none() is not None:
        return None
    found = connection.execute(
        select(idempotency).where(idempotency.c.scope == scope).with_for_update()
    ).one_or_none()
    if found is None:
        # It was released this moment; whoever asks again is served.
        raise StillRunning
    if found.expires <= now:
        connection.execute(update(idempotency).where(idempotency.c.scope == scope).values(**row))
        return None
    if found.request_digest != digest:
        raise KeyReused
    if found.state == "running":
        raise StillRunning
    return Replay(
        found.status,
        tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in found.headers),
        found.body,
    )


def _sweepSome(connection: Connection, now: float) -> int:
    old = (
        select(idempotency.c.scope)
        .where(idempotency.c.expires <= now)
        .order_by(idempotency.c.expires)
        .limit(SWEPT_AT_ONCE)
    )
    return connection.execute(delete(idempotency).where(idempotency.c.scope.in_(old))).rowcount


def _trim(connection: Connection, limit: int) -> int:
    count = connection.execute(select(func.count()).select_from(idempotency)).scalar_one()
    if count <= limit:
        return 0
    old = select(idempotency.c.scope).order_by(idempotency.c.expires).limit(count - limit)
    return connection.execute(delete(idempotency).where(idempotency.c.scope.in_(old))).rowcount


__all__ = [
    "KEPT",
    "LEASE",
    "MAX_BODY",
    "MAX_ENTRIES",
    "Attempt",
    "Idempotency",
    "KeyReused",
    "Replay",
    "StillRunning",
    "digestOf",
    "freeKeys",
    "scopeOf",
]
