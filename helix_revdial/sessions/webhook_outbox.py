# -*- test-case-name: tests.sessions.test_webhook_outbox -*-
"""
What other servers are to be told of sessions, and what became of it.

A task names events and URLs.  When such an event is stored, a row for each URL is
written in the same transaction: whatever is killed afterwards, it will be told.

This module makes the rows of the C{webhook_deliveries} table, and shows them;
L{helix_revdial.sessions.webhooks} sends them and says in them how that went.

What holds:

  - there is a delivery exactly if there is its event;
  - nothing is told that was not redacted before it was stored;
  - what waits is limited: L{MAX_WAITING} of one session; what more happens is not told;
  - a receiver that wants no more of a session (C{gone}) is written nothing more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, bindparam, func, insert, select

from helix_revdial.sessions.events import Event, EventLog
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.webhook_calls import parseURL
from helix_revdial.storage.database import Database
from helix_revdial.storage.ids import newId
from helix_revdial.storage.tables import sessions, webhook_deliveries

MAX_WAITING: Final = 1000
"""Deliveries of one session that wait."""

MAX_KNOWN: Final = 5000
"""Sessions whose webhooks are remembered."""

OVER: Final = ("delivered", "failed", "gone")
"""What a delivery is when it is over."""

ALL: Final = ("*", "session.*")
"""What a task names that wants to be told of everything."""

_TOLD: Final = ("status", "delivery", "moment")

_wd = webhook_deliveries.c


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


__all__ = ["ALL", "MAX_WAITING", "OVER", "Delivery", "Outbox", "nameOf"]
