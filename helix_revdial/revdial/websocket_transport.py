# -*- test-case-name: tests.revdial.test_websocket_transport -*-
"""
The stream over WebSocket: when to send, when to stop, how to end.

L{WebSocketTransport} is what the protocol on top sees.  It tells a
L{Frames} (Autobahn, in L{helix_revdial.revdial.websocket}) which messages to
send, and hears from it what arrived; it parses nothing itself.

How a stream ends:

  - C{loseConnection}: what was written, then (with C{eof} agreed) the end mark,
    then a close frame.  Only when the socket has taken all of that starts the
    limit on the peer's answer (L{CLOSE_TIMEOUT}); a peer that reads slowly is
    waited for.  When the limit is reached the connection is closed in good order,
    so that what the kernel still holds goes out.
  - With C{eof} agreed, C{loseWriteConnection} sends the end mark; when both ends
    have sent theirs, close frames follow.
  - The peer's close frame ends both directions.  So does the end of the TCP
    connection without one, as Go's agents leave: an orderly end where no C{eof}
    is agreed and the last message was whole, else a broken connection.
  - A peer that breaks the protocol gets a close frame that says so, a second to
    read it, and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any
from typing import Protocol as Shape

from autobahn.util import encode_truncate
from twisted.internet import error
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IProtocol, IPushProducer, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.revdial.carrier import CarrierTransport, ClosedByPeer, isTLS
from helix_revdial.revdial.frames import FrameReader
from helix_revdial.revdial.socket_streams import Framing, SocketStream
from helix_revdial.revdial.sockets import SocketRelay

MAX_MESSAGE = 64 * 1024
"""Payload bytes of one message that we send."""

TRANSPORT_BUFFER = MAX_MESSAGE + 64
"""
The limit set on a socket's write buffer: one full message and its header stay
below it, so that not every message pauses the producer.
"""

CLOSE_TIMEOUT = 10.0
"""Seconds for the peer's answer to our close frame, once that has gone out."""

DROP_TIMEOUT = 1.0
"""Seconds in which the server closes TCP after the close frames; then the client does."""

FAIL_TIMEOUT = 1.0
"""Seconds in which a peer that broke the protocol may read our close frame."""

MAX_PINGS = 16
"""Pings that may wait for an answer at once."""

_ORDERLY = frozenset({1000, 1001})


class Frames(Shape):
    """What the transport asks of whoever reads and writes frames."""

    isServer: bool

    def isOpen(self) -> bool:
        """Whether messages may be sent."""

    def isWhole(self) -> bool:
        """Whether nothing is half received: no frame, no message."""

    def hasUnparsed(self) -> bool:
        """Whether bytes wait in the parser."""

    def reader(self) -> FrameReader | None:
        """What parses; C{None} where, or while, nobody else can go on with it."""

    def parsed(self) -> bytes:
        """Payload that is parsed, and not passed on."""

    def unparsed(self) -> bytes:
        """What waits in the parser."""

    def dropUnparsed(self) -> None:
        """Somebody else parses from here."""

    def consumeData(self) -> None:
        """Parse what waits, until it is used up or the stream is paused."""

    def sendMessage(self, payload: bytes, isBinary: bool) -> None:
        """Send one message in one frame."""

    def sendCloseFrame(self, code: int, reasonUtf8: bytes | None) -> None:
        """Send a close frame."""

    def sendPing(self, payload: bytes) -> None:
        """Send a ping."""

    def sendPong(self, payload: bytes) -> None:
        """Answer one."""

    def finished(self, reason: Failure) -> None:
        """The connection is over for everybody."""


@implementer(IPushProducer)
class _Flow:
    """
    Stands between the transport beneath and the producer on top, so that this
    side knows too whether the write buffer is full.
    """

    __slots__ = ("_above", "full", "producer")

    def __init__(self, above: WebSocketTransport) -> None:
        self.full = False
        self.producer: Any = None
        self._above = above

    def pauseProducing(self) -> None:
        self.full = True
        self._above.filled()
        if self.producer is not None:
            self.producer.pauseProducing()

    def resumeProducing(self) -> None:
        self.full = False
        self._above.emptied()
        if self.producer is not None:
            self.producer.resumeProducing()

    def stopProducing(self) -> None:
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()


class WebSocketTransport(CarrierTransport):
    """See the module."""

    __slots__ = (
        "_broke",
        "_closed",
        "_endSent",
        "_flow",
        "_frames",
        "_ourClose",
        "_peerClose",
        "_pings",
        "_pingsSent",
        "_pong",
        "_pulled",
        "_timer",
        "_zeroKey",
        "halfClose",
    )

    carrier = "websocket"

    def __init__(
        self,
        protocol: IProtocol,
        transport: Any,
        clock: IReactorTime,
        frames: Frames,
        *,
        eof: bool,
        zeroKey: bool = False,
        responseHeaders: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(protocol, transport, clock, responseHeaders)
        self.halfClose = eof
        self._zeroKey = zeroKey
        self._frames = frames
        self._flow = _Flow(self)
        self._pulled = False
        self._ourClose = False
        self._peerClose: tuple[int, str] | None = None
        self._broke: str | None = None
        self._endSent = False
        self._closed = False
        self._timer: IDelayedCall | None = None
        self._pong: bytes | None = None
        self._pings: dict[bytes, tuple[Deferred[float], float]] = {}
        self._pingsSent = 0

    def start(self) -> None:
        if getattr(self._transport, "bufferSize", TRANSPORT_BUFFER) < TRANSPORT_BUFFER:
            self._transport.bufferSize = TRANSPORT_BUFFER
        self._transport.registerProducer(self._flow, True)
        super().start()

    # Sockets that somebody else moves the bytes of.

    def socketStream(self) -> SocketStream | None:
        if not self._frames.isOpen() or self._pings or self._pong is not None or self._endSent:
            return None
        reader = self._frames.reader()
        if reader is None:
            return None
        stream = super().socketStream()
        if stream is not None:
            client = not self._frames.isServer
            stream.framing = Framing(
                reader, client=client, eof=self.halfClose, zeroKey=self._zeroKey
            )
            stream.payload = self._frames.parsed()
            stream.early = self._frames.unparsed()
        return stream

    def socketsTaken(self, relay: SocketRelay) -> None:
        super().socketsTaken(relay)
        self._frames.dropUnparsed()

    def socketsEnded(self, orderly: bool, why: str) -> None:
        """The relay has closed the WebSocket, or not."""
        if orderly:
            self._ourClose = True
        else:
            self._broke = why

    # Writing.

    def _send(self, data: bytes) -> None:
        if not self._frames.isOpen():
            return
        if len(data) <= MAX_MESSAGE:
            self._frames.sendMessage(bytes(data), True)
            return
        for start in range(0, len(data), MAX_MESSAGE):
            self._frames.sendMessage(bytes(data[start : start + MAX_MESSAGE]), True)

    def _sendEnd(self) -> None:
        self._forgetProducer()
        self._sendEndMark()
        if self._readEnded:
            self.loseConnection()

    def _sendEndMark(self) -> None:
        if self.halfClose and not self._endSent and self._frames.isOpen():
            self._endSent = True
            self._frames.sendMessage(b"", True)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self._over or self._lostReason is not None or self._writeEnded:
            producer.stopProducing()
            return
        if self._flow.producer is not None:
            raise RuntimeError(
                f"cannot register producer {producer!r}, because producer "
                f"{self._flow.producer!r} was never unregistered"
            )
        self._flow.producer = producer
        if not streaming:
            # The transport beneath asks for each piece, as it always does.
            self._pulled = True
            self._transport.unregisterProducer()
            self._transport.registerProducer(self._flow, False)
        elif self._flow.full:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self._forgetProducer()

    def _forgetProducer(self) -> None:
        self._flow.producer = None
        if self._pulled:
            self._pulled = False
            self._flow.full = False
            if not self._over and self._lostReason is None and not self._closed:
                self._transport.unregisterProducer()
                self._transport.registerProducer(self._flow, True)

    def filled(self) -> None:
        """The write buffer is full."""
        if self._ourClose and self._peerClose is None:
            self._stopTimer()

    def emptied(self) -> None:
        """The write buffer is empty: the socket has taken everything."""
        pong, self._pong = self._pong, None
        if pong is not None:
            self._frames.sendPong(pong)
        if self._ourClose and self._peerClose is None and not self._closed:
            self._startTimer(CLOSE_TIMEOUT, self._shut)

    # Closing.

    def _close(self, code: int, reason: str) -> None:
        self._forgetProducer()
        self._sendEndMark()
        self._ourClose = True
        self._frames.sendCloseFrame(code, encode_truncate(reason, 123) or None)
        # What arrives from here on is dropped, but the peer's close frame comes
        # after it.
        self._paused = False
        if not self._flow.full and not self._closed:
            self._startTimer(CLOSE_TIMEOUT, self._shut)
        self._transport.resumeProducing()
        self._frames.consumeData()

    def _shut(self) -> None:
        """
        Close the connection beneath, in good order.

        TLS waits for the peer's closing alert; when that does not come the socket
        beneath is closed, in good order too.
        """
        self._timer = None
        if self._over or self._lostReason is not None:
            return
        self._closed = True
        self._flow.producer = None
        self._transport.unregisterProducer()
        self._transport.loseConnection()
        if isTLS(self._transport) and not self._over:
            self._startTimer(CLOSE_TIMEOUT, self._shutBeneath)

    def _shutBeneath(self) -> None:
        self._timer = None
        beneath = getattr(self._transport, "transport", None)
        if beneath is None:
            self._transport.abortConnection()
        else:
            beneath.loseConnection()

    def _startTimer(self, delay: float, call: Callable[[], None]) -> None:
        self._stopTimer()
        self._timer = self._clock.callLater(delay, call)

    def _stopTimer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _abortLate(self) -> None:
        self._timer = None
        self._transport.abortConnection()

    def _finish(self, reason: Failure) -> None:
        if self._over:
            return
        self._stopTimer()
        self._flow.producer = None
        verdict = self._verdict(reason)
        pings, self._pings = self._pings, {}
        super()._finish(verdict)
        self._frames.finished(reason)
        for waiting, _ in pings.values():
            waiting.errback(verdict)

    def _verdict(self, reason: Failure) -> Failure:
        """What the protocol on top is told, given what TCP said."""
        if self._broke is not None:
            return Failure(error.ConnectionLost(self._broke))
        if self._peerClose is not None:
            # Close frames have gone both ways: how TCP ended after them says nothing.
            code, text = self._peerClose
            if code in _ORDERLY or code >= 3000:
                return connectionDone if self._ourClose else Failure(ClosedByPeer(code, text))
            return Failure(error.ConnectionLost(f"the peer closed with {code} {text}".rstrip()))
        if reason.check(error.ConnectionDone) is None or self._ourClose:
            return reason
        if self.halfClose and not self._readEnded:
            return Failure(error.ConnectionLost("the connection ended without an end of stream"))
        if not self._frames.isWhole():
            return Failure(error.ConnectionLost("the connection ended inside a message"))
        return reason

    # What Frames reports.

    @property
    def held(self) -> bool:
        """Whether the parser has to stop."""
        return self._holding

    def _holds(self) -> bool:
        return self._frames.hasUnparsed()

    def _deliverHeld(self) -> None:
        self._frames.consumeData()

    def payload(self, data: bytes) -> None:
        """Part of a message, unmasked."""
        if self._readEnded and self.halfClose and not self._closing:
            self._refuse("data after the end of the stream")
        else:
            self._deliver(data)

    def _refuse(self, why: str) -> None:
        self._frames.sendCloseFrame(1002, why.encode("ascii"))
        self.broke(why)

    def endMark(self) -> None:
        """An empty message that is no fragment; the end, where that is agreed."""
        if not self.halfClose:
            return
        self._deliverEnd()
        if self._endSent and not self._closing:
            self.loseConnection()

    def pinged(self, payload: bytes) -> None:
        """
        Answer a ping; when the write buffer is full, only the last one, later
        (RFC 6455 section 5.5.3), so that pings cannot fill memory.
        """
        if self._flow.full:
            self._pong = payload
        else:
            self._frames.sendPong(payload)

    def ponged(self, payload: bytes) -> None:
        """An answer: it answers older pings as well."""
        if payload not in self._pings:
            return
        now = self._clock.seconds()
        for sent in list(self._pings):
            waiting, at = self._pings.pop(sent)
            waiting.callback(now - at)
            if sent == payload:
                return

    def ping(self) -> Deferred[float]:
        if not self._frames.isOpen() or self._closing or self._over:
            return fail(error.ConnectionLost("the connection is closed"))
        if len(self._pings) >= MAX_PINGS:
            return fail(error.ConnectionLost(f"{MAX_PINGS} pings are unanswered"))
        self._pingsSent += 1
        payload = struct.pack("!Q", self._pingsSent)
        waiting: Deferred[float] = Deferred()
        self._pings[payload] = (waiting, self._clock.seconds())
        self._frames.sendPing(payload)
        return waiting

    def peerClosed(self, code: int | None, reason: str) -> None:
        """A close frame came, and has been answered or is the answer."""
        self._peerClose = (1000 if code is None else code, reason)
        self._closing = True
        self._writeEnded = True
        self._cancelPump()
        if self._frames.isServer:
            # The connection beneath is being closed.  The peer may not take what
            # we had still to say.
            self._closed = True
            self._startTimer(CLOSE_TIMEOUT, self._abortLate)
        else:
            self._startTimer(DROP_TIMEOUT, self._shut)

    def broke(self, why: str) -> None:
        """The peer broke the protocol; a close frame has been sent."""
        self._broke = why
        self._closing = True
        self._writeEnded = True
        self._cancelPump()
        self._paused = False
        self._startTimer(FAIL_TIMEOUT, self._dropBroken)
        if self._lostReason is None:
            self._transport.resumeProducing()

    def _dropBroken(self) -> None:
        self._timer = None
        self._shut()
        if not self._over:
            self._startTimer(CLOSE_TIMEOUT, self._abortLate)

    def finReceived(self) -> None:
        """
        TCP's end without, or after, a close frame: WebSocket knows no half-close
        there, so nothing of ours will be read.
        """
        if self._closed or self._over:
            return
        self._closed = True
        self._writeEnded = True
        self._flow.producer = None
        self._startTimer(CLOSE_TIMEOUT, self._abortLate)
        self._transport.unregisterProducer()
        self._transport.loseConnection()

    def lost(self, reason: Failure) -> None:
        """The connection beneath is gone."""
        self._stopTimer()
        self._lost(reason)
