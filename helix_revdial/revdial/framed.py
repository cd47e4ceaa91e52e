# -*- test-case-name: tests.revdial.test_assigned,tests.integration.test_pool -*-
"""
A connection that carries one stream after the other.

A stream whose end is the end of its connection costs a connection, a TLS handshake
and an HTTP exchange.  On a L{FramedConnection} the bytes lie in WebSocket's frames
(L{helix_revdial.revdial.frames}) on B{every} carrier, because frames can say that one
direction has ended, and say it again for the next stream: an empty unfragmented
message.  On a WebSocket the client masks, as it must; on the raw carrier nobody does.
So there is one framing, one portable way of it (here, on any transport, TLS too) and
one fast way (L{helix_revdial.revdial.sockets}), and both are the ones that other
streams have.

L{FramedConnection} owns the connection, the frames and what was read and not used.
Who hears of what arrives is its C{user}: whoever parks it, or the transport of the
stream that it carries (L{helix_revdial.revdial.framed_stream}), which is an ordinary
carrier.  What is said between two streams is the user's.

Invariants:

  - One user at a time.  A stream's user leaves when both directions have ended by
    their marks; then, and only then, can the connection carry another.
  - However else a stream ends, the connection ends with it.
  - What arrives behind a stream's end belongs to the next one, at every split.  It is
    kept, and while it is, nothing is received: at most one read.
  - Payload behind an end mark whose peer may not have seen ours breaks the protocol.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any
from typing import Protocol as Shape

from twisted.internet import error, tcp
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IReactorTime,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from .frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    Control,
    EndMark,
    FrameError,
    FrameReader,
    closePayload,
    frame,
    readClose,
)
from .masks import Keys
from .socket_streams import Framing, SocketStream, plainStream

MAX_FRAME = 64 * 1024 - 16
"""Payload bytes of a frame that we send: with its head it fits into one read."""

CLOSE_TIMEOUT = 10.0
"""Seconds for the peer to end the connection once we have closed."""

Arrived = bytes | Control | EndMark


class FrameUser(Shape):
    """Who hears of what arrives."""

    def payload(self, data: bytes) -> None:
        """Bytes came."""

    def ended(self) -> None:
        """The peer's direction has ended, by its mark."""

    def ponged(self) -> None:
        """A ping was answered."""

    def lost(self, reason: Failure) -> None:
        """The connection is gone; called once, last."""


@implementer(IHalfCloseableProtocol)
class FramedConnection(Protocol):
    """
    The connection; see the module.

    @ivar user: Who hears of what arrives.
    @ivar carrier: C{"raw"} or C{"websocket"}.
    @ivar endSent: Whether we have ended our direction of the present stream.
    @ivar endReceived: Whether the peer has.
    """

    # One for each stream; those that are parked are made some at a time.
    __slots__ = (
        "_afterwards",
        "_closeSent",
        "_closing",
        "_delivering",
        "_framing",
        "_head",
        "_kept",
        "_keys",
        "_lost",
        "_masks",
        "_onUp",
        "_reader",
        "_stalled",
        "_timer",
        "_unread",
        "_why",
        "carrier",
        "clock",
        "connected",
        "endReceived",
        "endSent",
        "transport",
        "user",
    )

    transport: Any

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        user: FrameUser,
        keys: Keys,
        *,
        webSocket: bool,
        client: bool,
        zeroKey: bool = False,
        head: bytes = b"",
        onUp: Callable[[], None] | None = None,
    ) -> None:
        """
        @param clock: Tells the time.
        @param user: The first user.
        @param keys: Makes masking keys.
        @param webSocket: Whether the carrier is a WebSocket, where clients mask.
        @param client: Whether we are the end that dialled.
        @param zeroKey: Whether the client may mask with a zero key.
        @param head: What is sent first: the server's answer to the upgrade.
        @param onUp: Told when the connection is made.
        """
        self.transport = None
        self.connected = 0
        self.user = user
        self.clock = clock
        self.carrier = "websocket" if webSocket else "raw"
        self._keys = keys
        self._masks = webSocket and client
        self._reader = FrameReader(masked=webSocket and not client)
        self._framing = Framing(self._reader, client=self._masks, eof=True, zeroKey=zeroKey)
        self._head = head
        self._onUp = onUp
        self.endSent = False
        self.endReceived = False
        # Made with what first waits: an empty one takes 760 bytes.
        self._kept: deque[Arrived] | None = None
        self._unread: list[bytes] = []
        self._stalled = False
        self._delivering = False
        self._afterwards: Callable[[], None] | None = None
        self._closeSent = False
        self._closing = False
        self._why: Failure | None = None
        self._timer: IDelayedCall | None = None
        self._lost = False

    # The connection.

    def connectionMade(self) -> None:
        try:
            self.transport.setTcpNoDelay(True)
        except (AttributeError, OSError):
            pass  # not TCP
        if self._head:
            self.transport.write(self._head)
            self._head = b""
        if self._onUp is not None:
            self._onUp()

    def dataReceived(self, data: bytes) -> None:
        if self._stalled or self._kept or self._unread or self._delivering:
            self._unread.append(data)
            if not self._delivering:
                self.transport.pauseProducing()
        else:
            self._read(data)

    def readConnectionLost(self) -> None:
        """Frames say how a stream ends: the end of TCP in one direction is that of both."""
        if not self._closing:
            self._broke("the connection ended without an end of stream")
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """We never end our direction of the connection alone."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._lost:
            return
        self._lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._kept = None
        self._unread.clear()
        self.user.lost(self._why or reason)

    @property
    def isOpen(self) -> bool:
        """Whether something can be sent, and will be taken for what it is."""
        return not (self._lost or self._closing or self.transport is None)

    # Receiving.

    def _read(self, data: bytes) -> None:
        received = memoryview(bytearray(data))
        head = self._reader.single(received)
        kept = self._kept
        if kept is None:
            kept = self._kept = deque()
        if head:
            # A line, or a small message: it came alone, in one piece.
            kept.append(bytes(received[head:]))
        else:
            try:
                found = self._reader.read(received)
            except FrameError as broken:
                self._refuse(broken.code, str(broken))
                return
            for one in found:
                kept.append(bytes(one) if isinstance(one, memoryview) else one)
        if not self._delivering:
            self._deliver()

    def _deliver(self) -> None:
        """Tell the user of what is kept, as long as it listens."""
        if self._delivering:
            return
        self._delivering = True
        try:
            while not (self._stalled or self._lost):
                if not self._kept:
                    if not self._unread:
                        return
                    unread = b"".join(self._unread)
                    self._unread.clear()
                    self._read(unread)
                elif self.endReceived and not isinstance(self._kept[0], Control):
                    # The next stream's, which the peer may begin when it has seen our end.
                    if self.endSent or self._closing:
                        return
                    self._refuse(1002, "data after the end of the stream")
                else:
                    self._tell(self._kept.popleft())
        finally:
            self._delivering = False
            call, self._afterwards = self._afterwards, None
            if call is not None:
                call()

    def afterwards(self, call: Callable[[], None]) -> None:
        """Make C{call} when everything that has arrived is delivered, which may be now."""
        if self._delivering:
            self._afterwards = call
        else:
            call()

    def _tell(self, one: Arrived) -> None:
        if isinstance(one, bytes):
            if not self._closing:
                self.user.payload(one)
        elif isinstance(one, Control):
            if one.opcode == CLOSE:
                self._peerClosed(one.payload)
            elif one.opcode == PONG:
                self.user.ponged()
            elif not self._closing:
                self._write(self._frame(PONG, one.payload))
        elif not self._closing:
            self.endReceived = True
            self.user.ended()

    @property
    def isStalled(self) -> bool:
        """Whether what comes is kept."""
        return self._stalled

    def stall(self) -> None:
        """The user takes nothing more for now: keep what comes, which is one read."""
        self._stalled = True
        self.transport.pauseProducing()

    def goOn(self) -> None:
        """The user, this one or the next, takes what comes."""
        self._stalled = False
        self._deliver()
        if not (self._stalled or self._lost or self._kept):
            self.transport.resumeProducing()

    def forgetEnds(self) -> None:
        """Both directions have ended: what follows is the next stream's."""
        self.endSent = self.endReceived = False

    # Sending.

    def _frame(self, opcode: int, payload: bytes) -> bytes:
        return frame(payload, self._keys.key() if self._masks else None, opcode)

    def _write(self, data: bytes) -> None:
        """
        Send at once where the transport is a socket with nothing else to send; Twisted
        would do it in the reactor's next turn.
        """
        wire: Any = self.transport
        if (
            isinstance(wire, tcp.Connection)
            and wire.connected
            and not wire.disconnecting
            and not wire.dataBuffer
            and not wire._tempDataBuffer
            and not wire.TLS
        ):
            try:
                sent = wire.socket.send(data)
            except OSError:
                sent = 0  # Twisted's own write will meet it again, and say so
            data = data[sent:]
        if data:
            self.transport.write(data)

    def send(self, data: bytes) -> None:
        """Send payload."""
        if self.isOpen and data:
            if len(data) <= MAX_FRAME:
                self._write(self._frame(BINARY, data))
                return
            for start in range(0, len(data), MAX_FRAME):
                self._write(self._frame(BINARY, data[start : start + MAX_FRAME]))

    def sendEnd(self) -> None:
        """End our direction of this stream, if it has not ended."""
        if self.isOpen and not self.endSent:
            self.endSent = True
            self._write(self._frame(BINARY, b""))

    def ping(self) -> None:
        """Ask for a sign of life."""
        if self.isOpen:
            self._write(self._frame(PING, b""))

    # Ending.

    def close(self, code: int = 1000, text: str = "") -> None:
        """End the connection after what was sent; what arrives is dropped."""
        if not self.isOpen:
            return
        self._closing = True
        self._stalled = False
        self._closeSent = True
        self._write(self._frame(CLOSE, closePayload(code, text)))
        self._timer = self.clock.callLater(CLOSE_TIMEOUT, self._shut)
        self._deliver()
        if not self._lost:
            self.transport.resumeProducing()

    def abort(self) -> None:
        """End the connection at once."""
        self._closing = True
        if self.transport is not None and not self._lost:
            self.transport.abortConnection()

    def _shut(self) -> None:
        self._timer = None
        self.transport.loseConnection()
        self._timer = self.clock.callLater(CLOSE_TIMEOUT, self._abortLate)

    def _abortLate(self) -> None:
        self._timer = None
        self.transport.abortConnection()

    def _peerClosed(self, payload: bytes) -> None:
        try:
            code, text = readClose(payload)
        except FrameError as broken:
            self._refuse(broken.code, str(broken))
            return
        if code != 1000 and not self._closing:
            self._broke(f"the peer closed with {code} {text}".rstrip())
        if not self._closeSent:
            self._closeSent = True
            self._write(self._frame(CLOSE, payload[:2]))
        self._closing = True
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        if self._timer is None and not self._lost:
            self._timer = self.clock.callLater(CLOSE_TIMEOUT, self._abortLate)

    def _broke(self, why: str) -> None:
        self._closing = True
        self._why = self._why or Failure(error.ConnectionLost(why))

    def _refuse(self, code: int, why: str) -> None:
        """The peer broke the protocol: say so, and end."""
        if self._closing or self._lost:
            return
        self._log.info("closing a framed connection: {reason} ({code})", reason=why, code=code)
        self._broke(why)
        if not self._closeSent:
            self._closeSent = True
            self._write(self._frame(CLOSE, closePayload(code, why)))
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        if self._timer is None and not self._lost:
            self._timer = self.clock.callLater(CLOSE_TIMEOUT, self._abortLate)

    def refuse(self, why: str) -> None:
        """The peer broke the rules of whoever uses the connection."""
        self._refuse(1002, why)

    # For the stream that it carries.

    def socketStream(self) -> SocketStream | None:
        """What L{FramedTransport.socketStream} gives, less the stream's own."""
        if not self.isOpen or self._stalled or self._kept:
            return None
        stream = plainStream(self.transport)
        if stream is not None:
            stream.framing = self._framing
            if self._unread:
                stream.early = b"".join(self._unread)
            stream.hasNoDelay = True
        return stream

    def taken(self) -> None:
        """Somebody else receives and sends from here on."""
        self._unread.clear()
        self._kept = None

    def givenBack(self, rest: list[Arrived]) -> None:
        """The connection is ours again; C{rest} came behind the stream's end."""
        if self._lost:
            # With the stream's end its owner ended everything.
            return
        if rest:
            self._kept = deque(rest)
        self.transport.startReading()
        self._deliver()


__all__ = ["Arrived", "FrameUser", "FramedConnection"]
