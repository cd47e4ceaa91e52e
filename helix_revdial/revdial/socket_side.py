# -*- test-case-name: tests.revdial.test_sockets -*-
"""
One connection of a pair whose bytes are moved between the sockets.

A L{Side} receives into the buffer that all sides share, takes frames off and
puts frames on where its connection is a WebSocket, and sends at once.  It knows
when its own connection is over; the L{SocketRelay
<helix_revdial.revdial.sockets.SocketRelay>} knows when the pair is.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from twisted.internet import error
from twisted.internet.interfaces import IDelayedCall, IReadWriteDescriptor
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.revdial.frames import (
    BINARY,
    CLOSE,
    MAX_HEAD,
    PING,
    PONG,
    ZERO_KEY,
    Control,
    EndMark,
    FrameError,
    closePayload,
    frame,
    frameHead,
    readClose,
)
from helix_revdial.revdial.masks import mask
from helix_revdial.revdial.pipes import Pipe
from helix_revdial.revdial.socket_outbox import LATER, Outbox
from helix_revdial.revdial.socket_poll import READ, WRITE, PolledReading
from helix_revdial.revdial.socket_streams import Framing, SocketStream
from helix_revdial.revdial.splices import Splice, spliceOf
from helix_revdial.revdial.unsent import unsentBytes

if TYPE_CHECKING:
    from helix_revdial.revdial.sockets import SocketRelay

CLOSE_TIMEOUT = 10.0
"""Seconds for a WebSocket peer to end the connection once we have closed."""

_RESET = struct.pack("ii", 1, 0)
_FLUSH = struct.pack("ii", 0, 0)
"""C{SO_LINGER}: what the kernel does with a socket that is closed, ours or a dead process's."""


@implementer(IReadWriteDescriptor)
class Side:
    """
    One connection of a pair.

    @ivar isOver: Whether nothing more is to come from it or to go to it.
    """

    # There are two for each stream.
    __slots__ = (
        "_closeSent",
        "_closeTimer",
        "_draining",
        "_endWaits",
        "_fd",
        "_framing",
        "_isHeldBack",
        "_isReading",
        "_isWriting",
        "_markSent",
        "_marked",
        "_readEnded",
        "_relays",
        "_rest",
        "_socket",
        "_splice",
        "_writeEnded",
        "isOver",
        "other",
        "outbox",
        "relay",
        "stream",
    )

    _log = Logger()

    def __init__(self, relay: SocketRelay, stream: SocketStream) -> None:
        self.relay = relay
        self.stream = stream
        self.other: Side
        self._relays = relay.relays
        self._socket: socket.socket = stream.transport.getHandle()
        self._fd = stream.transport.fileno()
        self._framing = stream.framing
        self.outbox = Outbox(self._socket, relay.relays.pipes)
        self._isReading = False
        self._isWriting = False
        self._readEnded = False
        self._writeEnded = False
        self._endWaits = False
        self._closeSent = False
        self._draining = False
        self._closeTimer: IDelayedCall | None = None
        self._markSent = False
        self._marked = False
        self._isHeldBack = False
        self._rest: tuple[bytes | Control | EndMark, ...] = ()
        self._splice: Splice | None = None
        self.isOver = False

    # The reactor.

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "relay"

    def take(self) -> None:
        """Take the socket out of the transport's hands."""
        transport = self.stream.transport
        polled = PolledReading.of(transport, self._relays.poll)
        if polled is not None and polled.isReading:
            polled.isReading = False
            self._isReading = self._relays.poll.hand(self._fd, polled, self)
        if self.stream.tls is None:
            # It has nothing to send, and so does not wait to.
            if polled is None:
                transport.stopReading()
                transport.stopWriting()
        else:
            self._relays.reactor.removeReader(transport)
            self._relays.reactor.removeWriter(transport)
            cast(Any, transport).taken()
        if not self.stream.hasNoDelay:
            try:
                transport.setTcpNoDelay(True)
            except (AttributeError, OSError):
                pass  # a unix socket
        if self._framing is None and self.stream.tls is None:
            # Bytes without frames end with the connection: should this process be killed,
            # the kernel must not end it as if everything had come.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if self.stream.owner is not None:
            self.stream.owner.socketsTaken(self.relay)

    def updateReading(self) -> None:
        """
        Read while the other side takes what comes, or while we wait for an end; and let
        a connection that is to carry another stream be, which is silent until we end
        this one, and goes back to its transport as it is.
        """
        if self.relay.why is not None:
            return
        if (
            self._marked
            and self.stream.isReusable
            and self.stream.tls is None
            and not (self._closeSent or self._isHeldBack)
        ):
            wanted = True
        elif self.isOver:
            wanted = False
        elif self._isHeardOn:
            wanted = True
        else:
            wanted = self._draining or not (self._readEnded or self.other.outbox.waits)
        if wanted is not self._isReading:
            self._isReading = wanted
            self._watch()

    def _updateWriting(self) -> None:
        wanted = self.relay.why is None and self.outbox.waits
        if wanted is not self._isWriting:
            self._isWriting = wanted
            self._watch()

    def _watch(self) -> None:
        """The relay goes on, and wants to hear of other things."""
        events = (READ if self._isReading else 0) | (WRITE if self._isWriting else 0)
        self._relays.poll.watch(self._fd, self, events)

    def leaveReactor(self) -> None:
        """The relay is over."""
        poll = self._relays.poll
        if self.relay.why != "done" or not self._isFree:
            if self.stream.tls is None:
                # Its transport closes the socket.
                poll.drop(self._fd, self)
            else:
                poll.watch(self._fd, self, 0)
        elif self._isReading and not self._isWriting and self.stream.tls is None:
            self._handBack()
        elif self._isReading or self._isWriting:
            poll.watch(self._fd, self, 0)
        self._isReading = self._isWriting = False
        if self._closeTimer is not None:
            self._closeTimer.cancel()
            self._closeTimer = None
        self.outbox.clear()

    def _handBack(self) -> None:
        """Let the transport go on reading with nothing registered anew."""
        transport, poll = self.stream.transport, self._relays.poll
        polled = PolledReading.of(transport, poll)
        if polled is None:
            polled = PolledReading(poll, transport)
            cast(Any, transport).reactor = polled
        polled.isReading = poll.hand(self._fd, self, polled)

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has for the peer, and the peer has not."""
        return unsentBytes(self)

    @property
    def hasSentAll(self) -> bool:
        """Whether everything was sent that was to be, up to the end."""
        return self._writeEnded and not self.outbox.waits

    def release(self, orderly: bool, flush: bool, text: str) -> None:
        """
        Let the transport close the socket and tell those above.

        @param orderly: Whether the relay ended in good order.
        @param flush: Whether the kernel may go on to send what it has.
        """
        owner = self.stream.owner
        if owner is not None:
            owner.socketsEnded(orderly, text)
        if orderly and self._isFree and owner is not None:
            try:
                owner.socketsAgain(list(self._rest))
            except Exception:
                self._log.failure("a connection could not be used again")
            return
        if flush and self._framing is None and self.stream.tls is None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FLUSH)
        reason = connectionDone
        if not orderly:
            # Of an aborted one Twisted has the kernel drop what it holds.
            why = error.ConnectionLost if flush else error.ConnectionAborted
            reason = Failure(why(text))
        try:
            self.stream.transport.connectionLost(reason)
        except Exception:
            self._log.failure("a protocol failed at the end of its stream")

    def dissolve(self) -> None:
        """
        The relay is over and nothing of it is used any more: let its parts go at once,
        without the garbage collector, who would look through what lives to find them.
        """
        del self.other
        self._splice = None

    def guard(self, call: Callable[..., None], *arguments: Any) -> None:
        """What goes wrong here ends this relay and nothing else."""
        if self.relay.why is None:
            try:
                call(*arguments)
            except Exception as failed:
                self._failed(failed)

    def _failed(self, failed: Exception) -> None:
        """Something went wrong; to be called where it is handled."""
        if isinstance(failed, FrameError):
            self._refuse(failed)
        elif isinstance(failed, OSError):
            for side in (self, self.other):
                side.passLastWords()
            self.relay.finish("broken", failed.strerror or str(failed))
        else:
            self._log.failure("a relay failed")
            self.relay.finish("broken", "the relay failed")

    def doRead(self) -> None:
        if self.relay.why is None:
            try:
                self._read()
            except Exception as failed:
                self._failed(failed)

    def doWrite(self) -> None:
        self.guard(self._flush)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor lost the descriptor, by a hang-up for example."""
        self.relay.finish("broken", reason.getErrorMessage())

    # Receiving.

    def _read(self) -> None:
        if self._readEnded and not self._draining:
            if self._isHeardOn:
                self.receive(self._relays.size)
                return
            # The next stream's already: it is the transport's.
            self._isHeldBack = True
            self.updateReading()
            return
        splice, relays = self._splice, self._relays
        if splice is not None and splice.isBulk:
            if not splice.read():
                splice.noticed(self.receive(relays.size))
            return
        size = self.receive(relays.size)
        if size >= relays.bulk.large and self.relay.why is None:
            if splice is None:
                # Most streams never have one.
                splice = self._splice = spliceOf(self, self.other, relays.pipes, relays.bulk)
            if splice is not None:
                splice.noticed(size)

    def receive(self, most: int) -> int:
        """
        Read into the shared buffer, and pass that on.

        @param most: Bytes to read at most.
        @return: How many came; 0 where there was nothing, or the end.
        """
        room = self._relays.room
        try:
            size = self._socket.recv_into(room, most)
        except OSError as failed:
            if failed.errno in LATER:
                return 0
            raise
        if size:
            relay = self.relay
            if relay.movedAt is not None and not self._marked:
                relay.moved()
            self.received(room[:size], True)
        else:
            self._ended()
        return size

    def passLastWords(self) -> None:
        """
        The relay breaks: pass on what has come, where the other side takes it at once.

        Who refuses what he is sent may say why and close, which resets the connection
        while we are sending still; what he said is there to be read.
        """
        other = self.other
        if not self.isGiving or self.stream.tls is not None:
            return
        if other._writeEnded or other._endWaits or other.outbox.waits:
            return
        room = self._relays.room
        try:
            size = self._socket.recv_into(room)
            if size:
                self.received(room[:size], True)
        except (OSError, FrameError):
            pass

    @property
    def isGiving(self) -> bool:
        """Whether what comes from here is payload for the other side."""
        return not (self._readEnded or self._draining) and self.relay.why is None

    @property
    def isTaking(self) -> bool:
        """Whether payload can be sent here by a pipe, and nothing waits."""
        outbox = self.outbox
        return not (self._writeEnded or self._endWaits or outbox.waits) and outbox.isAble

    def forward(self, pipe: Pipe) -> None:
        """Pass on payload of ours that is in a pipe."""
        if self.relay.movedAt is not None:
            self.relay.moved()
        self._count(pipe.size)
        self.other.sendPipe(pipe)

    def received(self, view: memoryview, isShared: bool = False) -> None:
        """
        Pass on what came.

        @param isShared: Whether it lies at the beginning of the shared buffer, before
            which there is room for a head.
        """
        framing = self._framing
        if self._draining:
            self._drain(view)
        elif framing is None:
            self._count(len(view))
            self.other.send(view, isShared)
        elif not self._readEnded and (head := framing.reader.single(view)):
            # What most small messages are.
            piece = view[head:]
            self._count(len(piece))
            self.other.send(piece)
        else:
            self._unframe(framing, view)

    def receivedPayload(self, payload: bytes) -> None:
        """Pass on what somebody else has taken out of its frames."""
        self._passOn([memoryview(bytearray(payload))], len(payload))

    def _count(self, size: int) -> None:
        stream = self.stream
        if not stream.received and stream.firsts is not None:
            stream.firsts.firstReceived()
        stream.received += size

    def _unframe(self, framing: Framing, view: memoryview) -> None:
        if framing.eof and framing.reader.endsAlone(view):
            if self._isHeardOn:
                return
            if self._readEnded:
                raise FrameError(1002, "an end after the end of the stream")
            self._marked = True
            self._readDone()
            return
        pieces: list[memoryview] = []
        size = 0
        found = framing.reader.read(view)
        for place, one in enumerate(found):
            if isinstance(one, memoryview):
                pieces.append(one)
                size += len(one)
            elif isinstance(one, Control):
                if one.opcode == PING:
                    self._sendControl(PONG, one.payload)
                elif one.opcode == CLOSE:
                    self._passOn(pieces, size)
                    self._closed(framing, one.payload)
                    return
            elif framing.eof and isinstance(one, EndMark):
                self._passOn(pieces, size)
                pieces, size = [], 0
                if self._isHeardOn:
                    continue
                if self._readEnded:
                    raise FrameError(1002, "an end after the end of the stream")
                self._marked = True
                if self._isFree:
                    # What follows is the next stream's.
                    self._rest = tuple(
                        bytes(each) if isinstance(each, memoryview) else each
                        for each in found[place + 1 :]
                    )
                    self._readDone()
                    return
                self._readDone()
                if self.relay.why is not None:
                    return
        self._passOn(pieces, size)

    def _passOn(self, pieces: list[memoryview], size: int) -> None:
        if not pieces:
            return
        if self._readEnded:
            raise FrameError(1002, "data after the end of the stream")
        self._count(size)
        self.other.sendPieces(pieces, size)

    def _closed(self, framing: Framing, payload: bytes) -> None:
        """
        The peer's close frame: both directions end.

        Where a connection is used again, streams end by marks only (docs/wire.md, 7.3).
        """
        code, _ = readClose(payload)
        orderly = code in (1000, 1001) or code >= 3000
        if not orderly or (self.stream.isReusable and not self._readEnded):
            self.relay.finish("broken", f"the peer closed with {code}")
            return
        if not self._closeSent:
            self._closeSent = True
            self._writeEnded = True
            self._sendControl(CLOSE, closePayload(1000, ""))
        self._bothDone()

    def _ended(self) -> None:
        """The peer's TCP direction has ended."""
        framing = self._framing
        if self._draining:
            self._bothDone()
        elif framing is None:
            self._readDone()
        elif framing.eof and not self._isHeardOn:
            self.relay.finish("broken", "the connection ended without an end of stream")
        elif not framing.reader.whole:
            self.relay.finish("broken", "the connection ended inside a message")
        else:
            # A Go peer's way to close: no frame, and nothing of ours will be read.  Or that
            # of a peer whose direction had ended by its mark.
            self._bothDone()

    def _readDone(self) -> None:
        """The peer's direction has ended in good order."""
        self._readEnded = True
        self.relay.ending(self)
        self.other.end()
        self._checkOver()
        # Last, and only if it goes on: where the connection went back to its transport, that
        # reads on.
        if self.relay.why is None:
            self.updateReading()

    def _bothDone(self) -> None:
        """Neither direction of this connection goes on; the other's is flushed."""
        self._writeEnded = True
        self.isOver = True
        self.updateReading()
        if not self._readEnded:
            self._readEnded = True
            self.relay.ending(self)
            self.other.end()
        if self.relay.why is None:
            self.other.peerGone()
            self.relay.checkDone()

    def peerGone(self) -> None:
        """Nothing that comes from here is wanted any more; what is pending still goes out."""
        if self.isOver:
            return
        self._readEnded = True
        self.updateReading()
        self._checkOver()

    def _drain(self, view: memoryview) -> None:
        """Drop what comes after we have closed, but for the peer's own close frame."""
        if self._framing is None:
            return
        for one in self._framing.reader.read(view):
            if isinstance(one, Control) and one.opcode == CLOSE:
                self._bothDone()
                return

    def _refuse(self, broken: FrameError) -> None:
        """The peer broke the protocol: say so, if there is room, and end."""
        self._log.info(
            "closing a WebSocket: {reason} ({code})", reason=str(broken), code=broken.code
        )
        if not self.outbox.waits and not self._closeSent:
            last = self._frame(CLOSE, closePayload(broken.code, str(broken)))
            try:
                self._transmit(last)
            except OSError:
                pass  # it will learn by the end of the connection
        self.relay.finish("broken", str(broken))

    # Sending.

    def sendFirst(self, payload: bytes) -> None:
        """Send what was received before the sockets were taken."""
        self.send(memoryview(bytearray(payload)))

    def send(self, piece: memoryview, isShared: bool = False) -> None:
        """
        Send payload, framed as this side wants it.

        @param piece: Writable; it is masked where it lies, and is not used after the
            call.
        @param isShared: Whether it lies at the beginning of the shared buffer, before
            which there is room for a head.
        """
        if self._writeEnded or self._endWaits:
            return
        self._countSent(len(piece))
        framing = self._framing
        if framing is None:
            self._transmit(piece)
            return
        head = self._head(framing, piece)
        if isShared:
            buffer = self._relays.buffer
            start = MAX_HEAD - len(head)
            buffer[start:MAX_HEAD] = head
            self._transmit(buffer[start : MAX_HEAD + len(piece)])
        else:
            self._transmitPieces([memoryview(head), piece], len(head) + len(piece))

    def sendPieces(self, pieces: list[memoryview], size: int) -> None:
        """
        The same for several, a frame for each where this is a WebSocket.

        @param size: Their sum.
        """
        if len(pieces) == 1:
            self.send(pieces[0])
            return
        if self._writeEnded or self._endWaits:
            return
        self._countSent(size)
        framing = self._framing
        if framing is None:
            self._transmitPieces(pieces, size)
            return
        framed: list[memoryview] = []
        total = 0
        for piece in pieces:
            head = self._head(framing, piece)
            framed += [memoryview(head), piece]
            total += len(head) + len(piece)
        self._transmitPieces(framed, total)

    def _countSent(self, size: int) -> None:
        stream = self.stream
        if not stream.sent and stream.firsts is not None:
            stream.firsts.firstSent()
        stream.sent += size

    def sendPipe(self, pipe: Pipe) -> None:
        """Send payload that lies in a pipe, as one frame where this is a WebSocket."""
        self._countSent(pipe.size)
        framing, head = self._framing, b""
        if framing is not None:
            head = frameHead(pipe.size, ZERO_KEY if framing.client else None)
        self.outbox.splice(head, pipe)
        if self.outbox.waits:
            self._waitForRoom()

    def _head(self, framing: Framing, piece: memoryview) -> bytes:
        if not framing.client:
            return frameHead(len(piece), None)
        key = self._relays.keys.key()
        mask(key, piece)
        return frameHead(len(piece), key)

    def _frame(self, opcode: int, payload: bytes) -> bytes:
        assert self._framing is not None
        return frame(payload, self._relays.keys.key() if self._framing.client else None, opcode)

    def _transmit(self, piece: bytes | memoryview) -> None:
        self.outbox.send(piece)
        if self.outbox.waits:
            self._waitForRoom()

    def _transmitPieces(self, pieces: list[memoryview], size: int) -> None:
        self.outbox.sendPieces(pieces, size)
        if self.outbox.waits:
            self._waitForRoom()

    def _waitForRoom(self) -> None:
        """The socket did not take all: do not receive more for it meanwhile."""
        self._updateWriting()
        self.other.updateReading()

    def _sendControl(self, opcode: int, payload: bytes) -> None:
        """
        Send a control frame, after what is pending.

        A pong is left out while much waits: pings must not fill memory.
        """
        if self._closeSent and opcode != CLOSE:
            return
        if opcode == PONG and self.outbox.waits:
            return
        self._transmit(self._frame(opcode, payload))

    def _flush(self) -> None:
        if self.outbox.flush() and self.relay.movedAt is not None:
            self.relay.moved()
        if self.outbox.waits:
            return
        self._updateWriting()
        if self._endWaits:
            self._endWaits = False
            self.end()
        if self.relay.why is None:
            self.other.updateReading()
            self._checkOver()

    def end(self) -> None:
        """The other side's peer has ended: end our direction after what is pending."""
        if self._writeEnded or self._endWaits or self.relay.why is not None:
            return
        if self.outbox.waits:
            self._endWaits = True
            return
        framing = self._framing
        if framing is None:
            self._writeEnded = True
            if not (self._readEnded and self.other.isFinishing):
                self._shutdown()
        elif framing.eof:
            self._markSent = True
            self._sendControl(BINARY, b"")
            self._writeEnded = True
        else:
            self._close()
        self._checkOver()

    def _close(self) -> None:
        """Send a close frame, and wait a while for the peer to end the connection."""
        self._writeEnded = True
        if not self._closeSent:
            self._sendControl(CLOSE, closePayload(1000, ""))
            self._closeSent = True
        self._draining = True
        self._readEnded = True
        if self._closeTimer is None:
            self._closeTimer = self._relays.clock.callLater(CLOSE_TIMEOUT, self._closeTimedOut)
        self.updateReading()
        self.other.end()

    def _closeTimedOut(self) -> None:
        self._closeTimer = None
        self.guard(self._bothDone)

    @property
    def isFinishing(self) -> bool:
        """
        Whether both directions have ended and nothing else is to be done: with its
        other side, the relay is over, which closes that one's socket.
        """
        return (
            self._readEnded
            and self._writeEnded
            and not self.outbox.waits
            and not self._draining
            and (self._framing is None or self._isFree)
        )

    @property
    def _isFree(self) -> bool:
        """Whether both directions have ended by their marks, and the connection has not."""
        return self._marked and self._markSent and not self._closeSent and self.stream.isReusable

    @property
    def _isHeardOn(self) -> bool:
        """
        Whether a WebSocket peer that has ended its direction is still listened to: it may
        ping, and close.  (Where a connection is used again, the next stream may follow.)
        """
        return self._marked and not self.stream.isReusable

    def _shutdown(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as failed:
            if failed.errno != errno.ENOTCONN:
                raise

    def _checkOver(self) -> None:
        """Whether this connection has nothing left to do."""
        if self.isOver or self.relay.why is not None:
            return
        if not (self._readEnded and self._writeEnded) or self.outbox.waits:
            return
        framing = self._framing
        if framing is not None and framing.eof and not self._closeSent and not self._isFree:
            # Both end marks are there: close frames follow.
            self._close()
        elif framing is None or not self._draining:
            self.isOver = True
            self.relay.checkDone()
            if self.relay.why is None:
                self.updateReading()
