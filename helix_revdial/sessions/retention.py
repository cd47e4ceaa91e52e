# -*- test-case-name: tests.sessions.test_retention -*-
"""
What is over leaves, after a while.

Events and logs of sessions that have ended, by age and by number; the sessions
themselves, with all that they left; what webhooks were told; uploads that nobody used.
L{RetentionSettings} says when.

What holds:

  - nothing of a session that has not ended is touched;
  - of an ended session's events the last one stays as long as its row: whoever asks for
    its events hears how it ended, after a C{resync} that says what is not kept;
  - a session's row goes last, after its host has removed what it had, so that whatever
    is cut short is found again by the next pass;
  - each step is a small transaction (L{BATCH}, L{PIECE}) with a pause after it: others
    who write wait for one of them at most;
  - several servers on one database may do it at the same time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from sqlalchemy import Connection, and_, delete, func, or_, select
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from helix_revdial.sessions.events import EventLog, UnknownSession
from helix_revdial.sessions.lifecycle import TERMINAL
from helix_revdial.sessions.records import Session, fromRow
from helix_revdial.storage.database import Database
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.storage.tables import (
    moments,
    session_events,
    sessions,
    snapshots,
    uploads,
    webhook_deliveries,
    webhook_secrets,
)

BATCH: Final = 100
"""Sessions, or deliveries, that are looked at in one transaction."""

PIECE: Final = 2000
"""Events that are removed in one transaction."""

PAUSE: Final = 0.02
"""Seconds between two transactions."""


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """
    Seconds; 0 is for ever.

    @ivar events: after a session's end, its events.
    @ivar eventsPerSession: how many events of an ended session are kept; 0: all.
    @ivar sessions: after a session's end, or its deletion, the session.
    @ivar deliveries: after it is over, what a webhook was told, and retired secrets.
    @ivar interval: between two passes.
    """

    events: float = 90 * 86_400.0
    eventsPerSession: int = 100_000
    sessions: float = 0.0
    deliveries: float = 30 * 86_400.0
    interval: float = 300.0


class Retention:
    """
    Removes what is over its time, again and again.

    @ivar settings: those of now.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        database: Database,
        clock: IReactorTime,
        wallClock: Callable[[], float],
        events: EventLog,
        remove: Callable[[Session], Awaitable[None]],
        sweepUploads: Callable[[], Awaitable[Any]],
        settings: RetentionSettings | None = None,
    ) -> None:
        """
        @param wallClock: seconds since the epoch.
        @param remove: deletes a session that has ended, and has its host forget it.
        @param sweepUploads: removes uploads that are over.
        """
        self.settings = settings or RetentionSettings()
        self._database = database
        self._clock = clock
        self._wallClock = wallClock
        self._events = events
        self._remove = remove
        self._sweepUploads = sweepUploads
        self._running: Deferred[None] | None = None
        self._calling = LoopingCall(self._pass)
        self._calling.clock = clock

    def begin(self) -> None:
        """Begin with a pass now."""
        self._calling.start(self.settings.interval, now=True).addErrback(
            lambda failure: self._log.failure("What is over is no longer removed", failure)
        )

    def stop(self) -> None:
        """Remove nothing more."""
        if self._calling.running:
            self._calling.stop()
        if self._running is not None:
            self._running.cancel()

    def setSettings(self, settings: RetentionSettings) -> None:
        """Go by others from now on."""
        again = settings.interval != self.settings.interval and self._calling.running
        self.settings = settings
        if again:
            self._calling.stop()
            self._calling.start(settings.interval, now=False).addErrback(
                lambda failure: self._log.failure("What is over is no longer removed", failure)
            )

    def _pass(self) -> Deferred[None]:
        if self._running is None:
            running = self._running = Deferred.fromCoroutine(self.run())

            def done(result: Any) -> Any:
                self._running = None
                return result

            running.addBoth(done).addErrback(self._failed)
            return running
        return self._running

    def _failed(self, failure: Any) -> None:
        if failure.check(CancelledError) is None:
            self._log.failure("What is over is not removed", failure)

    async def run(self) -> None:
        """One pass.  A step that fails does not keep the others from their work."""
        for step in (
            self._sweepUploads,
            self._trimByAge,
            self._trimByNumber,
            self._endSessions,
            self._removeSessions,
            self._removeDeliveries,
            self._removeSecrets,
        ):
            try:
                await step()
            except DatabaseUnavailable as error:
                self._log.warn("What is over is removed later: {error}", error=error)
                return
            except CancelledError:
                raise
            except Exception:
                self._log.failure("A part of what is over is not removed")

    async def _pause(self) -> None:
        await deferLater(self._clock, PAUSE)

    # Events

    async def _trimByAge(self) -> None:
        age = self.settings.events
        if age:
            old = sessions.c.ended <= self._wallClock() - age
            await self._trim(old, lambda first, last: last)

    async def _trimByNumber(self) -> None:
        number = self.settings.eventsPerSession
        if number:
            many = sessions.c.last_seq - sessions.c.first_seq >= number
            await self._trim(many, lambda first, last: last - number + 1)

    async def _trim(self, which: Any, before: Callable[[int, int], int]) -> None:
        """
        @param before: of a session's first and last event: the first that stays.
        """
        query = (
            select(sessions.c.id, sessions.c.first_seq, sessions.c.last_seq)
            .where(
                sessions.c.kind == "task",
                sessions.c.status.in_(TERMINAL),
                sessions.c.ended.is_not(None),
                sessions.c.first_seq < sessions.c.last_seq,
                which,
            )
            .order_by(sessions.c.ended)
            .limit(BATCH)
        )
        while True:
            found = await self._database.read(
                lambda connection: [tuple(row) for row in connection.execute(query)]
            )
            for session, first, last in found:
                await self._trimOne(session, first, before(first, last))
            if len(found) < BATCH:
                return

    async def _trimOne(self, session: str, first: int, before: int) -> None:
        while first < before:
            first = min(first + PIECE, before)
            try:
                await self._events.trim(session, first)
            except UnknownSession:
                return
            await self._pause()

    # Sessions

    async def _endSessions(self) -> None:
        """Delete the sessions that ended long ago, as their owners would."""
        age = self.settings.sessions
        if not age:
            return
        query = (
            select(sessions)
            .where(
                sessions.c.kind == "task",
                sessions.c.status.in_(TERMINAL),
                sessions.c.deleted.is_(None),
                sessions.c.ended <= self._wallClock() - age,
            )
            .order_by(sessions.c.ended)
            .limit(BATCH)
        )
        while True:
            found = await self._database.read(
                lambda connection: [fromRow(row) for row in connection.execute(query)]
            )
            for session in found:
                await self._remove(session)
                await self._pause()
            if len(found) < BATCH:
                return

    async def _removeSessions(self) -> None:
        """Remove the rows of sessions that are deleted, with all that refers to them."""
        age = self.settings.sessions
        if not age:
            return
        now = self._wallClock()
        over = func.coalesce(sessions.c.ended, sessions.c.deleted)
        query = (
            select(sessions.c.id)
            .where(
                sessions.c.deleted.is_not(None),
                over <= now - age,
                or_(
                    sessions.c.kind == "sandbox",
                    sessions.c.executor.is_(None),
                    sessions.c.forgotten.is_not(None),
                    # A host that never comes back.
                    over <= now - 2 * age,
                ),
            )
            .limit(BATCH)
        )
        while True:
            found = await self._database.read(
                lambda connection: list(connection.execute(query).scalars())
            )
            for session in found:
                await self._removeSession(session)
            if len(found) < BATCH:
                return

    async def _removeSession(self, session: str) -> None:
        while await self._database.run(lambda connection: _removeSome(connection, session)):
            await self._pause()

        def write(connection: Connection) -> None:
            for table in (moments, snapshots, webhook_deliveries, uploads):
                connection.execute(delete(table).where(table.c.session == session))
            connection.execute(delete(sessions).where(sessions.c.id == session))

        await self._database.run(write)
        await self._pause()

    # Webhooks

    async def _removeDeliveries(self) -> None:
        age = self.settings.deliveries
        if not age:
            return
        columns = webhook_deliveries.c
        going = (
            select(sessions.c.id)
            .where(sessions.c.id == columns.session, sessions.c.status.not_in(TERMINAL))
            .where(sessions.c.deleted.is_(None))
            .exists()
        )
        old = (
            select(columns.id)
            # That a receiver wants no more is to be known as long as its session goes on.
            .where(
                columns.ended <= self._wallClock() - age,
                ~and_(columns.status == "gone", going),
            )
            .limit(BATCH)
        )
        query = delete(webhook_deliveries).where(columns.id.in_(old))
        while True:
            removed = await self._database.run(
                lambda connection: connection.execute(query).rowcount
            )
            if removed < BATCH:
                return
            await self._pause()

    async def _removeSecrets(self) -> None:
        age = self.settings.deliveries
        if age:
            query = delete(webhook_secrets).where(
                webhook_secrets.c.retired <= self._wallClock() - age
            )
            await self._database.run(lambda connection: connection.execute(query).rowcount)


def _removeSome(connection: Connection, session: str) -> int:
    own = session_events.c.session == session
    some = select(session_events.c.seq).where(own).order_by(session_events.c.seq).limit(PIECE)
    last = connection.execute(select(func.max(some.subquery().c.seq))).scalar()
    if last is None:
        return 0
    return connection.execute(
        delete(session_events).where(own, session_events.c.seq <= last)
    ).rowcount


__all__ = ["Retention", "RetentionSettings"]
