# -*- test-case-name: tests.revdial.test_data_websocket -*-
"""
Streams over a WebSocket, both ends: data connections, and callers of the stream gateway.

There is a connection for each dial, so that its upgrade is done by hand
(L{helix_revdial.revdial.switching}), and its frames are read and written by
L{helix_revdial.revdial.frames}: portably here, on any transport, and by the same reader
in the same state where L{helix_revdial.revdial.sockets} takes the connection over.
Autobahn keeps the control connections (L{helix_revdial.revdial.websocket}).

L{DataWebSocket} owns what was read and not passed on; how the stream behaves is
L{helix_revdial.revdial.websocket_transport}'s, whose C{Frames} it is.

Invariants:

  - Binary messages only; payload is passed on as it comes; an empty unfragmented
    message is the end of the stream where C{eof} is agreed, else nothing.  As on
    Autobahn, and tested by the same tests.
  - A stream that is paused is not parsed.  What had been read stays here: at most one
    read of the transport beneath, and what came with the upgrade.
  - What came before a frame that breaks the protocol is passed on before the
    connection is closed for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocol,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from .exchange import Answer, CarrierForm, CarrierURL, Headers, UpgradeEndpoint, checkedHeaders
from .frames import (
    BINARY,
    CLOSE,
    MAX_FRAME,
    PING,
    PONG,
    Control,
    EndMark,
    Found,
    FrameError,
    FrameReader,
    closePayload,
    frame,
    readClose,
)
from .masks import Keys
from .switching import SwitchForm, askHead, switchHead
from .websocket_transport import Frames, WebSocketTransport

OnFailure = Callable[[Failure], None]


@implementer(IHalfCloseableProtocol)
class DataWebSocket(Protocol):
    """
    The connection, from the byte behind the upgrade's heads on; see the module.

    @ivar isServer: Whether we are the accepting end, which does not mask.
    @ivar maxFramePayloadSize: Bytes that one frame may announce.
    """

    __slots__ = (
        "_broken",
        "_clock",
        "_eof",
        "_found",
        "_head",
        "_headers",
        "_isOpen",
        "_isOver",
        "_keys",
        "_onFailure",
        "_parsing",
        "_protocol",
        "_reader",
        "_stream",
        "_unread",
        "_zeroKey",
        "connected",
        "isServer",
        "maxFramePayloadSize",
        "transport",
    )

    _log = Logger()

    def __init__(
        self,
        protocol: IProtocol,
        clock: IReactorTime,
        *,
        eof: bool,
        keys: Keys | None = None,
        zeroKey: bool = False,
        maxFrame: int = MAX_FRAME,
        head: bytes = b"",
        headers: Headers = (),
        onFailure: OnFailure | None = None,
    ) -> None:
        """
        @param protocol: What is put on the carrier.
        @param clock: Tells the time.
        @param eof: Whether the end mark is agreed.
        @param keys: Makes masking keys; C{None} for the accepting end.
        @param zeroKey: Whether whoever takes the connection over may mask with zeros.
        @param maxFrame: Bytes that one frame may announce.
        @param head: What is sent first.
        @param headers: The fields of the answer to the upgrade.
        @param onFailure: Called in place of C{protocol} when there is no connection.
        """
        self.transport = None
        self.connected = 0
        self.isServer = keys is None
        self.maxFramePayloadSize = maxFrame
        self._protocol = protocol
        self._clock = clock
        self._eof = eof
        self._keys = keys
        self._zeroKey = zeroKey
        self._head = head
        self._headers = headers
        self._onFailure = onFailure
        self._reader = FrameReader(masked=self.isServer, maxFrame=maxFrame)
        self._stream: WebSocketTransport | None = None
        self._unread = b""
        # Made with what first waits: an empty one takes 760 bytes.
        self._found: deque[Found] | None = None
        self._broken: FrameError | None = None
        self._parsing = False
        self._isOpen = True
        self._isOver = False

    @property
    def _wire(self) -> Any:
        return self.transport

    # The connection beneath.

    def connectionMade(self) -> None:
        try:
            self._wire.setTcpNoDelay(True)
        except (AttributeError, OSError):
            pass  # not TCP
        if self._head:
            self._wire.write(self._head)
            self._head = b""
        self._stream = WebSocketTransport(
            self._protocol,
            self.transport,
            self._clock,
            cast(Frames, self),
            eof=self._eof,
            zeroKey=self._zeroKey,
            responseHeaders=self._headers,
        )
        # It cannot fail any more: what was to hear of that may go.
        self._onFailure = None
        self._headers = ()
        self._stream.start()

    def dataReceived(self, data: bytes) -> None:
        if not self._isOver:
            self._unread = self._unread + data if self._unread else data
            self.consumeData()

    def readConnectionLost(self) -> None:
        if self._stream is not None:
            self._stream.finReceived()

    def writeConnectionLost(self) -> None:
        """Never: WebSocket does not close one direction of the connection beneath."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._stream is not None:
            self._stream.lost(reason)
        elif self._onFailure is not None:
            self._onFailure(reason)

    # Frames, for the transport on top.

    def isOpen(self) -> bool:
        return self._isOpen

    def isWhole(self) -> bool:
        return self._reader.whole and not self.hasUnparsed()

    def hasUnparsed(self) -> bool:
        return bool(self._unread or self._found or self._broken)

    def reader(self) -> FrameReader | None:
        if self._broken is not None or any(
            isinstance(one, Control | EndMark) for one in self._found or ()
        ):
            return None
        return self._reader

    def parsed(self) -> bytes:
        return b"".join(one for one in self._found or () if isinstance(one, memoryview))

    def unparsed(self) -> bytes:
        return self._unread

    def dropUnparsed(self) -> None:
        self._found = None
        self._unread = b""

    def consumeData(self) -> None:
        if self._parsing or self._stream is None:
            return
        self._parsing = True
        try:
            while not (self._isOver or self._stream.held):
                if self._found:
                    self._tell(self._stream, self._found.popleft())
                elif self._broken is not None:
                    self._fail(self._stream, self._broken)
                elif self._unread:
                    self._read()
                else:
                    return
        finally:
            self._parsing = False

    def _read(self) -> None:
        data, self._unread = self._unread, b""
        # What is masked is unmasked where it lies.
        view = memoryview(bytearray(data)) if self.isServer else memoryview(data)
        found = self._found
        if found is None:
            found = self._found = deque()
        try:
            found.extend(self._reader.read(view))
        except FrameError as broken:
            found.extend(broken.before)
            self._broken = broken

    def _tell(self, stream: WebSocketTransport, one: Found) -> None:
        if isinstance(one, memoryview):
            stream.payload(bytes(one))
        elif isinstance(one, EndMark):
            stream.endMark()
        elif one.opcode == PING:
            stream.pinged(one.payload)
        elif one.opcode == PONG:
            stream.ponged(one.payload)
        else:
            self._closed(stream, one.payload)

    def _closed(self, stream: WebSocketTransport, payload: bytes) -> None:
        """A close frame: answer it if it is no answer, and hear nothing more."""
        try:
            code, reason = readClose(payload)
        except FrameError as broken:
            self._fail(stream, broken)
            return
        self.sendCloseFrame(1000, None)
        self._stop()
        stream.peerClosed(code, reason)
        if self.isServer:
            # The client waits for us to close (RFC 6455, 7.1.1).
            self._wire.unregisterProducer()
            self._wire.loseConnection()

    def _fail(self, stream: WebSocketTransport, broken: FrameError) -> None:
        """The peer broke the protocol: say so, and hear nothing more."""
        reason = str(broken)
        self.sendCloseFrame(broken.code, reason.encode("utf-8"))
        self._stop()
        self._log.info("closing a WebSocket: {reason} ({code})", reason=reason, code=broken.code)
        stream.broke(reason)

    def _stop(self) -> None:
        self._isOver = True
        self._broken = None
        self.dropUnparsed()

    # Sending.

    def _sendFrame(self, opcode: int, payload: bytes) -> None:
        key = None if self._keys is None else self._keys.key()
        self._wire.write(frame(payload, key, opcode))

    def sendMessage(self, payload: bytes, isBinary: bool) -> None:
        if self._isOpen:
            self._sendFrame(BINARY, payload)

    def sendCloseFrame(self, code: int, reasonUtf8: bytes | None) -> None:
        if self._isOpen:
            self._isOpen = False
            reason = (reasonUtf8 or b"").decode("utf-8", "ignore")
            self._sendFrame(CLOSE, closePayload(code, reason))

    def sendPing(self, payload: bytes) -> None:
        if self._isOpen:
            self._sendFrame(PING, payload)

    def sendPong(self, payload: bytes) -> None:
        if self._isOpen:
            self._sendFrame(PONG, payload)

    def finished(self, reason: Failure) -> None:
        self._isOpen = False
        self._stop()


def dataServer(
    protocol: IProtocol,
    *,
    key: bytes,
    eof: bool,
    responseHeaders: Sequence[tuple[bytes, bytes]] = (),
    clock: IReactorTime,
    maxFrame: int = MAX_FRAME,
    onFailure: OnFailure | None = None,
) -> IProtocol:
    """
    The accepting end of a stream over WebSocket.

    @param protocol: What is put on the carrier, at once when the returned protocol is
        connected.
    @param key: The request's C{Sec-WebSocket-Key}.  That the request is a handshake
        (RFC 6455, section 4.2.1) is for the caller to see.
    @param eof: Whether the end mark is agreed with this peer.
    @param responseHeaders: Fields of the C{101} beside the handshake's own.
    @param maxFrame: Bytes that one frame may announce.
    @param onFailure: Called when the connection ends before C{protocol} was
        connected.
    @return: The protocol for the connection; it gets the bytes after the request's
        head.
    @raise ValueError: A header field that is not fit for a head.
    """
    return DataWebSocket(
        protocol,
        clock,
        eof=eof,
        maxFrame=maxFrame,
        head=switchHead(key, responseHeaders),
        onFailure=onFailure,
    )


class _DataForm(SwitchForm):
    """How a stream over WebSocket is asked for."""

    def __init__(self, head: bytes, build: Callable[[IProtocol, Headers], IProtocol]) -> None:
        super().__init__(head, webSocket=True)
        self._build = build

    def open(self, transport: Any, answer: Answer, protocol: IProtocol) -> IProtocol:
        carrier = self._build(protocol, answer.headers)
        carrier.makeConnection(transport)
        return carrier


class DataWebSocketEndpoint(UpgradeEndpoint):
    """
    Dials a stream over WebSocket; see L{UpgradeEndpoint}.

    @param reactor: The clock.
    @param endpoint: Leads to the server
        (L{endpointFor <helix_revdial.revdial.exchange.endpointFor>}).
    @param headers: Fields beside the handshake's own.
    @param eof: Whether the end mark is agreed with this server.
    @param zeroKey: Whether a zero masking key is.
    @param keys: Makes masking keys.
    @param timeout: Seconds for the connection, and again for the answer.
    @param maxFrame: Bytes that one frame may announce.
    @param ready: When the request may be sent, where it has to wait for something;
        the connection is opened meanwhile.  Its failure becomes C{connect}'s.  A
        number that it fires with is the seconds that the target took, and is said.
    @param head: The whole request but for the key, where it is known
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
        eof: bool,
        zeroKey: bool = False,
        keys: Keys | None = None,
        timeout: float = 10.0,
        maxFrame: int = MAX_FRAME,
        ready: Deferred[Any] | None = None,
        head: bytes | None = None,
    ) -> None:
        super().__init__(reactor, endpoint, timeout=timeout, ready=ready)
        self._eof = eof
        self._zeroKey = zeroKey
        self._keys = Keys() if keys is None else keys
        self._maxFrame = maxFrame
        self._head = askHead(url, checkedHeaders(headers), webSocket=True) if head is None else head

    def _form(self) -> CarrierForm:
        return _DataForm(self._head, self._carrier)

    def _carrier(self, protocol: IProtocol, headers: Headers) -> IProtocol:
        return DataWebSocket(
            protocol,
            self._clock,
            eof=self._eof,
            keys=self._keys,
            zeroKey=self._zeroKey,
            maxFrame=self._maxFrame,
            headers=headers,
        )


__all__ = ["DataWebSocket", "DataWebSocketEndpoint", "dataServer"]
