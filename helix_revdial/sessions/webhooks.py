# -*- test-case-name: tests.sessions.test_webhooks -*-
"""
Telling other servers what happens to sessions.

A task names events and URLs.  When such an event is stored, a row for each URL is
written in the same transaction (L{Outbox}): whatever is killed afterwards, it will be
told.  L{Webhooks} sends what is due.

This module owns the C{webhook_deliveries} table.  A row is C{pending}; C{sending}, by
somebody who has it until C{next_attempt}; or over: C{delivered}; C{failed}, when it was
given up; C{gone}, when its receiver wants no more.

What holds:

  - each delivery is made at least once, by one process at a time; its id is the same
    each time, so that a receiver can tell;
  - a receiver that does not answer as it should is tried again, less and less often, for
    as long as C{giveUpAfter} says; one that answers 410 is told no more of the session;
  - one receiver, or one tenant, stops nobody else: at one time there are so many
    attempts in all, so many of one tenant, so many at one server, and one at a server
    that has just failed, which is left alone for a while before;
  - what waits is limited: L{MAX_WAITING} of one session; what more happens is not told;
  - nothing is sent that was not redacted before it was stored.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import msgspec
from sqlalchemy import Connection, Row, bindparam, func, insert, select, tuple_, update
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from helix_revdial.sessions.events import Event, EventLog
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.webhook_calls import (
    Answer,
    CallFailed,
    Calls,
    CallSettings,
    parseURL,
)
from helix_revdial.sessions.webhook_secrets import liveSecrets, signatureOf
from helix_revdial.storage.database import Database, DatabaseUnavailable
from helix_revdial.storage.ids import newId
from helix_revdial.storage.tables import sessions, webhook_deliveries

MAX_WAITING: Final = 1000
"""Deliveries of one session that wait."""

MAX_KNOWN: Final = 5000
"""Sessions whose webhooks are remembered."""

MAX_TARGETS: Final = 500
"""Servers that failed and are remembered; of more, the first are forgotten."""

POLL: Final = 5.0
"""Seconds between two looks for what is due, if nothing happens."""

CLAIMED_AT_ONCE: Final = 100

GIVEN_UP_AT_ONCE: Final = 1000

EXPIRE: Final = 60.0
"""Seconds between two looks for what is to be given up without another attempt."""

FIRST_RETRY: Final = 5.0
"""Seconds before the second attempt; they double, up to C{LAST_RETRY}."""

LAST_RETRY: Final = 3600.0

LONGEST_PAUSE: Final = 60.0
"""Seconds for which a server that failed is left alone, at most."""

LEASE: Final = 30.0
"""Seconds, beyond those of an attempt, after which nobody seems to make it."""

OVER: Final = ("delivered", "failed", "gone")

ALL: Final = ("*", "session.*")

_TOLD: Final = ("status", "delivery", "moment")

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
class Delivery:
    """
    Something that is to be told, or was.  Times are seconds since the epoch.

    @ivar id: C{whd_...}.
    @ivar event: such as C{session.completed}; C{seq}, the number of its event.
    @ivar lastError: why the last attempt failed.
    @ivar ended: when it was told, or given up.
    """

    id: str
    session: str
    seq: int
    event: str
    url: str
    status: str
    attempts: int
    created: float
    nextAttempt: float | None
    lastError: str | None
    ended: float | None


@dataclass(frozen=True, slots=True)
class _Hooks:
    """Whom a session's task wants told of what."""

    tenant: str
    project: str | None
    hooks: Sequence[tuple[str, str]] = ()

    def urls(self, name: str) -> list[str]:
        """Who is told of an event, each once."""
        return list(dict.fromkeys(url for event, url in self.hooks if event in (name, *ALL)))


def nameOf(event: Event) -> str | None:
    """What an event is called to those who are told of it; C{None}: nobody is."""
    if event.type not in _TOLD:
        return None
    return f"session.{event.data.get('status') if event.type == 'status' else event.type}"


_SPEC: Final = select(sessions.c.tenant, sessions.c.project, sessions.c.spec).where(
    sessions.c.id == bindparam("of_session")
)


class Outbox:
    """
    Writes down what is to be told, in the transactions in which it happens; and tells
    what became of it.
    """

    def __init__(
        self,
        database: Database,
        wallClock: Callable[[], float],
        log: EventLog,
        render: Callable[[Event], Mapping[str, Any]],
    ) -> None:
        """
        @param wallClock: seconds since the epoch.
        @param log: its writes are witnessed.
        @param render: an event as JSON, as callers have it: with C{ts}, and so on.
        """
        self._database = database
        self._wallClock = wallClock
        self._render = render
        self._known: OrderedDict[str, _Hooks] = OrderedDict()
        log.witness(self._witness)

    def _witness(self, connection: Connection, events: Sequence[Event]) -> None:
        for event in events:
            name = nameOf(event)
            if name is not None:
                self._note(connection, event, name)

    def _note(self, connection: Connection, event: Event, name: str) -> None:
        hooks = self._hooksOf(connection, event.session)
        urls = hooks.urls(name)
        if not urls:
            return
        own = _wd.session == event.session
        gone = set(connection.execute(select(_wd.url).where(own, _wd.status == "gone")).scalars())
        waiting = connection.execute(
            select(func.count()).where(own, _wd.status.not_in(OVER))
        ).scalar_one()
        urls = [url for url in urls if url not in gone][: max(MAX_WAITING - waiting, 0)]
        if not urls:
            return
        now = self._wallClock()
        document = self._render(event)
        body = msgspec.json.encode(
            {
                "type": name,
                "timestamp": document.get("ts"),
                "data": {**document, "tenantId": hooks.tenant, "projectId": hooks.project},
            }
        ).decode("utf-8")
        connection.execute(
            insert(webhook_deliveries),
            [
                {
                    "id": newId("whd", now),
                    "tenant": hooks.tenant,
                    "session": event.session,
                    "seq": event.seq,
                    "url": url,
                    "target": parseURL(url).origin,
                    "event": name,
                    "body": body,
                    "attempts": 0,
                    "next_attempt": now,
                    "status": "pending",
                    "created": now,
                }
                for url in urls
            ],
        )

    def know(self, session: Session) -> None:
        """
        Remember whom a session's task wants told.  In the transaction that makes the
        session: what it says need not be read again.
        """
        self._remember(session.id, session.tenant, session.project, session.spec)

    def mayWant(self, session: str, name: str) -> bool:
        """Whether anybody may want to be told of such an event of a session."""
        found = self._known.get(session)
        return found is None or bool(found.urls(name))

    def _hooksOf(self, connection: Connection, session: str) -> _Hooks:
        found = self._known.get(session)
        if found is None:
            row = connection.execute(_SPEC, {"of_session": session}).one_or_none()
            if row is None:
                return _Hooks("", None)
            found = self._remember(session, row.tenant, row.project, row.spec)
        return found

    def _remember(
        self, session: str, tenant: str, project: str | None, spec: Mapping[str, Any] | None
    ) -> _Hooks:
        named = (spec or {}).get("webhooks") or []
        hooks = [(one["event"], one["url"]) for one in named if _callable(one["url"])]
        # Only a write's thread touches these, and there is one write at a time.
        found = self._known[session] = _Hooks(tenant, project, hooks)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return found

    # To look at

    async def list(
        self, session: str, *, page: int = 1, perPage: int = 20
    ) -> tuple[list[Delivery], int]:
        """
        A session's deliveries, newest first, and how many there are in all.

        @param page: from 1.
        """
        own = _wd.session == session
        query = (
            select(webhook_deliveries)
            .where(own)
            .order_by(_wd.seq.desc(), _wd.id.desc())
            .limit(perPage)
            .offset((page - 1) * perPage)
        )

        def fetch(connection: Connection) -> tuple[list[Delivery], int]:
            total = connection.execute(
                select(func.count()).select_from(webhook_deliveries).where(own)
            ).scalar_one()
            return [_fromRow(row) for row in connection.execute(query)], total

        return await self._database.read(fetch)


def _callable(url: str) -> bool:
    try:
        parseURL(url)
    except ValueError:
        return False
    return True


@dataclass(slots=True)
class _Server:
    """
    Another server, to one tenant.

    @ivar running: attempts under way.
    @ivar failures: attempts that failed since the last one that did not.
    @ivar pausedUntil: when it may be tried again.
    """

    running: int = 0
    failures: int = 0
    pausedUntil: float = 0.0


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
        self._servers: OrderedDict[tuple[str, str], _Server] = OrderedDict()
        self._tenants: dict[str, int] = {}
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
            closed = self._closed()
            caps = self._caps()
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

    def _closed(self) -> tuple[list[str], list[tuple[str, str]]]:
        """Tenants and servers whose turn it is not."""
        now = self._clock.seconds()
        settings = self.settings
        tenants = [name for name, count in self._tenants.items() if count >= settings.perTenant]
        servers = [
            key
            for key, one in self._servers.items()
            if one.pausedUntil > now or one.running >= (1 if one.failures else settings.perTarget)
        ]
        return tenants, servers

    def _caps(self) -> Callable[[str, str, dict[Any, int]], bool]:
        """Says whether one more may be sent, and counts it."""
        settings = self.settings
        tenants = dict(self._tenants)
        servers = {
            key: (one.running, 1 if one.failures else settings.perTarget)
            for key, one in self._servers.items()
        }

        def mayBegin(tenant: str, target: str, chosen: dict[Any, int]) -> bool:
            running, cap = servers.get((tenant, target), (0, settings.perTarget))
            ofTenant = tenants.get(tenant, 0) + chosen.get(tenant, 0)
            ofServer = running + chosen.get((tenant, target), 0)
            if ofTenant >= settings.perTenant or ofServer >= cap:
                return False
            chosen[tenant] = chosen.get(tenant, 0) + 1
            chosen[(tenant, target)] = chosen.get((tenant, target), 0) + 1
            return True

        return mayBegin

    def _claim(
        self,
        connection: Connection,
        room: int,
        closed: tuple[list[str], list[tuple[str, str]]],
        mayBegin: Callable[[str, str, dict[Any, int]], bool],
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
        counted: dict[Any, int] = {}
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
        key = (due.tenant, due.target)
        server = self._servers.setdefault(key, _Server())
        server.running += 1
        self._tenants[due.tenant] = self._tenants.get(due.tenant, 0) + 1
        sending = Deferred.fromCoroutine(self._send(due, server))
        self._sending.add(sending)

        def done(result: Any) -> None:
            self._sending.discard(sending)
            server.running -= 1
            self._tenants[due.tenant] -= 1
            if not self._tenants[due.tenant]:
                del self._tenants[due.tenant]
            self._forgetServers(key)
            self.wake()

        sending.addErrback(self._lost, due).addBoth(done)

    def _lost(self, failure: Any, due: _Due) -> None:
        """It is sent again when its lease is over, at the latest."""
        if failure.check(CancelledError, DatabaseUnavailable) is None:
            self._log.failure("Webhook {delivery} is not sent", failure, delivery=due.id)

    def _forgetServers(self, key: tuple[str, str]) -> None:
        server = self._servers.get(key)
        if server is not None and not server.running and not server.failures:
            del self._servers[key]
        if len(self._servers) > MAX_TARGETS:
            for one in [name for name, each in self._servers.items() if not each.running]:
                if len(self._servers) <= MAX_TARGETS:
                    break
                del self._servers[one]

    async def _send(self, due: _Due, server: _Server) -> None:
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
            self._serverFailed(server)
            await self._tryAgain(due, str(error))
            return
        except CancelledError:
            await self._release(due)
            raise
        await self._answered(due, server, answer)

    async def _answered(self, due: _Due, server: _Server, answer: Answer) -> None:
        if answer.status >= 500 or answer.status == 429:
            self._serverFailed(server)
        else:
            server.failures, server.pausedUntil = 0, 0.0
        if 200 <= answer.status < 300:
            await self._over(due, "delivered")
        elif answer.status == 410:
            await self._over(due, "gone", "the receiver wants no more (410)")
        else:
            text = f"the receiver answered with {answer.status}"
            if 300 <= answer.status < 400:
                text += ": redirects are not followed"
            await self._tryAgain(due, text, answer.retryAfter)

    def _serverFailed(self, server: _Server) -> None:
        server.failures = min(server.failures + 1, 16)
        pause = min(2.0**server.failures, LONGEST_PAUSE) * (0.5 + self._spread() / 2)
        server.pausedUntil = self._clock.seconds() + pause

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


def _fromRow(row: Row[Any]) -> Delivery:
    return Delivery(
        row.id,
        row.session,
        row.seq,
        row.event or "",
        row.url,
        row.status,
        row.attempts,
        row.created,
        row.next_attempt,
        row.last_error,
        row.ended,
    )


__all__ = ["Delivery", "Outbox", "WebhookSettings", "Webhooks", "nameOf"]
