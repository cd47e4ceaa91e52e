# -*- test-case-name: tests.sessions.test_webhooks -*-
"""
Telling other servers what happens to sessions.

What is to be told is written down with its event
(L{helix_revdial.sessions.webhook_outbox}).  L{Webhooks} sends what is due.

This module owns what becomes of the rows of the C{webhook_deliveries} table.  A row is
C{pending}; C{sending}, by somebody who has it until C{next_attempt}; or over:
C{delivered}; C{failed}, when it was given up; C{gone}, when its receiver wants no more.

What holds:

  - each delivery is made at least once, by one process at a time; its id is the same
    each time, so that a receiver can tell;
  - a receiver that does not answer as it should is tried again, less and less often, for
    as long as C{giveUpAfter} says; one that answers 410 is told no more of the session;
  - there are so many attempts at one time in all, and nobody takes another's turn
    (L{helix_revdial.sessions.webhook_turns}).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from sqlalchemy import Connection, Row, func, select, tuple_, update
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from helix_revdial.sessions.events import Event, EventLog
from helix_revdial.sessions.webhook_calls import (
    Answer,
    CallFailed,
    Calls,
    CallSettings,
)
from helix_revdial.sessions.webhook_outbox import OVER, nameOf
from helix_revdial.sessions.webhook_secrets import liveSecrets, signatureOf
from helix_revdial.sessions.webhook_turns import Counted, Server, Turns
from helix_revdial.storage.database import Database
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.storage.tables import webhook_deliveries

POLL: Final = 5.0
"""Seconds between two looks for what is due, if nothing happens."""

CLAIMED_AT_ONCE: Final = 100

GIVEN_UP_AT_ONCE: Final = 1000

EXPIRE: Final = 60.0
"""Seconds between two looks for what is to be given up without another attempt."""

FIRST_RETRY: Final = 5.0
"""Seconds before the second attempt; they double, up to C{LAST_RETRY}."""

LAST_RETRY: Final = 3600.0

LEASE: Final = 30.0
"""Seconds, beyond those of an attempt, after which nobody seems to make it."""

_wd = webhook_deliveries.c


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """
    @ivar giveUpAfter: seconds from the event to the last attempt.
    @ivar atOnce: attempts at one time; C{perTenant}, of one tenant; C{perTarget}, at
        one server for one tenant.
    """

    giveUpAfter: float = 86_400.0
    atOnce: int = 32
    perTarget: int = 4

    @property
    def perTenant(self) -> int:
        """Attempts at one time for one tenant."""
        return max(self.atOnce // 4, 1)


@dataclass(frozen=True, slots=True)
class _Due:
    """What is to be sent now."""

    id: str
    tenant: str
    session: str
    url: str
    target: str
    body: str = field(repr=False)
    attempts: int
    created: float
    secrets: Sequence[str] = field(repr=False)


class Webhooks:
    """
    Sends what is due.

    @ivar settings: those of now.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        database: Database,
        clock: IReactorTime,
        wallClock: Callable[[], float],
        log: EventLog,
        calls: Calls,
        settings: WebhookSettings | None = None,
        *,
        spread: Callable[[], float] = random.random,
        mayWant: Callable[[str, str], bool] = lambda session, name: True,
    ) -> None:
        """
        @param wallClock: seconds since the epoch.
        @param log: tells when there may be something to send.
        @param mayWant: whether there may, after an event of that session and name: to look
            is a transaction.
        @param spread: from 0 to 1: what sets retries apart.
        """
        self.settings = settings or WebhookSettings()
        self._database = database
        self._clock = clock
        self._wallClock = wallClock
        self._calls = calls
        self._spread = spread
        self._mayWant = mayWant
        self._turns = Turns(clock, spread)
        self._sending: set[Deferred[None]] = set()
        self._looking: Deferred[None] | None = None
        self._again = False
        self._expired = clock.seconds()
        self._stopped = True
        self._polling = LoopingCall(self.wake)
        self._polling.clock = clock
        self._unsubscribe = log.subscribeAll(self._happened)

    def callAs(self, settings: CallSettings) -> None:
        """From now on, call other servers otherwise."""
        self._calls.settings = settings

    # Start and stop

    def begin(self) -> None:
        """Send what is due, and from now on what becomes due."""
        self._stopped = False
        beginning = Deferred.fromCoroutine(self._begun())
        beginning.addErrback(lambda failure: self._log.failure("Webhooks are not sent", failure))

    async def _begun(self) -> None:
        if self._database.engine.dialect.name == "sqlite":
            # Whoever was sending these is gone.
            now = self._wallClock()
            free = update(webhook_deliveries).where(_wd.status == "sending")
            free = free.values(status="pending", next_attempt=now)
            try:
                await self._database.run(lambda connection: connection.execute(free).rowcount)
            except DatabaseUnavailable as error:
                self._log.warn("Webhooks under way wait for their turn: {error}", error=error)
        if self._stopped:
            return
        self._polling.start(POLL, now=True).addErrback(
            lambda failure: self._log.failure("Webhooks are no longer sent", failure)
        )

    async def stop(self) -> None:
        """Send nothing more; what is under way is sent again by the next start."""
        self._stopped = True
        self._unsubscribe()
        if self._polling.running:
            self._polling.stop()
        under = [*self._sending, *([] if self._looking is None else [self._looking])]
        for one in list(self._sending):
            one.cancel()
        await DeferredList(under, consumeErrors=True)

    @property
    def sending(self) -> int:
        """Attempts under way."""
        return len(self._sending)

    def _happened(self, event: Event) -> None:
        name = nameOf(event)
        if name is not None and self._mayWant(event.session, name):
            self.wake()

    # What is due

    def wake(self) -> None:
        """Look for what is due, now."""
        if self._stopped:
            return
        if self._looking is not None:
            self._again = True
            return
        looking = self._looking = Deferred.fromCoroutine(self._look())

        def done(result: object) -> None:
            self._looking = None
            if self._again:
                self._again = False
                self.wake()

        looking.addErrback(self._failed).addBoth(done)

    def _failed(self, failure: Any) -> None:
        if failure.check(DatabaseUnavailable) is None:
            self._log.failure("Webhooks that are due cannot be looked for", failure)

    async def _look(self) -> None:
        if self._clock.seconds() - self._expired >= EXPIRE:
            self._expired = self._clock.seconds()
            await self._giveUp()
        while not self._stopped:
            room = self.settings.atOnce - len(self._sending)
            if room <= 0:
                return
            settings = self.settings
            closed = self._turns.closed(settings.perTenant, settings.perTarget)
            caps = self._turns.caps(settings.perTenant, settings.perTarget)
            due = await self._database.run(
                lambda connection, room=room, closed=closed, caps=caps: self._claim(  # type: ignore[misc]
                    connection, room, closed, caps
                )
            )
            if self._stopped or not due:
                return
            for one in due:
                self._begin(one)

    async def _giveUp(self) -> None:
        """Those that had their turn too seldom to be given up after an attempt."""
        now = self._wallClock()
        late = (
            select(_wd.id)
            .where(_wd.status == "pending", _wd.created < now - self.settings.giveUpAfter)
            .limit(GIVEN_UP_AT_ONCE)
        )
        query = (
            update(webhook_deliveries)
            .where(_wd.id.in_(late))
            .values(
                status="failed",
                next_attempt=None,
                ended=now,
                last_error=func.coalesce(_wd.last_error, "the receiver did not answer in time"),
            )
        )
        await self._database.run(lambda connection: connection.execute(query).rowcount)

    def _claim(
        self,
        connection: Connection,
        room: int,
        closed: tuple[list[str], list[tuple[str, str]]],
        mayBegin: Callable[[str, str, Counted], bool],
    ) -> list[_Due]:
        """Take some of what is due; runs in a thread."""
        now = self._wallClock()
        tenants, servers = closed
        where = [_wd.status.in_(("pending", "sending")), _wd.next_attempt <= now]
        if tenants:
            where.append(_wd.tenant.not_in(tenants))
        if servers:
            where.append(tuple_(_wd.tenant, _wd.target).not_in(servers))
        query = (
            select(webhook_deliveries)
            .where(*where)
            .order_by(_wd.next_attempt, _wd.id)
            .limit(CLAIMED_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        counted: Counted = {}
        chosen: list[Row[Any]] = []
        for row in connection.execute(query).all():
            if len(chosen) < room and mayBegin(row.tenant, row.target, counted):
                chosen.append(row)
        if not chosen:
            return []
        connection.execute(
            update(webhook_deliveries)
            .where(_wd.id.in_([row.id for row in chosen]))
            .values(status="sending", next_attempt=now + self._calls.settings.timeout + LEASE)
        )
        secrets = {
            tenant: liveSecrets(connection, tenant, now)
            for tenant in {row.tenant for row in chosen}
        }
        return [
            _Due(
                row.id,
                row.tenant,
                row.session,
                row.url,
                row.target,
                row.body,
                row.attempts,
                row.created,
                secrets[row.tenant],
            )
            for row in chosen
        ]

    # Sending

    def _begin(self, due: _Due) -> None:
        server = self._turns.begin(due.tenant, due.target)
        sending = Deferred.fromCoroutine(self._send(due, server))
        self._sending.add(sending)

        def done(result: Any) -> None:
            self._sending.discard(sending)
            self._turns.end(due.tenant, due.target, server)
            self.wake()

        sending.addErrback(self._lost, due).addBoth(done)

    def _lost(self, failure: Any, due: _Due) -> None:
        """It is sent again when its lease is over, at the latest."""
        if failure.check(CancelledError, DatabaseUnavailable) is None:
            self._log.failure("Webhook {delivery} is not sent", failure, delivery=due.id)

    async def _send(self, due: _Due, server: Server) -> None:
        body = due.body.encode("utf-8")
        seconds = int(self._wallClock())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "helix_revdial",
            "webhook-id": due.id,
            "webhook-timestamp": str(seconds),
        }
        signature = signatureOf(due.secrets, due.id, seconds, body)
        if signature:
            headers["webhook-signature"] = signature
        try:
            answer = await self._calls.post(due.url, headers, body)
        except CallFailed as error:
            self._turns.failed(server)
            await self._tryAgain(due, str(error))
            return
        except CancelledError:
            await self._release(due)
            raise
        await self._answered(due, server, answer)

    async def _answered(self, due: _Due, server: Server, answer: Answer) -> None:
        if answer.status >= 500 or answer.status == 429:
            self._turns.failed(server)
        else:
            self._turns.answered(server)
        if 200 <= answer.status < 300:
            await self._over(due, "delivered")
        elif answer.status == 410:
            await self._over(due, "gone", "the receiver wants no more (410)")
        else:
            text = f"the receiver answered with {answer.status}"
            if 300 <= answer.status < 400:
                text += ": redirects are not followed"
            await self._tryAgain(due, text, answer.retryAfter)

    async def _tryAgain(self, due: _Due, error: str, after: float | None = None) -> None:
        now = self._wallClock()
        pause = min(FIRST_RETRY * 2.0 ** min(due.attempts, 20), LAST_RETRY)
        pause = max(pause * (0.75 + self._spread() / 2), after or 0.0)
        if now + pause > due.created + self.settings.giveUpAfter:
            await self._over(due, "failed", error)
            return
        await self._put(
            due, status="pending", next_attempt=now + pause, attempts=due.attempts + 1, error=error
        )

    async def _over(self, due: _Due, status: str, error: str | None = None) -> None:
        await self._put(
            due, status=status, next_attempt=None, attempts=due.attempts + 1, error=error
        )

    async def _release(self, due: _Due) -> None:
        """It was not sent, for all that is known."""
        await self._put(
            due,
            status="pending",
            next_attempt=self._wallClock(),
            attempts=due.attempts,
            error=None,
        )

    async def _put(
        self,
        due: _Due,
        *,
        status: str,
        next_attempt: float | None,
        attempts: int,
        error: str | None,
    ) -> None:
        now = self._wallClock()
        ended = now if status in OVER else None

        def write(connection: Connection) -> None:
            connection.execute(
                update(webhook_deliveries)
                .where(_wd.id == due.id, _wd.status == "sending", _wd.attempts == due.attempts)
                .values(
                    status=status,
                    next_attempt=next_attempt,
                    attempts=attempts,
                    last_error=error,
                    ended=ended,
                )
            )
            if status == "gone":
                connection.execute(
                    update(webhook_deliveries)
                    .where(
                        _wd.session == due.session,
                        _wd.url == due.url,
                        _wd.status == "pending",
                    )
                    .values(status="gone", next_attempt=None, last_error=error, ended=ended)
                )

        await self._database.run(write)


__all__ = ["WebhookSettings", "Webhooks"]
