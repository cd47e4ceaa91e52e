# -*- test-case-name: tests.sessions.test_events -*-
"""
The event log: what happened to each session, in order.

This module owns the C{session_events} table and, in C{sessions}, the numbers of
the first and the last event.  Whoever changes a session does it within a write of
this log (L{EventLog.write}), so that a change and the event that tells of it are
one transaction.

What holds:

  - the events of a session are numbered 1, 2, 3... without a gap; the number is
    given within the transaction, under the lock of the session's row, so that this
    holds with several writers on PostgreSQL too;
  - a subscriber is called after the commit, in the order of the numbers, once for
    each event, on the reactor's thread; it may be a read that sees an event first;
  - secrets are taken out before an event is stored;
  - writes that wait for a transaction share one: a log of many sessions does not
    cost a commit for each line.  Each is still whole or not at all, by itself;
  - what waits is limited; so is an event, and a message in it
    (L{helix_revdial.sessions.event_data}).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, TypeVar

from sqlalchemy import BigInteger, Connection, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from helix_revdial.sessions.event_data import Redactors, asStored
from helix_revdial.sessions.lifecycle import TERMINAL
from helix_revdial.sessions.redaction import Redactor
from helix_revdial.storage.database import Database
from helix_revdial.storage.failures import DatabaseUnavailable, unavailable
from helix_revdial.storage.tables import session_events, sessions

T = TypeVar("T")

MAX_WAITING: Final = 10_000
"""Writes that may wait for their transaction."""

GROUP: Final = 200
"""Writes that share a transaction at most."""

LINES: Final = 200
"""Lines of a log that are read at once: they may have 64 KiB each."""

MAX_READ: Final = 1000
"""Events that are read at once."""


class UnknownSession(LookupError):
    """There is no such session to write to."""


@dataclass(frozen=True, slots=True)
class Event:
    """
    One thing that happened.

    @ivar seq: from 1 within its session.
    @ivar at: seconds since the epoch.
    @ivar type: C{status}, C{log}, C{moment}, C{delivery}...
    @ivar data: the rest of it, as JSON has it.
    """

    session: str
    seq: int
    at: float
    type: str
    data: Mapping[str, Any]

    @property
    def ends(self) -> bool:
        """Whether its session has ended with it."""
        return self.type == "status" and self.data.get("status") in TERMINAL


@dataclass(frozen=True, slots=True)
class Lines:
    """
    Some of a session's log.

    @ivar items: the first L{LINES} of those that were asked for.
    @ivar total: how many there are in all that were meant.
    @ivar more: the numbers of those that were asked for and come after C{items}.
    """

    items: list[Event]
    total: int
    more: list[int]


Subscriber = Callable[[Event], None]

Witness = Callable[[Connection, Sequence[Event]], None]
"""Notes events of one session in the transaction that stores them."""


class Appender:
    """
    Adds events to one session within a transaction.

    @ivar now: the time of the write, in seconds since the epoch.
    @ivar events: what was added, numbered.
    """

    def __init__(
        self,
        connection: Connection,
        session: str,
        now: float,
        redactor: Callable[[], Redactor],
        learn: Callable[[Mapping[str, Any], str], Redactor],
    ) -> None:
        self.now = now
        self.events: list[Event] = []
        self._connection = connection
        self._session = session
        self._redactor = redactor
        self._learn = learn

    def append(self, type: str, data: Mapping[str, Any], at: float | None = None) -> Event:  # noqa: A002 - the column's name
        """
        Add an event.

        @param data: JSON values.
        @param at: when it happened, by default now.
        @return: the event as it is stored.
        @raise EventTooLarge: if it is.
        @raise UnknownSession: if there is no such session.
        """
        return self.extend([(type, data, self.now if at is None else at)])[0]

    def begin(
        self,
        type: str,  # noqa: A002 - the column's name
        data: Mapping[str, Any],
        at: float,
        *,
        spec: Mapping[str, Any],
        agent: str,
    ) -> Event:
        """
        Add the first event of a session that this transaction has just made, with a
        C{last_seq} of 1: nothing is read for it.

        @param spec: what the session was made from.
        @param agent: the type of its agent.
        """
        return self._add(1, [(type, asStored(data, self._learn(spec, agent)), at)])[0]

    def clean(self, text: str) -> str:
        """A text without the session's secrets, for what is stored beside its events."""
        return self._redactor().text(text)

    def extend(self, items: Sequence[tuple[str, Mapping[str, Any], float]]) -> list[Event]:
        """
        Add several: type, data, and when.

        @raise EventTooLarge: as L{append}.
        @raise UnknownSession: as L{append}.
        """
        if not items:
            return []
        redactor = self._redactor()
        cleaned = [(kind, asStored(data, redactor), at) for kind, data, at in items]
        # The row is locked from here to the commit: nobody else numbers in between.
        last = self._connection.execute(
            _NUMBER, {"of_session": self._session, "count": len(items)}
        ).scalar_one_or_none()
        if last is None:
            raise UnknownSession(f"there is no session {self._session}")
        return self._add(last - len(items) + 1, cleaned)

    def _add(self, first: int, cleaned: Sequence[tuple[str, dict[str, Any], float]]) -> list[Event]:
        added = [
            Event(self._session, first + index, at, kind, data)
            for index, (kind, data, at) in enumerate(cleaned)
        ]
        self._connection.execute(
            _INSERT,
            [
                {"session": one.session, "seq": one.seq, "at": one.at}
                | {"type": one.type, "data": one.data}
                for one in added
            ],
        )
        self.events += added
        return added


# Made once: to make a statement costs more than to run it.
_NUMBER: Final = (
    update(sessions)
    .where(sessions.c.id == bindparam("of_session"))
    .values(last_seq=sessions.c.last_seq + bindparam("count", type_=BigInteger))
    .returning(sessions.c.last_seq)
)

_INSERT: Final = insert(session_events)


@dataclass(slots=True)
class _Write(Generic[T]):
    """A write that waits."""

    session: str
    function: Callable[[Connection, Appender], T]
    told: Deferred[T]


class EventLog:
    """
    The events of every session.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self,
        database: Database,
        wallClock: Callable[[], float],
        *,
        secretSettings: Callable[[str], Collection[str]] = lambda agent: (),
        maxWaiting: int = MAX_WAITING,
    ) -> None:
        """
        @param wallClock: seconds since the epoch.
        @param secretSettings: the names of an agent's settings that are secret,
            whatever they are called.
        """
        self.secretSettings = secretSettings
        self._database = database
        self._wallClock = wallClock
        self._maxWaiting = maxWaiting
        self._waiting: deque[_Write[Any]] = deque()
        self._writing = False
        self._idle: list[Deferred[None]] = []
        self._subscribers: dict[str, list[Subscriber]] = {}
        self._subscribersOfAll: list[Subscriber] = []
        self._afterwards: list[Callable[[], None]] = []
        self._witnesses: list[Witness] = []
        self._redactors = Redactors(lambda agent: self.secretSettings(agent))

    # Writing

    async def append(
        self,
        session: str,
        type: str,  # noqa: A002 - the column's name
        data: Mapping[str, Any],
        at: float | None = None,
    ) -> Event:
        """
        Add an event.

        @param at: when it happened, in seconds since the epoch; by default now.
        @raise EventTooLarge: if it is; nothing is stored.
        @raise UnknownSession: if there is no such session.
        @raise DatabaseUnavailable: if it cannot be stored now.
        """
        return await self.write(session, lambda _, log: log.append(type, data, at))

    async def appendMany(
        self, session: str, items: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> list[Event]:
        """
        Add several, all or none: type and data of each.

        @raise EventTooLarge: as L{append}; and so on.
        """
        return await self.write(
            session, lambda _, log: log.extend([(kind, data, log.now) for kind, data in items])
        )

    def write(self, session: str, function: Callable[[Connection, Appender], T]) -> Deferred[T]:
        """
        Change a session and tell of it, in one transaction.

        @param function: runs in a thread: it may touch its connection, its appender
            and its own values, nothing else.  It may be run a second time, when the
            transaction that it shared with others failed.  What it raises undoes
            what it did.  It touches no row of another session.
        @return: what C{function} returned, after the commit, and after the
            subscribers were told.
        @raise DatabaseUnavailable: (as a failure) if it cannot be written now.
        """
        told: Deferred[T] = Deferred()
        if len(self._waiting) >= self._maxWaiting:
            told.errback(DatabaseUnavailable("too many events are waiting for the database"))
            return told
        self._waiting.append(_Write(session, function, told))
        if not self._writing:
            self._writing = True
            Deferred.fromCoroutine(self._writeAll()).addErrback(
                lambda failure: self._log.failure("The event log stopped writing", failure)
            )
        return told

    async def flush(self) -> None:
        """Wait until what was to be written when this was called is written."""
        if self._writing:
            idle: Deferred[None] = Deferred()
            self._idle.append(idle)
            await idle

    async def _writeAll(self) -> None:
        try:
            while self._waiting:
                count = min(len(self._waiting), GROUP)
                await self._writeGroup([self._waiting.popleft() for _ in range(count)])
        finally:
            self._writing = False
            idle, self._idle = self._idle, []
            for one in idle:
                one.callback(None)

    async def _writeGroup(self, group: list[_Write[Any]]) -> None:
        now = self._wallClock()
        # One order of locks for all processes; writes of one session keep theirs.
        order = sorted(range(len(group)), key=lambda index: group[index].session)

        def transaction(connection: Connection) -> list[tuple[Any, list[Event]]]:
            done: list[tuple[Any, list[Event]]] = [(None, [])] * len(group)
            try:
                with nullcontext() if len(group) == 1 else connection.begin_nested():
                    for index in order:
                        done[index] = self._one(connection, group[index], now)
                return done
            except Exception as error:
                if len(group) == 1 or _isUnavailable(error):
                    raise
            # One of them fails, which is seldom: each by itself, then, and the others stay.
            for index in order:
                try:
                    with connection.begin_nested():
                        done[index] = self._one(connection, group[index], now)
                except Exception as error:
                    if _isUnavailable(error):
                        raise
                    done[index] = (Failure(error), [])
            return done

        try:
            done = await self._database.run(transaction)
        except Exception:
            failure = Failure()
            for write in group:
                write.told.errback(Failure(failure.value))
            return
        for write, (result, events) in zip(group, done, strict=True):
            for event in events:
                self._publish(event)
            if isinstance(result, Failure):
                write.told.errback(result)
            else:
                write.told.callback(result)
        for callback in self._afterwards:
            try:
                callback()
            except Exception:
                self._log.failure("What was told could not be passed on")

    def _one(
        self, connection: Connection, write: _Write[Any], now: float
    ) -> tuple[Any, list[Event]]:
        appender = Appender(
            connection,
            write.session,
            now,
            lambda: self._redactors.of(connection, write.session),
            lambda spec, agent: self._redactors.learn(write.session, spec, agent),
        )
        result = write.function(connection, appender)
        if appender.events:
            for witness in self._witnesses:
                witness(connection, appender.events)
        return result, appender.events

    # Reading

    async def read(
        self,
        session: str,
        after: int = 0,
        limit: int = MAX_READ,
        *,
        types: Collection[str] | None = None,
    ) -> list[Event]:
        """
        The events after one, oldest first.

        @param after: its number.
        @param limit: how many at most; no more than L{MAX_READ}.
        @param types: only those.
        """
        query = (
            select(session_events)
            .where(session_events.c.session == session, session_events.c.seq > after)
            .order_by(session_events.c.seq)
            .limit(min(limit, MAX_READ))
        )
        if types is not None:
            query = query.where(session_events.c.type.in_(types))
        return await self._database.read(
            lambda connection: [
                Event(row.session, row.seq, row.at, row.type, row.data)
                for row in connection.execute(query)
            ]
        )

    async def lines(
        self,
        session: str,
        *,
        levels: Collection[str],
        since: float | None = None,
        tail: int | None = None,
        page: int = 1,
        perPage: int = 200,
    ) -> Lines:
        """
        Some of the C{log} events, oldest first.

        @param levels: of these levels only.
        @param since: at that moment or later, in seconds since the epoch.
        @param tail: the last so many of them; otherwise the page.
        """
        where = [
            session_events.c.session == session,
            session_events.c.type == "log",
            func.coalesce(session_events.c.data["level"].as_string(), "info").in_(levels),
        ]
        if since is not None:
            where.append(session_events.c.at >= since)
        query = select(session_events.c.seq).where(*where)
        if tail is not None:
            query = query.order_by(session_events.c.seq.desc()).limit(tail)
        else:
            query = query.order_by(session_events.c.seq)
            query = query.limit(perPage).offset((page - 1) * perPage)

        def fetch(connection: Connection) -> Lines:
            total = connection.execute(
                select(func.count()).select_from(session_events).where(*where)
            ).scalar_one()
            numbers = list(connection.execute(query).scalars())
            if tail is not None:
                numbers.reverse()
            return Lines(_numbered(connection, session, numbers[:LINES]), total, numbers[LINES:])

        return await self._database.read(fetch)

    async def numbered(self, session: str, numbers: Sequence[int]) -> list[Event]:
        """
        The events of these numbers that are still kept, oldest first.

        @param numbers: L{LINES} at most.
        """
        return await self._database.read(lambda connection: _numbered(connection, session, numbers))

    async def bounds(self, session: str) -> tuple[int, int]:
        """
        The numbers of the first event that is kept and of the last; (1, 0) before
        the first, and one more than the last when none is kept.

        @raise UnknownSession: if there is no such session.
        """
        query = select(sessions.c.first_seq, sessions.c.last_seq).where(sessions.c.id == session)
        row = await self._database.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            raise UnknownSession(f"there is no session {session}")
        return row.first_seq, row.last_seq

    async def trim(self, session: str, before: int) -> int:
        """
        Remove the oldest events.

        @param before: the number of the first that is kept.
        @return: how many were removed.
        """

        def remove(connection: Connection, log: Appender) -> int:
            row = connection.execute(
                select(sessions.c.first_seq, sessions.c.last_seq)
                .where(sessions.c.id == session)
                .with_for_update()
            ).one_or_none()
            if row is None:
                return 0
            first = min(before, row.last_seq + 1)
            if first <= row.first_seq:
                return 0
            removed = connection.execute(
                delete(session_events).where(
                    session_events.c.session == session, session_events.c.seq < first
                )
            ).rowcount
            connection.execute(
                update(sessions).where(sessions.c.id == session).values(first_seq=first)
            )
            return removed

        return await self.write(session, remove)

    async def count(self, session: str, types: Collection[str]) -> int:
        """How many events of these types a session has."""
        query = select(func.count()).where(
            session_events.c.session == session, session_events.c.type.in_(types)
        )
        return await self._database.read(lambda connection: connection.execute(query).scalar_one())

    # Being told

    def witness(self, callback: Witness) -> None:
        """
        Have C{callback} called within each transaction that stores events, as
        L{write} calls its function: what it writes is there exactly if the events
        are.  It costs every event, and what it raises undoes the write.
        """
        self._witnesses.append(callback)

    def subscribe(self, session: str, callback: Subscriber) -> Callable[[], None]:
        """
        Have C{callback} called with each event of a session that this process
        stores.  It must not wait, and what it raises is logged.

        @return: ends the subscription.
        """
        self._subscribers.setdefault(session, []).append(callback)

        def unsubscribe() -> None:
            subscribed = self._subscribers.get(session, [])
            if callback in subscribed:
                subscribed.remove(callback)
                if not subscribed:
                    self._subscribers.pop(session, None)

        return unsubscribe

    def subscribeAll(self, callback: Subscriber) -> Callable[[], None]:
        """
        The same for the events of all sessions.
        """
        self._subscribersOfAll.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribersOfAll:
                self._subscribersOfAll.remove(callback)

        return unsubscribe

    def afterwards(self, callback: Callable[[], None]) -> None:
        """
        Have C{callback} called when all that was stored at one time has been told: for
        whoever passes many events on and would rather do it once.
        """
        self._afterwards.append(callback)

    def _publish(self, event: Event) -> None:
        own = self._subscribers.get(event.session)
        if own is None and not self._subscribersOfAll:
            return
        for callback in [*(own or ()), *self._subscribersOfAll]:
            try:
                callback(event)
            except Exception:
                self._log.failure(
                    "A subscriber failed at event {seq} of {session}",
                    seq=event.seq,
                    session=event.session,
                )


def _numbered(connection: Connection, session: str, numbers: Sequence[int]) -> list[Event]:
    query = (
        select(session_events)
        .where(session_events.c.session == session, session_events.c.seq.in_(numbers))
        .order_by(session_events.c.seq)
    )
    return [
        Event(row.session, row.seq, row.at, row.type, row.data) for row in connection.execute(query)
    ]


def _isUnavailable(error: Exception) -> bool:
    """Whether the database cannot be used: then nothing of the transaction is there."""
    return isinstance(error, SQLAlchemyError) and unavailable(error) is not None
