# -*- test-case-name: tests.revdial.test_upgrade -*-
"""
Carriers without framing: after the upgrade, the connection's bytes are the
stream's bytes.

Two forms, both ends of each:

  - B{raw}: C{101 Switching Protocols} with C{Upgrade: revdial}.  On TCP and unix
    sockets a FIN is the end of one direction; over TLS there is no half-close
    (Twisted's TLS has none), so the end of one direction ends both.
  - B{hijack}: the control connection of agents from November 2025.  The server
    answers C{200 OK} with C{Transfer-Encoding: chunked} and then sends lines
    that are not chunked.  Those agents lose every byte that arrives in one
    segment with the head, so the head goes out alone, and only after a pause
    the first line.

The names that programs outside this room need for dialling are here as well:
L{CarrierURL}, L{UpgradeRefused}, L{MalformedAnswer}, L{endpointFor}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any

from twisted.internet import tcp
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IProtocol,
    IReactorTime,
    IStreamClientEndpoint,
    IUNIXTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.revdial.carrier import CarrierTransport, ClosedByPeer, canHalfClose, isTLS
from helix_revdial.revdial.exchange import (
    Answer,
    CarrierForm,
    CarrierURL,
    MalformedAnswer,
    UpgradeEndpoint,
    UpgradeRefused,
    checkedHeaders,
    endpointFor,
    firstHeader,
)
from helix_revdial.revdial.features import FEATURES_HEADER
from helix_revdial.revdial.socket_streams import SocketStream
from helix_revdial.revdial.sockets import SocketRelay
from helix_revdial.revdial.switching import SwitchForm, askHead, switchHead

HIJACK_PAUSE = 0.25
"""
Seconds between the head of the hijack form and its first line.  The old agents
read the head through a buffer and drop what else is in it.
"""

OnFailure = Callable[[Failure], None]


class RawTransport(CarrierTransport):
    """Payload bytes are the connection's bytes."""

    __slots__ = ("_held", "_heldEnd", "carrier", "halfClose")

    def __init__(
        self,
        protocol: IProtocol,
        transport: Any,
        clock: IReactorTime,
        carrier: str,
        responseHeaders: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(protocol, transport, clock, responseHeaders)
        self.carrier = carrier
        self.halfClose = canHalfClose(transport)
        self._held: tuple[bytes, ...] = ()
        self._heldEnd = False

    @property
    def isPlainSocket(self) -> bool:
        """Whether the connection beneath is a socket of Twisted's, and nothing in between."""
        return isinstance(self._transport, tcp.Connection) and not isTLS(self._transport)

    def socketStream(self) -> SocketStream | None:
        stream = None if self._heldEnd else super().socketStream()
        if stream is not None:
            stream.early = b"".join(self._held)
        return stream

    def socketsTaken(self, relay: SocketRelay) -> None:
        super().socketsTaken(relay)
        self._held = ()

    def _send(self, data: bytes) -> None:
        self._transport.write(data)

    def _sendEnd(self) -> None:
        # A producer that Twisted has paused would be resumed in place of the FIN.
        self._transport.unregisterProducer()
        self._transport.loseWriteConnection()

    def _close(self, code: int, reason: str) -> None:
        # Twisted's TLS waits for its producer to leave before it closes.
        self._transport.unregisterProducer()
        self._transport.loseConnection()

    def _holds(self) -> bool:
        return bool(self._held) or self._heldEnd

    def _deliverHeld(self) -> None:
        while self._held and not self._paused and not self._closing:
            first, *rest = self._held
            self._held = tuple(rest)
            self._deliver(first)
        if self._heldEnd and not self._held and not self._paused:
            self._heldEnd = False
            self._deliverEnd()

    def received(self, data: bytes) -> None:
        """Bytes from the connection."""
        if self._holding or self._held:
            if not self._closing:
                self._held += (data,)
        else:
            self._deliver(data)

    def ended(self) -> None:
        """The peer has ended its direction."""
        if self._holding or self._held:
            self._heldEnd = True
        else:
            self._deliverEnd()

    def lost(self, reason: Failure) -> None:
        """
        The connection is gone.

        On a unix socket Twisted calls it a loss when the peer closed first and we
        after it: the kernel then reports a hang-up in place of room to write.
        """
        if self._closing and self._readEnded and IUNIXTransport.providedBy(self._transport):
            reason = connectionDone
        self._lost(reason)


@implementer(IHalfCloseableProtocol)
class RawCarrier(Protocol):
    """
    Between the connection and a L{RawTransport}, once HTTP is over.

    @param onFailure: Called once, in place of the protocol, when the connection
        ends before the protocol was connected.
    """

    __slots__ = (
        "_carrier",
        "_clock",
        "_early",
        "_ended",
        "_onFailure",
        "_protocol",
        "_responseHeaders",
        "_stream",
        "connected",
        "transport",
    )

    def __init__(
        self,
        protocol: IProtocol,
        clock: IReactorTime,
        carrier: str,
        onFailure: OnFailure | None = None,
        responseHeaders: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self.transport = None
        self.connected = 0
        self._protocol = protocol
        self._clock = clock
        self._carrier = carrier
        self._onFailure = onFailure
        self._responseHeaders = responseHeaders
        self._stream: RawTransport | None = None
        self._early: tuple[bytes, ...] = ()
        self._ended = False

    def connectionMade(self) -> None:
        self._open()

    def _open(self) -> None:
        """Connect the protocol, then give it what came before."""
        stream = RawTransport(
            self._protocol, self.transport, self._clock, self._carrier, self._responseHeaders
        )
        self._stream = stream
        # It cannot fail any more: what was to hear of that may go.
        self._onFailure = None
        stream.start()
        early, self._early = self._early, ()
        for data in early:
            stream.received(data)
        if self._ended:
            stream.ended()

    def dataReceived(self, data: bytes) -> None:
        if self._stream is None:
            self._early += (data,)
        else:
            self._stream.received(data)

    def readConnectionLost(self) -> None:
        if self._stream is None:
            self._ended = True
        else:
            self._stream.ended()

    def writeConnectionLost(self) -> None:
        """Nothing follows from it: we ended that direction ourselves."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._stream is not None:
            self._stream.lost(reason)
        elif self._onFailure is not None:
            self._onFailure(reason)


class _RawServer(RawCarrier):
    """Answers with a head, then connects."""

    __slots__ = ("_head",)

    def __init__(self, *args: Any, head: bytes) -> None:
        super().__init__(*args)
        self._head = head

    def connectionMade(self) -> None:
        head, self._head = self._head, b""
        self.transport.write(head)  # type: ignore[union-attr]
        self._open()


class _HijackServer(RawCarrier):
    """Answers with a head alone; connects after a pause."""

    def __init__(self, *args: Any, head: bytes, pause: float) -> None:
        super().__init__(*args)
        self._head = head
        self._pause = pause
        self._waiting: IDelayedCall | None = None

    def connectionMade(self) -> None:
        self.transport.write(self._head)  # type: ignore[union-attr]
        # Nothing is read meanwhile, so that what is held stays what came with
        # the request.
        self.transport.pauseProducing()  # type: ignore[union-attr]
        self._waiting = self._clock.callLater(self._pause, self._connect)

    def _connect(self) -> None:
        self._waiting = None
        self.transport.resumeProducing()  # type: ignore[union-attr]
        self._open()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        super().connectionLost(reason)


def rawServer(
    protocol: IProtocol,
    *,
    responseHeaders: Sequence[tuple[bytes, bytes]] = (),
    clock: IReactorTime,
    onFailure: OnFailure | None = None,
) -> IProtocol:
    """
    The accepting end of the raw form.

    @param protocol: What is put on the carrier, at once when the returned protocol
        is connected.
    @param responseHeaders: Fields of the C{101} beside C{Upgrade} and
        C{Connection}.
    @param onFailure: Called when the connection ends before C{protocol} was
        connected.
    @return: The protocol for the connection; it gets the bytes after the request's
        head.
    @raise ValueError: A header field that is not fit for a head.
    """
    head = switchHead(None, responseHeaders)
    return _RawServer(protocol, clock, "raw", onFailure, head=head)


def hijackServer(
    protocol: IProtocol,
    *,
    clock: IReactorTime,
    pause: float = HIJACK_PAUSE,
    http10: bool = False,
    onFailure: OnFailure | None = None,
) -> IProtocol:
    """
    The accepting end of the hijack form.

    @param protocol: What is put on the carrier after C{pause} seconds; each of its
        writes goes out as it is.
    @param http10: Whether the request was HTTP/1.0, which knows no chunks.
    @param onFailure: Called when the connection ends during the pause.
    @return: The protocol for the connection; it gets the bytes after the request's
        head.
    """
    # The clock is for intervals; it may have begun when the machine did.
    date = formatdate(usegmt=True).encode("ascii")
    version = b"1.0" if http10 else b"1.1"
    lines = [b"HTTP/%s 200 OK" % version, b"Date: " + date]
    if not http10:
        lines.append(b"Transfer-Encoding: chunked")
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    return _HijackServer(protocol, clock, "hijack", onFailure, head=head, pause=pause)


class _RawForm(SwitchForm):
    """How the raw form is asked for, and what counts as a yes."""

    def __init__(self, clock: IReactorTime, head: bytes, acceptHijack: bool) -> None:
        super().__init__(head, webSocket=False)
        self._clock = clock
        self._acceptHijack = acceptHijack

    def accepts(self, answer: Answer) -> bool:
        return super().accepts(answer) or (self._acceptHijack and isHijack(answer))

    def open(self, transport: Any, answer: Answer, protocol: IProtocol) -> IProtocol:
        carrier = RawCarrier(
            protocol,
            self._clock,
            "raw" if answer.status == 101 else "hijack",
            None,
            answer.headers,
        )
        carrier.makeConnection(transport)
        return carrier


def isHijack(answer: Answer) -> bool:
    """
    Whether an answer is that of an old server which has taken the connection.

    Go's C{net/http} writes this head when a program hijacks the connection after
    a bare status: chunks announced, and nothing that describes a document.
    """
    coding = firstHeader(answer.headers, b"transfer-encoding") or b""
    return (
        answer.status == 200
        and coding.strip().lower() == b"chunked"
        and firstHeader(answer.headers, b"content-type") is None
        and firstHeader(answer.headers, FEATURES_HEADER.lower()) is None
    )


class RawUpgradeEndpoint(UpgradeEndpoint):
    """
    Dials a raw carrier; see L{UpgradeEndpoint}.

    @param reactor: The clock.
    @param endpoint: Leads to the server (L{endpointFor}).
    @param headers: Fields beside C{Host}, C{User-Agent}, C{Connection} and
        C{Upgrade}.
    @param timeout: Seconds for the connection, and again for the answer.
    @param ready: When the request may be sent, where it has to wait for something;
        the connection is opened meanwhile.  Its failure becomes C{connect}'s.  A
        number that it fires with is the seconds that the target took, and is said.
    @param acceptHijack: Whether an old server's hijack is taken for a carrier.
    @param head: The whole request, where it is known
        (L{askHead <helix_revdial.revdial.switching.askHead>}).
    @raise ValueError: A header field that is not fit for a head.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        url: CarrierURL,
        headers: Sequence[tuple[bytes, bytes]] = (),
        *,
        timeout: float = 10.0,
        ready: Deferred[Any] | None = None,
        acceptHijack: bool = False,
        head: bytes | None = None,
    ) -> None:
        super().__init__(reactor, endpoint, timeout=timeout, ready=ready)
        self._acceptHijack = acceptHijack
        self._head = askHead(url, checkedHeaders(headers)) if head is None else head

    def _form(self) -> CarrierForm:
        return _RawForm(self._clock, self._head, self._acceptHijack)


__all__ = [
    "CarrierURL",
    "ClosedByPeer",
    "MalformedAnswer",
    "RawUpgradeEndpoint",
    "UpgradeRefused",
    "canHalfClose",
    "endpointFor",
    "hijackServer",
    "isHijack",
    "isTLS",
    "rawServer",
]
