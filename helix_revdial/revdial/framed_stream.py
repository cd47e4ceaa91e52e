# -*- test-case-name: tests.revdial.test_assigned -*-
"""
A stream on a connection that carries one after the other: its transport.

How a stream ends, and its connection goes on:

  - C{loseWriteConnection} sends the end mark.  When the peer's has come too, and the
    protocol has heard of it, the protocol hears C{connectionLost}, and the connection
    is free.
  - C{loseConnection} sends the end mark, and what the peer sends until its own is
    dropped: L{DROP_TIMEOUT} and L{MAX_DROPPED} at most, then the connection is closed.
  - Whatever else ends a stream ends its connection.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet import error
from twisted.internet.interfaces import IDelayedCall, IProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from .carrier import CarrierTransport
from .framed import Arrived, FramedConnection
from .socket_streams import SocketStream
from .sockets import SocketRelay

DROP_TIMEOUT = 1.0
"""Seconds in which a peer may end a stream that we have closed, and park its connection."""

MAX_DROPPED = 256 * 1024
"""Bytes that are dropped meanwhile; with more the connection ends."""


class FramedTransport(CarrierTransport):
    """
    The transport of one stream on a L{FramedConnection}.

    It is the connection's user from L{begin} until the stream is over.
    """

    __slots__ = (
        "_connection",
        "_dropping",
        "_held",
        "_heldEnd",
        "_isFresh",
        "_leaving",
        "_limit",
        "_onFree",
        "_onLost",
        "_wasWhole",
        "_whenDelivered",
        "carrier",
    )

    halfClose = True

    isWatched = True
    """Whoever parked the connection has had the kernel watch it."""

    def __init__(
        self,
        protocol: IProtocol,
        connection: FramedConnection,
        onFree: Callable[[], None],
        onLost: Callable[[], None],
    ) -> None:
        """
        @param protocol: The stream's.
        @param connection: What carries it.
        @param onFree: Told when both directions have ended: the connection can be
            used again, and needs another user within the call.
        @param onLost: Told instead when the connection has ended with the stream.
        """
        super().__init__(protocol, connection.transport, connection.clock)
        self.carrier = connection.carrier
        self._connection = connection
        self._onFree = onFree
        self._onLost = onLost
        self._held: list[bytes] = []
        self._heldEnd = False
        self._leaving: IDelayedCall | None = None
        self._limit: IDelayedCall | None = None
        self._dropping = 0
        self._wasWhole = False
        self._isFresh = True
        self._whenDelivered: Callable[[], None] | None = None

    def sentBefore(self, size: int) -> None:
        """So many bytes of this stream went with what assigned the connection to it."""
        self._sent += size

    def begin(self) -> None:
        """
        Be the user, and connect the protocol.  Whoever begins gives us what he has in
        hand, and says that he has, with nothing read in between.
        """
        self._connection.user = self
        self.start()

    def delivered(self) -> None:
        """Whoever began has nothing more in hand."""
        self._connection.afterwards(self._settled)

    def _settled(self) -> None:
        self._isFresh = False
        call, self._whenDelivered = self._whenDelivered, None
        if call is not None:
            call()
        if self._paused and self._taken is None and not self._over:
            self._transport.pauseProducing()

    def whenDelivered(self, call: Callable[[], None]) -> bool:
        """See L{StreamTransport.whenDelivered
        <helix_revdial.revdial.streams.StreamTransport.whenDelivered>}."""
        if self._isFresh:
            self._whenDelivered = call
        return self._isFresh

    def pauseProducing(self) -> None:
        if self._isFresh:
            # Most are taken over at once: their sockets are not touched in between.
            self._paused = True
        else:
            super().pauseProducing()

    # Sockets that somebody else moves the bytes of.

    def socketStream(self) -> SocketStream | None:
        connection = self._connection
        if (
            self._over
            or self._closing
            or self._lostReason is not None
            or connection.endSent
            or connection.endReceived
        ):
            return None
        stream = connection.socketStream()
        if stream is not None:
            stream.payload = b"".join(self._held)
            stream.owner = self
            stream.isReusable = True
            self._moved = stream
        return stream

    def socketsTaken(self, relay: SocketRelay) -> None:
        super().socketsTaken(relay)
        self._held.clear()
        self._connection.taken()

    def socketsEnded(self, orderly: bool, why: str) -> None:
        self._wasWhole = orderly

    def socketsAgain(self, rest: list[Arrived]) -> None:
        """Whoever had the sockets has moved the whole stream, and gives them back."""
        self._taken = None
        connection = self._connection
        connection.forgetEnds()
        self._onFree()
        self._finish(connectionDone)
        connection.givenBack(rest)

    # What a carrier says.

    def _send(self, data: bytes) -> None:
        self._connection.send(data)

    def _sendEnd(self) -> None:
        self._transport.unregisterProducer()
        self._connection.sendEnd()
        if self._readEnded:
            self._leaveSoon()

    def _close(self, code: int, reason: str) -> None:
        connection = self._connection
        self._transport.unregisterProducer()
        connection.sendEnd()
        self._held.clear()
        self._heldEnd = False
        if connection.endReceived:
            self._leaveSoon()
            return
        # Most peers end when we do.  Nothing says that one should but an end of the
        # connection, so it is given a little time.
        self._dropping = 0
        self._limit = self._clock.callLater(DROP_TIMEOUT, self._dropped)
        connection.goOn()

    def _dropped(self) -> None:
        """The peer goes on: nothing of it is wanted."""
        self._stopLimit()
        self._connection.close()

    def _stopLimit(self) -> None:
        limit, self._limit = self._limit, None
        if limit is not None and limit.active():
            limit.cancel()

    def _leaveSoon(self) -> None:
        """Both directions have ended."""
        if self._leaving is None and not self._over and self._connection.isOpen:
            # Not within the protocol's own call, as no transport does.
            self._leaving = self._clock.callLater(0, self._leave)

    def _leave(self) -> None:
        self._leaving = None
        self._stopLimit()
        connection = self._connection
        connection.forgetEnds()
        self._onFree()
        self._finish(connectionDone)
        connection.goOn()

    def _abort(self) -> None:
        self._stopLimit()
        self._connection.abort()

    def _holds(self) -> bool:
        return bool(self._held) or self._heldEnd

    def _deliverHeld(self) -> None:
        while self._held and not self._paused and not self._closing:
            self._deliver(self._held.pop(0))
        if self._heldEnd and not self._held and not self._paused:
            self._heldEnd = False
            self._delivered()

    def _delivered(self) -> None:
        """All that the peer had to say has been heard."""
        self._deliverEnd()
        if self._connection.endSent:
            self._leaveSoon()

    # FrameUser

    def payload(self, data: bytes) -> None:
        if self._closing:
            self._dropping += len(data)
            if self._dropping > MAX_DROPPED and self._limit is not None:
                self._dropped()
        elif self._holding or self._held:
            self._held.append(data)
        else:
            self._deliver(data)

    def ended(self) -> None:
        if self._closing:
            self._leaveSoon()
        elif self._holding or self._held:
            self._heldEnd = True
        else:
            self._delivered()

    def ponged(self) -> None:
        """Streams do not ask."""

    def lost(self, reason: Failure) -> None:
        self._stopLimit()
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            # The stream was whole; what ended is the connection.
            leaving.cancel()
            reason = connectionDone
        self._onLost()
        if reason.check(error.ConnectionDone) and not (
            self._connection.endReceived or self._closing or self._wasWhole
        ):
            reason = Failure(error.ConnectionLost("the connection ended without an end of stream"))
        self._lost(reason)


__all__ = ["FramedTransport"]
