# -*- test-case-name: tests.revdial.test_upgrade,tests.revdial.test_websocket_transport -*-
"""
What every carrier has in common: a byte stream that a protocol sits on.

L{CarrierTransport} owns the order of what the protocol on top hears (bytes,
the end of the peer's direction, the end of the connection), the pause, the
counters, and the bytes that had been read already when the protocol paused.
It does not know how bytes travel: the raw carrier and the WebSocket carrier
say that in a few methods each.

Invariants:

  - While the protocol is paused it hears nothing, except that the connection
    broke.  What had been read by then is held: at most one read of the
    transport beneath (64 KiB on Twisted's TCP and TLS) and what came with the
    upgrade, for the transport beneath is paused as well.
  - Held bytes are delivered in a later reactor turn than C{resumeProducing},
    never inside it, as on Twisted's own transports.
  - C{connectionLost} comes once, last.  Where the peer ended in good order, it
    comes after every held byte; where the connection broke, at once.
  - Nothing reaches the transport beneath after the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IDelayedCall,
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
)
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.revdial.frames import Control, EndMark
from helix_revdial.revdial.interfaces import ICarrierTransport
from helix_revdial.revdial.socket_streams import SocketStream, plainStream
from helix_revdial.revdial.sockets import SocketRelay

if TYPE_CHECKING:
    Headers = tuple[tuple[bytes, bytes], ...]


class ClosedByPeer(error.ConnectionDone):
    """
    The peer closed in good order and said why (a WebSocket close frame).

    @ivar code: The close code (RFC 6455 section 7.4), 1000 when it gave none.
    @ivar reason: The text beside it, at most 123 bytes of UTF-8.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the peer closed with {code}" + (f": {reason}" if reason else ""))
        self.code = code
        self.reason = reason


def isTLS(transport: Any) -> bool:
    """Whether C{transport} is a TLS connection, which Twisted cannot half-close."""
    return (
        isinstance(transport, TLSMemoryBIOProtocol)
        or ISSLTransport.providedBy(transport)
        or bool(getattr(transport, "TLS", False))
    )


def canHalfClose(transport: Any) -> bool:
    """
    Whether C{loseWriteConnection} on C{transport} reaches the peer as the end of
    one direction.

    A carrier says so itself; TCP and unix sockets can; TLS cannot (a TLS
    transport of Twisted's passes the call on to the socket beneath, which would
    cut TLS off without its closing alert).
    """
    if ICarrierTransport.providedBy(transport):
        return bool(transport.halfClose)
    return not isTLS(transport) and callable(getattr(transport, "loseWriteConnection", None))


@implementer(ICarrierTransport, IConsumer, IPushProducer)
class CarrierTransport:
    """
    The transport of the protocol on top of a carrier; see the module.

    """

    # There are two for each stream, and one for each agent.
    __slots__ = (
        "_clock",
        "_closing",
        "_lostReason",
        "_moved",
        "_over",
        "_paused",
        "_protocol",
        "_pump",
        "_readEnded",
        "_received",
        "_sent",
        "_taken",
        "_transport",
        "_writeEnded",
        "responseHeaders",
    )

    _log = Logger()

    carrier = ""
    halfClose = False

    def __init__(
        self,
        protocol: IProtocol,
        transport: Any,
        clock: IReactorTime,
        responseHeaders: Headers = (),
    ) -> None:
        self._received = 0
        self._sent = 0
        self.responseHeaders = responseHeaders
        self._protocol = protocol
        self._transport = transport
        self._clock = clock
        self._paused = False
        self._pump: IDelayedCall | None = None
        self._writeEnded = False
        self._readEnded = False
        self._closing = False
        self._over = False
        self._lostReason: Failure | None = None
        self._taken: SocketRelay | None = None
        # What counts the bytes while somebody else moves them.
        self._moved: SocketStream | None = None

    @property
    def bytesReceived(self) -> int:
        """Payload bytes delivered to the protocol, or past it."""
        return self._received + (0 if self._moved is None else self._moved.received)

    @property
    def bytesSent(self) -> int:
        """Payload bytes accepted by C{write}, or sent past it."""
        return self._sent + (0 if self._moved is None else self._moved.sent)

    def start(self) -> None:
        """
        Connect the protocol.

        If its C{connectionMade} raises, the connection is dropped and the error is
        logged: the protocol is somebody else's, the connection is ours.
        """
        protocol = self._protocol
        try:
            protocol.makeConnection(self)
        except Exception:
            self._log.failure("{protocol!r} failed to start", protocol=protocol)
            self.abortConnection()

    @property
    def beneath(self) -> Any:
        """The transport that carries this one."""
        return self._transport

    # What a carrier says.

    def _send(self, data: bytes) -> None:
        """Send C{data}, which is not empty."""
        raise AssertionError("a carrier sends")

    def _sendEnd(self) -> None:
        """End our direction after what was sent; only where C{halfClose} is true."""
        raise AssertionError("a carrier that can half-close ends")

    def _close(self, code: int, reason: str) -> None:
        """Close after what was sent."""
        raise AssertionError("a carrier closes")

    def _holds(self) -> bool:
        """Whether bytes wait that were read before the protocol paused."""
        raise AssertionError("a carrier knows what it holds")

    def _deliverHeld(self) -> None:
        """Give the protocol what is held, until there is none or it pauses again."""
        raise AssertionError("a carrier delivers what it holds")

    # Sockets that somebody else moves the bytes of.

    def socketStream(self) -> SocketStream | None:
        """
        The connection beneath, for L{SocketRelays
        <helix_revdial.revdial.sockets.SocketRelays>} to take over.

        @return: C{None} where it cannot be taken, or not now.
        """
        if (
            self._over
            or self._closing
            or self._writeEnded
            or self._readEnded
            or self._lostReason is not None
        ):
            return None
        stream = plainStream(self._transport)
        if stream is not None:
            stream.owner = self
            self._moved = stream
        return stream

    def socketsTaken(self, relay: SocketRelay) -> None:
        """See L{SocketOwner <helix_revdial.revdial.socket_streams.SocketOwner>}."""
        self._taken = relay
        self._paused = False
        self._cancelPump()

    def socketsEnded(self, orderly: bool, why: str) -> None:
        """See L{SocketOwner <helix_revdial.revdial.socket_streams.SocketOwner>}."""

    def socketsAgain(self, rest: list[bytes | Control | EndMark]) -> None:
        """See L{SocketOwner <helix_revdial.revdial.socket_streams.SocketOwner>}."""
        raise AssertionError("a carrier for many streams is used again")

    # ITransport

    def write(self, data: bytes) -> None:
        if self._writeEnded or self._over or not data:
            return
        self._sent += len(data)
        self._send(data)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        self.closeWith(1000, "")

    def closeWith(self, code: int, reason: str) -> None:
        if code != 1000 and not 4000 <= code <= 4999:
            raise ValueError(f"{code} is not a close code for a protocol to use")
        if self._closing or self._over:
            return
        if self._taken is not None:
            self._taken.abort()
            return
        self._closing = True
        self._writeEnded = True
        self._cancelPump()
        if self._lostReason is not None:
            # The connection ended while the protocol was paused; it wants no
            # more of what it has not read.
            self._finish(self._lostReason)
        else:
            self._close(code, reason)

    def loseWriteConnection(self) -> None:
        if not self.halfClose:
            self.loseConnection()
        elif not self._writeEnded and not self._over:
            self._writeEnded = True
            if self._lostReason is None:
                self._sendEnd()

    def abortConnection(self) -> None:
        if self._over:
            return
        if self._taken is not None:
            self._taken.abort()
            return
        self._closing = True
        self._writeEnded = True
        self._cancelPump()
        if self._lostReason is not None:
            self._finish(self._lostReason)
        else:
            self._abort()

    def _abort(self) -> None:
        self._transport.abortConnection()

    def getPeer(self) -> IAddress:
        return cast(IAddress, self._transport.getPeer())

    def getHost(self) -> IAddress:
        return cast(IAddress, self._transport.getHost())

    def ping(self) -> Deferred[float] | None:
        return None

    # IConsumer

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self._over or self._lostReason is not None:
            producer.stopProducing()
        else:
            self._transport.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        if not self._over and self._lostReason is None:
            self._transport.unregisterProducer()

    # IPushProducer

    def pauseProducing(self) -> None:
        if self._over or self._paused:
            return
        self._paused = True
        self._cancelPump()
        if self._lostReason is None:
            self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        if self._over or not self._paused:
            return
        self._paused = False
        if self._holds() or self._lostReason is not None:
            self._pump = self._clock.callLater(0, self._resume)
        else:
            self._transport.resumeProducing()

    def stopProducing(self) -> None:
        self.loseConnection()

    def _cancelPump(self) -> None:
        pump, self._pump = self._pump, None
        if pump is not None:
            pump.cancel()

    def _resume(self) -> None:
        """Deliver what was held, then go on reading, or hear the end."""
        self._pump = None
        protocol = self._protocol
        try:
            self._deliverHeld()
        except Exception:
            # No reactor frame is above us that would drop the connection, as it
            # does when dataReceived raises.
            self._log.failure("{protocol!r} failed", protocol=protocol)
            self.abortConnection()
        if self._paused or self._over or self._pump is not None:
            return
        if self._lostReason is not None:
            self._finish(self._lostReason)
        elif not self._closing:
            self._transport.resumeProducing()

    @property
    def _holding(self) -> bool:
        """Whether what arrives now has to wait."""
        return self._paused or self._pump is not None

    # What a carrier reports.

    def _deliver(self, data: bytes) -> None:
        """Give payload to the protocol, unless we have closed."""
        if not self._closing and not self._over:
            self._received += len(data)
            self._protocol.dataReceived(data)

    def _deliverEnd(self) -> None:
        """
        The peer's direction has ended in good order.

        A protocol that cannot hear of it gets what Twisted's TCP gives it, the end
        of the connection, but after what it has written is flushed.
        """
        if self._readEnded or self._closing or self._over:
            return
        self._readEnded = True
        protocol = self._protocol
        listener = IHalfCloseableProtocol(protocol, None)
        if listener is None:
            self.loseConnection()
            return
        try:
            listener.readConnectionLost()
        except Exception:
            self._log.failure("{protocol!r} failed", protocol=protocol)
            self.abortConnection()

    def _lost(self, reason: Failure) -> None:
        """The transport beneath is gone, for C{reason} as the protocol should hear it."""
        if self._over or self._lostReason is not None:
            return
        waits = self._holding and self._holds() and not self._closing
        if waits and reason.check(error.ConnectionDone):
            self._lostReason = reason
        else:
            self._finish(reason)

    def _finish(self, reason: Failure) -> None:
        if self._over:
            return
        self._over = True
        self._writeEnded = True
        self._cancelPump()
        protocol = self._protocol
        # It has us for its transport: nothing leads round in a circle any more.
        del self._protocol
        self._taken = None
        moved, self._moved = self._moved, None
        if moved is not None:
            self._received += moved.received
            self._sent += moved.sent
        protocol.connectionLost(reason)
