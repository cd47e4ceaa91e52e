# -*- test-case-name: tests.http.test_body -*-
"""
A request's body as its reader sees it.

A L{Body} holds at most about one buffer of bytes that nobody has taken; its
source (the connection) is told to stop and to go on.  It knows no framing and no
transport.  One reader per body: the bytes are given out once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Protocol as Structural

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IConsumer, IProtocol, IPushProducer
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from helix_revdial.http.problem import PayloadTooLarge


class BodyUnavailable(Exception):
    """The rest of a body will not come, or is no longer to be had."""


class BodySource(Structural):
    """Where a body's bytes come from."""

    def bodyWanted(self) -> None:
        """Somebody reads: answer C{Expect: 100-continue}, and mind the sender's pace."""

    def bodyTaken(self) -> None:
        """The buffer may have room again, or be full: pause or resume the sender."""


class NoSource:
    """The source of a body that is here already."""

    def bodyWanted(self) -> None:
        """Nothing to do."""

    def bodyTaken(self) -> None:
        """Nothing to do."""


class Body:
    """
    The body of one request.

    @ivar length: What C{Content-Length} announced; C{None} for chunks; 0 where
        the request has no body.
    @ivar received: Bytes received so far.
    @ivar complete: Whether all of it has been received.
    @ivar hurried: Whether a sender below the minimum rate is cut off.
    """

    def __init__(
        self, length: int | None, source: BodySource, *, highWater: int = 64 * 1024
    ) -> None:
        self.length = length
        self.received = 0
        self.complete = length == 0
        self.hurried = True
        self._source = source
        self._highWater = highWater
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._failure: Exception | None = None
        self._waiting: Deferred[None] | None = None
        self.wanted = False
        self.discarding = False

    @classmethod
    def of(cls, data: bytes) -> Body:
        """A body that is here already."""
        body = cls(len(data), NoSource())
        body.append(data)
        body.end()
        return body

    def allowSlow(self) -> None:
        """Take this body at whatever pace it comes: a live stream, not an upload."""
        self.hurried = False

    async def read(self, limit: int) -> bytes:
        """
        All of the body.

        @param limit: The bytes taken at most.
        @raise PayloadTooLarge: if it is larger; when C{Content-Length} says so,
            before anything is read (and without a C{100 Continue}).
        @raise Problem: (400, 408) if the sender breaks the framing or is too slow.
        @raise BodyUnavailable: if the connection ends first.
        """
        if self.length is not None and self.length > limit:
            raise PayloadTooLarge(limit)
        pieces = []
        size = 0
        async for piece in self.pieces():
            size += len(piece)
            if size > limit:
                raise PayloadTooLarge(limit)
            pieces.append(piece)
        return b"".join(pieces)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """
        The body as it comes; the sender is held back while the reader is busy.

        @raise BodyUnavailable: if the body has been claimed by another reader.
        """
        if self.wanted:
            raise BodyUnavailable("the body has a reader already")
        self.wanted = True
        if not self.complete and self._failure is None:
            self._source.bodyWanted()
        while True:
            if self._buffer:
                piece = b"".join(self._buffer)
                self._buffer.clear()
                self._buffered = 0
                self._source.bodyTaken()
                yield piece
            elif self._failure is not None:
                raise self._failure
            elif self.complete:
                return
            else:
                self._waiting = Deferred()
                await self._waiting

    def deliver(self, protocol: IProtocol) -> Deferred[None]:
        """
        Give the body to a protocol, as C{treq} gives a response's.

        C{protocol.transport} is a push producer; C{protocol.connectionLost} gets
        L{ConnectionDone} at the end of the body, else why it broke off.

        @return: Fires, without a failure, when C{connectionLost} has been called.
        """
        producer = BodyProducer(self)
        protocol.makeConnection(producer)  # type: ignore[arg-type]

        def ended(result: object) -> None:
            protocol.connectionLost(
                result if isinstance(result, Failure) else Failure(ConnectionDone())
            )

        return producer.deliverTo(protocol.dataReceived).addBoth(ended)

    def producer(self) -> IBodyProducer:
        """The body as the body of another request, for C{treq} and C{Agent}."""
        return BodyProducer(self)

    # The source's side.

    @property
    def full(self) -> bool:
        """Whether the sender is to wait."""
        return not self.discarding and self._buffered >= self._highWater

    def append(self, piece: bytes) -> None:
        """A piece has come."""
        self.received += len(piece)
        if not self.discarding:
            self._buffer.append(piece)
            self._buffered += len(piece)
            self._wake()

    def end(self) -> None:
        """All has come."""
        self.complete = True
        self._wake()

    def fail(self, reason: Exception) -> None:
        """The rest will not come; what has come may still be read."""
        if not self.complete and self._failure is None:
            self._failure = reason
            self._wake()

    def discard(self) -> None:
        """Nobody will read the rest."""
        self.discarding = True
        self._source = NoSource()
        self._buffer.clear()
        self._buffered = 0
        self.fail(BodyUnavailable("the request has been answered"))

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.callback(None)


@implementer(IBodyProducer, IPushProducer)
class BodyProducer:
    """Pushes a body into a consumer that pauses and resumes it."""

    def __init__(self, body: Body) -> None:
        self.length = UNKNOWN_LENGTH if body.length is None else body.length
        self._body = body
        self._paused = False
        self._resumed: Deferred[None] | None = None
        self._running: Deferred[None] | None = None
        self._stopped = False

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """
        @return: Fires when all is written; errbacks with what broke the body off.
            Never fires once stopped, as L{IBodyProducer} demands.
        """
        result: Deferred[None] = Deferred(lambda _: self.stopProducing())

        def ended(outcome: object) -> None:
            if not self._stopped and not result.called:
                if isinstance(outcome, Failure):
                    result.errback(outcome)
                else:
                    result.callback(None)

        self.deliverTo(consumer.write).addBoth(ended)
        return result

    def deliverTo(self, write: Callable[[bytes], object]) -> Deferred[None]:
        """Call C{write} with each piece; fires at the end of the body."""

        async def pump() -> None:
            async for piece in self._body.pieces():
                while self._paused:
                    self._resumed = Deferred()
                    await self._resumed
                write(piece)

        self._running = Deferred.fromCoroutine(pump())
        return self._running

    def pauseProducing(self) -> None:
        """Hold the body back."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Let the body flow."""
        self._paused = False
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.callback(None)

    def stopProducing(self) -> None:
        """No more is wanted."""
        self._stopped = True
        if self._running is not None:
            self._running.cancel()

    def loseConnection(self) -> None:
        """The protocol wants no more (the transport's name for it)."""
        if self._running is not None:
            self._running.cancel()
