# -*- test-case-name: tests.api.test_session_events -*-
"""
The events of a session as they happen, and its log.

A reader first gets what it has not seen, from the database, page by page and only
as fast as it takes it; then each event as it is stored.  The two are joined on the
reactor's thread by the number of the event: none is left out, none comes twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Annotated, Literal, TypeVar

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from helix_revdial.api.event_document import EventDocument, documentOf
from helix_revdial.api.event_streams import EventsQuery, openEvents
from helix_revdial.api.services import Services
from helix_revdial.api.session_document import PATH
from helix_revdial.api.session_points import MOMENT
from helix_revdial.http.event_frames import eventFrame
from helix_revdial.http.events import EVENT_STREAM, EventStream
from helix_revdial.http.operations import Call, HeaderField, Operation
from helix_revdial.http.problem import Problem, validationProblem
from helix_revdial.http.response import BrokenOff, Response
from helix_revdial.sessions.events import LINES, Event, EventLog, UnknownSession
from helix_revdial.sessions.lifecycle import TERMINAL
from helix_revdial.sessions.records import Session
from helix_revdial.storage.failures import DatabaseUnavailable
from helix_revdial.telemetry.timestamps import timestamp

T = TypeVar("T")

RETRY = 1.0
"""Seconds until a database that was away is asked again."""

PIECE = 100
"""Events that are read and written at once."""

_LEVELS = ("debug", "info", "warn", "error")


class SinceQuery(EventsQuery):
    """From where on; C{Last-Event-ID} goes before it."""

    since: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None


class LogsQuery(msgspec.Struct):
    """Which lines of the log."""

    tail: Annotated[int, msgspec.Meta(ge=1, le=10_000)] | None = None
    level: Literal["debug", "info", "warn", "error"] | None = None
    since: (
        Annotated[str, msgspec.Meta(max_length=40, extra_json_schema={"pattern": MOMENT})] | None
    ) = None
    page: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    perPage: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 200


class LogLine(msgspec.Struct, omit_defaults=True):
    """One line of what an agent, or its host, said."""

    level: str
    message: str
    ts: str
    seq: int
    stream: str | None = None


class LogPage(msgspec.Struct, omit_defaults=True):
    """Lines, oldest first; C{nextPage} is absent on the last page."""

    items: list[LogLine]
    total: int
    nextPage: str | None = None


def operations(services: Services) -> list[Operation]:
    """Events and logs."""
    frames = Frames()
    services.events.afterwards(frames.flush)
    readers = Readers()
    services.sessions.onDeleted(readers.deleted)

    async def events(call: Call) -> Response:
        session: Session = call.resource
        after = _after(call)
        if session.status in TERMINAL and after is not None and after >= session.lastSeq:
            # To an EventSource: do not come back.
            return Response(204)
        reader = Reader(
            services.events, frames, session, after or 0, services.wallClock, services.clock
        )

        def closed() -> None:
            reader.close()
            readers.discard(session.id, reader)

        stream = openEvents(
            services,
            call,
            first=reader.history(),
            form=call.query.heartbeat,
            onClose=closed,
        )
        if not stream.closed:
            readers.add(session.id, reader)
        reader.begin(stream)
        if services.sessions.wasDeleted(session.id):
            reader.gone()
        return stream.response()

    async def logs(call: Call) -> LogPage | Response:
        session: Session = call.resource
        query: LogsQuery = call.query
        since = None if query.since is None else _moment(query.since)
        levels = _LEVELS[0 if query.level is None else _LEVELS.index(query.level) :]
        found = await services.events.lines(
            session.id,
            levels=levels,
            since=since,
            tail=query.tail,
            page=query.page,
            perPage=query.perPage,
        )
        more = query.tail is None and query.page * query.perPage < found.total
        page = LogPage(
            [_line(event) for event in found.items],
            found.total,
            str(query.page + 1) if more else None,
        )
        if not found.more:
            return page
        headers = [(b"Content-Type", b"application/json; charset=utf-8")]
        return Response(200, headers, _long(services.events, session.id, page, found.more))

    return [
        Operation(
            name="streamSessionEvents",
            method="GET",
            path=PATH + "/{session}/events",
            run=events,
            access="task-viewer",
            query=SinceQuery,
            media=(EVENT_STREAM,),
            mediaShape=EventDocument,
            otherStatuses=(204,),
            headers=(
                HeaderField(
                    "Last-Event-ID",
                    "The last event that the client has: it gets those after it.",
                    pattern="^[0-9]{1,18}$",
                    required=False,
                ),
            ),
            rate=None,
            errors=(400, 401, 403, 404),
            summary="A session's events: what has happened, then what happens.",
            description="Server-sent events. Each has its number as id, its type as event, and "
            "as data JSON on one line; Last-Event-ID, or since, says where to go on. Where that "
            "is not kept any more the first event is resync. The stream ends with the session; "
            "whoever then asks for more gets 204.",
            tags=("sessions",),
        ),
        Operation(
            name="getSessionLogs",
            method="GET",
            path=PATH + "/{session}/logs",
            run=logs,
            access="task-viewer",
            query=LogsQuery,
            response=LogPage,
            errors=(400, 401, 403, 404),
            summary="A session's log; with tail its last lines.",
            tags=("sessions",),
        ),
    ]


class Reader:
    """
    One client's way through a session's events.

    @ivar seq: The last event that it was given.
    """

    def __init__(
        self,
        log: EventLog,
        frames: Frames,
        session: Session,
        after: int,
        wallClock: Callable[[], float],
        clock: IReactorTime,
    ) -> None:
        self.seq = after
        self._clock = clock
        self._wallClock = wallClock
        self._log = log
        self._frames = frames
        self._session = session
        self._stream: EventStream | None = None
        self._newest = session.lastSeq
        self._over = session.status in TERMINAL
        self._live = False
        self._unsubscribe: Callable[[], None] | None = None

    def begin(self, stream: EventStream) -> None:
        """
        Where to push to.  From now on, before the history is read, nothing that
        happens is missed.
        """
        if not stream.closed:
            self._stream = stream
            self._unsubscribe = self._log.subscribe(self._session.id, self._happened)

    def close(self) -> None:
        """Nothing more is wanted."""
        unsubscribe, self._unsubscribe = self._unsubscribe, None
        if unsubscribe is not None:
            unsubscribe()

    async def history(self) -> AsyncIterator[bytes]:
        """
        Frames of what has happened, until nothing is missing any more.
        """
        try:
            async for frames in self._missing():
                yield frames
        except UnknownSession:
            # It was removed meanwhile.
            self._over = True
        self._live = True
        if self._over:
            self._finish()

    async def _missing(self) -> AsyncIterator[bytes]:
        session = self._session.id
        _, last = await self._insist(lambda: self._log.bounds(session))
        # A number that was never given says nothing.
        self.seq = min(self.seq, last)
        while True:
            read = await self._insist(lambda: self._log.read(session, self.seq, PIECE))
            if not read and self.seq >= self._newest:
                break
            if not read or read[0].seq != self.seq + 1:
                # What was to come is not kept any more.
                first, _ = await self._insist(lambda: self._log.bounds(session))
                if self.seq + 1 < first:
                    self.seq = first - 1
                    yield _resync(session, first, self.seq, self._wallClock())
                continue
            self.seq = read[-1].seq
            self._over = self._over or any(event.ends for event in read)
            yield b"".join(map(frameOf, read))

    def gone(self) -> None:
        """There is no such session any more: what was told of it is all."""
        self._over = True
        if self._live:
            self._finish()

    async def _insist(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read, however long the database is away: the answer has begun."""
        while True:
            try:
                return await read()
            except DatabaseUnavailable:
                await deferLater(self._clock, RETRY)

    def _happened(self, event: Event) -> None:
        self._newest = max(self._newest, event.seq)
        if event.ends:
            self._over = True
        if not self._live or self._stream is None or event.seq <= self.seq:
            return
        if event.seq != self.seq + 1:
            # Somebody else stored what lies between: the client asks for it.
            self._stream.finish()
            return
        self.seq = event.seq
        self._stream.push(self._frames.of(event), more=True)
        self._frames.sent.append(self._stream)
        if event.ends:
            self._finish()

    def _finish(self) -> None:
        self.close()
        if self._stream is not None:
            self._stream.finish()


class Readers:
    """
    Who reads the events of which session.
    """

    def __init__(self) -> None:
        self._readers: dict[str, set[Reader]] = {}

    def add(self, session: str, reader: Reader) -> None:
        """One more."""
        self._readers.setdefault(session, set()).add(reader)

    def discard(self, session: str, reader: Reader) -> None:
        """One less, if it was there."""
        found = self._readers.get(session, set())
        found.discard(reader)
        if not found:
            self._readers.pop(session, None)

    def deleted(self, session: Session) -> None:
        """A session was removed: streams of a sandbox, which has no last event, end with it."""
        for reader in list(self._readers.get(session.id, ())):
            reader.gone()


class Frames:
    """
    Has the frame of the newest event, which every reader of its session is given.

    @ivar sent: The streams that were given frames since the last L{flush}.
    """

    def __init__(self) -> None:
        self.sent: list[EventStream] = []
        self._last: tuple[Event, bytes] | None = None

    def flush(self) -> None:
        """Send them: what was stored at one time is one piece on the wire."""
        sent, self.sent = self.sent, []
        for stream in sent:
            stream.flush()

    def of(self, event: Event) -> bytes:
        """The event's frame."""
        if self._last is None or self._last[0] is not event:
            self._last = (event, frameOf(event))
        return self._last[1]


def frameOf(event: Event) -> bytes:
    """An event as a server-sent event."""
    data = msgspec.json.encode(documentOf(event)).decode("utf-8")
    return eventFrame(data, event=event.type, id=str(event.seq))


def _resync(session: str, first: int, seq: int, now: float) -> bytes:
    data = {
        "type": "resync",
        "ts": timestamp(now),
        "sessionId": session,
        "firstAvailable": first,
    }
    return eventFrame(msgspec.json.encode(data).decode("ascii"), event="resync", id=str(seq))


def _after(call: Call) -> int | None:
    """The last event that the client has; C{None}: it wants all."""
    given = call.request.headers.get(b"last-event-id")
    if not given:
        since: int | None = call.query.since
        return since
    if not given.isdigit() or len(given) > 18:
        raise validationProblem({"Last-Event-ID": ["is the number of an event"]})
    return int(given)


def _moment(text: str) -> float:
    """The moment that RFC 3339 writes."""
    try:
        moment = datetime.fromisoformat(text)
        seconds = moment.timestamp()
    except (ValueError, OverflowError):
        moment, seconds = None, 0.0
    if moment is None or moment.tzinfo is None:
        raise Problem(
            400,
            "The request is not valid: since: is a time such as 2026-01-02T03:04:05Z.",
            type="validation",
            errors={"since": ["is a time such as 2026-01-02T03:04:05Z"]},
        )
    return seconds


async def _long(
    events: EventLog, session: str, page: LogPage, more: list[int]
) -> AsyncIterator[bytes]:
    """
    A page as JSON, piece by piece: its lines together may have hundreds of megabytes.

    @param page: the page with its first lines.
    @param more: the numbers of the others.
    """
    whole = msgspec.to_builtins(page)
    yield b'{"items":' + msgspec.json.encode(whole.pop("items"))[:-1]
    for begin in range(0, len(more), LINES):
        try:
            found = await events.numbered(session, more[begin : begin + LINES])
        except DatabaseUnavailable as error:
            raise BrokenOff("the log cannot be read") from error
        if found:
            yield b"," + msgspec.json.encode([_line(event) for event in found])[1:-1]
    yield b"]," + msgspec.json.encode(whole)[1:]


def _line(event: Event) -> LogLine:
    data = event.data
    return LogLine(
        str(data.get("level", "info")),
        str(data.get("message", "")),
        timestamp(event.at),
        event.seq,
        data.get("stream"),
    )
