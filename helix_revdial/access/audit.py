# -*- test-case-name: tests.access.test_audit -*-
"""
The audit log: who was refused, who took over what, who changed a token.

An append-only table.  L{AuditLog.record} costs the caller nothing: it never
waits, never fails and does not touch the database; entries are written in
batches, soon after.

An attacker decides how often they are refused, so what is written is limited:
a few entries for each event and subject in a minute, and a number for each
event however many subjects there are; beyond that the same is counted, and the
count is written once when the minute is over.  The memory for all of it is
bounded, and entries leave the table by age.

No secret gets in: values are cut to a length, and what looks like one of our
tokens is replaced.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from math import isfinite
from typing import Any, ClassVar, Final

from sqlalchemy import Connection, delete, insert, or_, select
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from helix_revdial.access.secrets import redact
from helix_revdial.storage.database import Database
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.storage.tables import audit

WINDOW: Final = 60.0
"""Seconds for which repetitions are counted."""

PER_SUBJECT: Final = 5
"""Entries of one event and subject that are written in a window."""

PER_EVENT: Final = 300
"""Entries of one event that are written in a window, of all subjects."""

MAX_SUBJECTS: Final = 10_000
"""Pairs of event and subject that are told apart in a window; the others of an
event are counted together."""

MAX_QUEUE: Final = 10_000
"""Entries that wait to be written; further ones are counted."""

BATCH: Final = 500
"""Entries that one transaction writes."""

WRITE_AFTER: Final = 1.0
"""Seconds from an entry to its being written."""

RETRY_AFTER: Final = 5.0
"""Seconds until another try when the database could not be used."""

KEEP: Final = 90 * 86400.0
"""Seconds for which entries are kept."""

PRUNE_EVERY: Final = 3600.0
"""Seconds between removals of old entries."""

MAX_VALUE: Final = 500
"""Characters of a field's value."""

MAX_FIELDS: Final = 20
"""Fields of an entry."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """
    Something that happened.

    @ivar id: a number; later entries have larger ones.  0 until it is written.
    @ivar at: seconds since the epoch.
    @ivar event: a word, such as C{"refused"} or C{"takeover"}.
    @ivar tenant: whose it is, where that is known.
    @ivar subject: who did it: a token's id, or an address.
    @ivar fields: what else is to be said, by name.
    @ivar times: how many times: more than 1 for a repetition that was counted.
    """

    id: int
    at: float
    event: str
    tenant: str | None
    subject: str | None
    fields: Mapping[str, Any]
    times: int = 1


@dataclass(slots=True)
class _Tally:
    """What happened of one event and subject (or all of them) in the window."""

    written: int = 0
    counted: int = 0
    latest: AuditEntry | None = field(default=None)


class AuditLog:
    """
    Writes entries, and lists them.
    """

    _log: ClassVar[Logger] = Logger()

    def __init__(
        self, database: Database, clock: IReactorTime, wallClock: Callable[[], float]
    ) -> None:
        """
        @param clock: when to write.
        @param wallClock: the time of day, in seconds since the epoch.
        """
        self._database = database
        self._clock = clock
        self._wallClock = wallClock
        self._queue: deque[AuditEntry] = deque()
        self._lost = 0
        self._tallies: dict[tuple[str, str | None], _Tally] = {}
        self._events: dict[str, _Tally] = {}
        self._windowCall: IDelayedCall | None = None
        self._writeCall: IDelayedCall | None = None
        self._lock = DeferredLock()
        self._pruned: float | None = None
        self._stopped = False

    def record(
        self,
        event: str,
        *,
        subject: str | None = None,
        tenant: str | None = None,
        **fields: object,
    ) -> None:
        """
        Note that something happened.  Returns at once and never fails.

        @param event: a word from our own code, never from a peer: there is a
            tally for each.
        @param subject: who did it: a token's id, or an address.
        @param fields: texts, numbers, booleans or C{None}; anything else is
            noted as its C{str}.
        """
        entry = AuditEntry(
            0,
            self._wallClock(),
            event[:64],
            None if tenant is None else _clean(tenant, 128),
            None if subject is None else _clean(subject, 255),
            {name[:64]: _plain(value) for name, value in list(fields.items())[:MAX_FIELDS]},
        )
        if self._admit(entry):
            self._enqueue(entry)

    def _admit(self, entry: AuditEntry) -> bool:
        if self._windowCall is None and not self._stopped:
            self._windowCall = self._clock.callLater(WINDOW, self._windowEnded)
        whole = self._events.setdefault(entry.event, _Tally())
        key = (entry.event, entry.subject)
        own = self._tallies.get(key)
        if own is None and len(self._tallies) < MAX_SUBJECTS:
            own = self._tallies[key] = _Tally()
        if whole.written < PER_EVENT and own is not None and own.written < PER_SUBJECT:
            whole.written += 1
            own.written += 1
            return True
        # A subject's own repetitions are told with its name; what is over the
        # limit of the event as a whole is told together.
        tally = own if own is not None and own.written else whole
        tally.counted += 1
        tally.latest = entry
        return False

    def _windowEnded(self) -> None:
        self._windowCall = None
        tallies, self._tallies = self._tallies, {}
        events, self._events = self._events, {}
        for tally in tallies.values():
            if tally.latest is not None:
                self._enqueue(_repeated(tally.latest, tally.counted))
        for event, tally in events.items():
            if tally.latest is not None:
                self._enqueue(
                    AuditEntry(
                        0, tally.latest.at, event, None, None, {"various": True}, tally.counted
                    )
                )

    def _enqueue(self, entry: AuditEntry) -> None:
        if len(self._queue) >= MAX_QUEUE:
            self._lost += 1
            return
        self._queue.append(entry)
        self._writeLater(WRITE_AFTER)

    def _writeLater(self, delay: float) -> None:
        if self._writeCall is None and not self._lock.locked and not self._stopped:
            self._writeCall = self._clock.callLater(delay, self._writeNow)

    def _writeNow(self) -> None:
        self._writeCall = None
        Deferred.fromCoroutine(self.flush()).addCallbacks(
            lambda _: self._writeRest(WRITE_AFTER), self._notWritten
        )

    def _writeRest(self, delay: float) -> None:
        if self._queue or self._lost:
            self._writeLater(delay)

    def _notWritten(self, failure: Failure) -> None:
        if failure.check(DatabaseUnavailable):
            self._log.warn(
                "{count} audit entries wait for the database: {reason}",
                count=len(self._queue),
                reason=failure.getErrorMessage(),
            )
        else:
            self._log.failure("the audit log could not be written", failure=failure)
        self._writeRest(RETRY_AFTER)

    async def flush(self) -> None:
        """
        Write what waits.

        @raise DatabaseUnavailable: when that is not possible; what was not
            written waits on.
        """
        async with self._lock:
            while self._queue or self._lost:
                await self._writeBatch()
            await self._pruneWhenDue()

    async def _writeBatch(self) -> None:
        batch = list(islice(self._queue, BATCH))
        lost = self._lost
        rows = [_row(entry) for entry in batch]
        if lost:
            rows.append(_row(AuditEntry(0, self._wallClock(), "audit-lost", None, None, {}, lost)))

        def write(connection: Connection) -> None:
            connection.execute(insert(audit), rows)

        try:
            await self._database.run(write)
        except DatabaseUnavailable:
            raise
        except Exception:
            # An entry that the database will not have must not keep the
            # others from being written for ever.
            self._drop(len(batch), lost)
            raise
        self._drop(len(batch), lost)

    def _drop(self, count: int, lost: int) -> None:
        for _ in range(count):
            self._queue.popleft()
        self._lost -= lost

    async def _pruneWhenDue(self) -> None:
        now = self._clock.seconds()
        if self._pruned is not None and now - self._pruned < PRUNE_EVERY:
            return
        self._pruned = now
        before = self._wallClock() - KEEP

        def prune(connection: Connection) -> None:
            connection.execute(delete(audit).where(audit.c.at < before))

        await self._database.run(prune)

    async def list(
        self,
        *,
        tenant: str | None = None,
        common: bool = False,
        event: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[AuditEntry]:
        """
        What happened, newest first.

        @param tenant: of this tenant only.
        @param common: with C{tenant}: also what is of no tenant, such as a
            token that nobody has.
        @param event: of this kind only.
        @param before: only entries whose number is smaller: for the next page.
        @param limit: how many at most, 1 to 1000.
        """
        query = select(audit).order_by(audit.c.id.desc()).limit(min(max(limit, 1), 1000))
        if tenant is not None:
            mine = audit.c.tenant == tenant
            query = query.where(or_(mine, audit.c.tenant.is_(None)) if common else mine)
        if event is not None:
            query = query.where(audit.c.event == event)
        if before is not None:
            query = query.where(audit.c.id < before)

        def fetch(connection: Connection) -> list[AuditEntry]:
            return [
                AuditEntry(
                    row.id, row.at, row.event, row.tenant, row.subject, row.fields, row.times
                )
                for row in connection.execute(query)
            ]

        return await self._database.read(fetch)

    async def stop(self) -> None:
        """
        Write what is left, if that is possible, and set no more timers.
        """
        self._stopped = True
        for call in (self._windowCall, self._writeCall):
            if call is not None and call.active():
                call.cancel()
        self._writeCall = None
        self._windowEnded()
        try:
            await self.flush()
        except DatabaseUnavailable as error:
            self._log.error(
                "{count} audit entries are lost: {reason}",
                count=len(self._queue),
                reason=str(error),
            )


def _plain(value: object) -> object:
    """A field's value as JSON has it, without secrets, cut to its length."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and isfinite(value):
        return value
    return _clean(str(value), MAX_VALUE)


def _clean(value: str, length: int) -> str:
    """
    A text that every database takes (PostgreSQL knows no NUL, and neither
    knows half a character), without secrets, cut to a length.
    """
    text = redact(value[: 4 * length]).encode("utf-8", "replace").decode("utf-8")
    return text.replace("\0", "\ufffd")[:length]


def _row(entry: AuditEntry) -> dict[str, Any]:
    return {
        "at": entry.at,
        "event": entry.event,
        "tenant": entry.tenant,
        "subject": entry.subject,
        "fields": dict(entry.fields),
        "times": entry.times,
    }


def _repeated(entry: AuditEntry, times: int) -> AuditEntry:
    return AuditEntry(0, entry.at, entry.event, entry.tenant, entry.subject, entry.fields, times)
