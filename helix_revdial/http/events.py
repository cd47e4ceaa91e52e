# -*- test-case-name: tests.http.test_events -*-
"""
Answers that carry server-sent events.

L{EventStream} is the answer of one client: an asynchronous iterable body that whoever
has events pushes frames (L{helix_revdial.http.event_frames}) into.  L{EventStreams} has
all of one server: their heartbeats, their limit, their end.

Invariants:

  - A frame is sent whole, in the order pushed, at once where the client takes it.
  - What a client does not take waits in its own queue, up to a limit in bytes.  One
    push beyond it closes that client and no other: it comes back and says where it
    was.  Nothing is dropped from the middle, and a push never waits.
  - A frame is encoded once and shared by all the queues that it waits in.
  - A stream ends once, however it ends, and then says so once (C{onClose}).
  - Idle clients share one timer for each interval; none has a timer of its own.
  - An answer ends with its caller, with the credential that it was asked with, and
    when the server stops: then cleanly, so that clients resume elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, Literal

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from helix_revdial.http.event_frames import commentFrame, eventFrame, retryFrame
from helix_revdial.http.request import Request
from helix_revdial.http.response import BrokenOff, Response

EVENT_STREAM: Final = "text/event-stream"
"""The media type."""

HeartbeatForm = Literal["comment", "event"]
"""How a client wants its heartbeats: as comments, or as events without an id."""

DEFAULT_HEARTBEAT: Final = 15.0
"""Seconds between two heartbeats: below the idle limit of every common proxy."""

MIN_HEARTBEAT: Final = 0.1

DEFAULT_QUEUE: Final = 1024 * 1024
"""Bytes that wait for one client, at most."""

RETRY: Final = 3000
"""Milliseconds after which a client that lost its stream comes back."""

RETURN_SPREAD: Final = 5000
"""Milliseconds over which the clients of a server that stops are told to come back."""

PIECE: Final = 64 * 1024
"""Bytes that are taken from a queue at once, or one frame if that is larger."""

BEATS_PER_TURN: Final = 500
"""Heartbeats that are sent before others have their turn."""

_HEADERS: Final = (
    (b"Content-Type", EVENT_STREAM.encode("ascii")),
    (b"Cache-Control", b"no-store"),
    # nginx and those who follow it would hold frames back.
    (b"X-Accel-Buffering", b"no"),
)


class EventStream:
    """
    The events of one client: the body of its answer.

    @ivar closed: Whether it takes no more.
    @ivar queued: Bytes that wait for the client.
    """

    __slots__ = (
        "_ending",
        "_first",
        "_form",
        "_greeting",
        "_holder",
        "_interval",
        "_onClose",
        "_queue",
        "_request",
        "_streams",
        "_waiting",
        "closed",
        "queued",
    )

    def __init__(
        self,
        streams: EventStreams,
        request: Request,
        first: AsyncIterator[bytes] | None,
        holder: str | None,
        form: HeartbeatForm,
        interval: float,
        onClose: Callable[[], None] | None,
    ) -> None:
        self._streams = streams
        self._request = request
        self._first = first
        self._holder = holder
        self._form = form
        self._interval = interval
        self._onClose = onClose
        self._greeting: bytes | None = retryFrame(streams.retry)
        # Most clients are idle, and an empty deque is larger than all the rest.
        self._queue: deque[bytes] | None = None
        self._waiting: Deferred[None] | None = None
        self._ending = False
        self.closed = False
        self.queued = 0

    def push(self, frame: bytes, *, more: bool = False) -> bool:
        """
        Send a frame, or have it wait.

        @param frame: What L{helix_revdial.http.event_frames} made, once for all whom it
            goes to.
        @param more: Whether it may wait for others that are pushed in the same turn;
            then L{flush} sends them.
        @return: Whether it was taken.  If not, the stream is over or ends now, since
            more would wait than may.
        """
        if self.closed or self._ending:
            return False
        if self.queued + len(frame) > self._streams.queueBytes:
            self._streams.overflowed(self)
            return False
        if self._queue is None:
            self._queue = deque()
        self._queue.append(frame)
        self.queued += len(frame)
        if not more:
            self._wake()
        return True

    def flush(self) -> None:
        """Send what was pushed."""
        if self._queue:
            self._wake()

    def finish(self) -> None:
        """End cleanly, after what waits."""
        if not self.closed and not self._ending:
            self._ending = True
            self._wake()

    def abort(self) -> None:
        """End now, whatever waits: the client sees that it is no clean end."""
        if not self.closed:
            self._request.abort()
            # Its body may not have been asked for anything yet.
            self._close()

    def response(self) -> Response:
        """The answer; to be made once, and returned by the operation."""
        return Response(200, _HEADERS, self)

    # The connection's side

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> bytes:
        greeting, self._greeting = self._greeting, None
        if greeting is not None:
            return greeting
        if self._first is not None:
            try:
                return await anext(self._first)
            except StopAsyncIteration:
                self._first = None
            except CancelledError:
                raise
            except Exception as error:
                self._streams.log.failure(
                    "The first events of {path} cannot be read", path=self._request.path
                )
                raise BrokenOff("the events cannot be read") from error
        while True:
            if self._queue:
                return self._take()
            if self._ending or self.closed:
                raise StopAsyncIteration
            self._waiting = Deferred()
            try:
                await self._waiting
            finally:
                self._waiting = None

    async def aclose(self) -> None:
        """Nothing more is wanted."""
        first, self._first = self._first, None
        self._close()
        close = getattr(first, "aclose", None)
        if close is not None:
            await close()

    def lost(self) -> None:
        """The connection is gone."""
        self._close()

    # The server's side

    @property
    def holder(self) -> str | None:
        """The credential that it ends with."""
        return self._holder

    @property
    def interval(self) -> float:
        """Seconds between its heartbeats."""
        return self._interval

    @property
    def form(self) -> HeartbeatForm:
        """What its heartbeats are."""
        return self._form

    @property
    def idle(self) -> bool:
        """Whether the client has taken everything."""
        return self._waiting is not None

    def _take(self) -> bytes:
        queue = self._queue
        assert queue
        pieces = [queue.popleft()]
        size = len(pieces[0])
        while queue and size + len(queue[0]) <= PIECE:
            pieces.append(queue.popleft())
            size += len(pieces[-1])
        if not queue:
            self._queue = None
            self.queued = 0
        else:
            self.queued -= size
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _wake(self) -> None:
        waiting = self._waiting
        if waiting is not None and not waiting.called:
            waiting.callback(None)

    def _close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._queue = None
        self.queued = 0
        self._streams.gone(self)
        onClose, self._onClose = self._onClose, None
        if onClose is not None:
            try:
                onClose()
            except Exception:
                self._streams.log.failure("The end of an event stream could not be told")
        self._wake()


class EventStreams:
    """
    The event streams of one server.

    @ivar queueBytes: Bytes that wait for one client, at most.
    @ivar heartbeat: Seconds between two heartbeats of a stream that begins now.
    @ivar retry: Milliseconds after which clients are told to come back.
    @ivar overflows: Clients that were closed since they did not keep up.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        timestamp: Callable[[], str],
        *,
        heartbeat: float = DEFAULT_HEARTBEAT,
        queueBytes: int = DEFAULT_QUEUE,
        retry: int = RETRY,
        onOverflow: Callable[[], object] = lambda: None,
    ) -> None:
        """
        @param clock: When heartbeats are due.
        @param timestamp: The time of day as heartbeats say it.
        @param heartbeat: Seconds, L{MIN_HEARTBEAT} at least.
        @param onOverflow: Told when a client is closed that did not keep up.
        """
        self.queueBytes = queueBytes
        self.heartbeat = max(heartbeat, MIN_HEARTBEAT)
        self.retry = retry
        self.overflows = 0
        self._clock = clock
        self._timestamp = timestamp
        self._onOverflow = onOverflow
        self._wheels: dict[float, _Wheel] = {}
        self._held: dict[str, set[EventStream]] = {}
        self._size = 0
        self._stopping = False

    def setLimits(self, *, heartbeat: float, queueBytes: int) -> None:
        """From now on, others; a stream keeps the heartbeat that it began with."""
        self.heartbeat = max(heartbeat, MIN_HEARTBEAT)
        self.queueBytes = queueBytes

    def open(
        self,
        request: Request,
        *,
        first: AsyncIterator[bytes] | None = None,
        holder: str | None = None,
        form: HeartbeatForm = "comment",
        onClose: Callable[[], None] | None = None,
    ) -> EventStream:
        """
        Begin a stream, whose L{EventStream.response} answers C{request}.

        @param first: Frames that come before all that is pushed (history).  The next
            is asked for when the client has taken what went before, so that these
            wait in no queue.
        @param holder: The credential that it ends with, as L{end} names it.
        @param form: What heartbeats are.
        @param onClose: Called once when the stream is over, whatever ended it.
        """
        stream = EventStream(self, request, first, holder, form, self.heartbeat, onClose)
        self._size += 1
        if holder is not None:
            self._held.setdefault(holder, set()).add(stream)
        wheel = self._wheels.get(stream.interval)
        if wheel is None:
            wheel = _Wheel(self._clock, stream.interval, self._beats, self._wheels)
        wheel.add(stream)
        # Whatever becomes of the operation, the stream does not outlive its connection.
        request.whenLost(stream.lost)
        # A caller that is gone is only noticed when it is written to; one that has
        # ended its own direction will not ask for anything again.
        request.endWithCaller(whole=True)
        if self._stopping:
            stream.finish()
        return stream

    def __len__(self) -> int:
        """Streams that are open."""
        return self._size

    @property
    def buffered(self) -> int:
        """Bytes that wait for their clients."""
        return sum(stream.queued for stream in self._all())

    def end(self, holder: str) -> None:
        """A credential has ended: so do the streams that were asked with it."""
        for stream in list(self._held.get(holder, ())):
            stream.abort()

    def stop(self) -> None:
        """
        End all, cleanly after what waits, and have the clients come back one after
        another.
        """
        self._stopping = True
        every = self._all()
        for number, stream in enumerate(every):
            stream.push(retryFrame(1000 + RETURN_SPREAD * number // len(every)))
            stream.finish()

    # The streams' side

    def overflowed(self, stream: EventStream) -> None:
        """A client did not keep up."""
        self.overflows += 1
        self._onOverflow()
        stream.abort()

    def gone(self, stream: EventStream) -> None:
        """A stream is over."""
        self._size -= 1
        if stream.holder is not None:
            held = self._held[stream.holder]
            held.discard(stream)
            if not held:
                del self._held[stream.holder]
        wheel = self._wheels.get(stream.interval)
        if wheel is not None:
            wheel.remove(stream)

    def _all(self) -> list[EventStream]:
        return [stream for wheel in self._wheels.values() for stream in wheel]

    def _beats(self) -> dict[HeartbeatForm, bytes]:
        now = self._timestamp()
        return {
            "comment": commentFrame(f"hb {now}"),
            # Without an id: where the client is to resume has not changed.
            "event": eventFrame(f'{{"type":"heartbeat","ts":"{now}"}}', event="heartbeat"),
        }


class _Wheel:
    """
    The heartbeats of the streams that have one interval.

    All are due the same time after their last one, so that the order in which they
    are due is the order in which they last were: one timer, for the first, is enough.
    """

    __slots__ = ("_beats", "_call", "_clock", "_due", "_interval", "_wheels")

    def __init__(
        self,
        clock: IReactorTime,
        interval: float,
        beats: Callable[[], dict[HeartbeatForm, bytes]],
        wheels: dict[float, _Wheel],
    ) -> None:
        self._clock = clock
        self._interval = interval
        self._beats = beats
        self._due: OrderedDict[EventStream, float] = OrderedDict()
        self._call: IDelayedCall | None = None
        self._wheels = wheels
        wheels[interval] = self

    def __iter__(self) -> Iterator[EventStream]:
        return iter(list(self._due))

    def add(self, stream: EventStream) -> None:
        self._due[stream] = self._clock.seconds() + self._interval
        if self._call is None:
            self._call = self._clock.callLater(self._interval, self._turn)

    def remove(self, stream: EventStream) -> None:
        self._due.pop(stream, None)
        if not self._due:
            if self._call is not None:
                self._call.cancel()
                self._call = None
            self._wheels.pop(self._interval, None)

    def _turn(self) -> None:
        self._call = None
        now = self._clock.seconds()
        beats = self._beats()
        for _ in range(BEATS_PER_TURN):
            if not self._due:
                return
            stream, due = next(iter(self._due.items()))
            if due > now:
                break
            self._due[stream] = now + self._interval
            self._due.move_to_end(stream)
            if stream.idle:
                # Who has not taken what went before needs no sign of life.
                stream.push(beats[stream.form])
        if self._due and self._call is None:
            wait = next(iter(self._due.values())) - self._clock.seconds()
            self._call = self._clock.callLater(max(0.0, wait), self._turn)


__all__ = [
    "DEFAULT_HEARTBEAT",
    "DEFAULT_QUEUE",
    "EVENT_STREAM",
    "MIN_HEARTBEAT",
    "EventStream",
    "EventStreams",
    "HeartbeatForm",
]
