# -*- test-case-name: tests.revdial.test_websocket -*-
"""
WebSocket carriers, both ends, on Autobahn.

Autobahn does the handshakes, the frames, the masks; this module tells it how:

  - Binary messages only.  A text message closes this connection (1003).
  - Payload is passed on as it comes.  No message and no frame is ever collected:
    message boundaries mean nothing, a message may be of any length, and a frame
    only has to be announced as within its limit (else 1009).
  - Empty frames inside a message are nothing.  An empty unfragmented message is
    the end of the stream where C{eof} is agreed, else nothing.
  - None of Autobahn's timers, which are coarse and fire early: limits are ours, on
    the injected clock.  No automatic pings, no compression, no status page.
  - A stream that is paused is not parsed.  What had been read stays in the parser:
    at most one read of the transport beneath.
  - Masking keys come from the operating system's randomness (RFC 6455 section
    5.3); see L{_settle}.

How the stream behaves is L{helix_revdial.revdial.websocket_transport}'s.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, cast

import h11
from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from autobahn.websocket import USES_NVX
from autobahn.websocket import protocol as autobahnProtocol
from autobahn.websocket.types import ConnectingRequest
from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IProtocol,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.revdial.exchange import (
    USER_AGENT,
    Answer,
    CarrierForm,
    CarrierURL,
    MalformedAnswer,
    UpgradeEndpoint,
    checkedHeaders,
)
from helix_revdial.revdial.websocket_transport import Frames, WebSocketTransport

MAX_FRAME = 16 * 1024 * 1024
"""Bytes that one frame may announce."""

MAX_HEAD = 64 * 1024
"""Bytes of a request's head; the HTTP layer before us has a lower limit."""


def _settle() -> None:
    """
    Set what Autobahn takes from its module's names only.

    It draws masking keys from C{random}, which is not strong (its issue 758).
    It also formats a table of its options for each connection, for a debug message
    that is then dropped; that was a fifth of the CPU time of a dial.
    """
    vars(autobahnProtocol).update(random=random.SystemRandom(), pformat=repr)


_settle()


def requireNVX() -> None:
    """
    Make sure that Autobahn masks with its native code.

    @raise RuntimeError: It does not; masked data would move at a hundredth of
        the speed.
    """
    if not USES_NVX:
        raise RuntimeError(
            "autobahn runs without its native acceleration (NVX): install a wheel that has "
            "it, and do not set AUTOBAHN_USE_NVX=0"
        )


class _Silence:
    """
    In place of Autobahn's log, whose debug messages hold request heads, and with
    them credentials.  What an operator should hear is logged here, by us.
    """

    def __getattr__(self, name: str) -> Callable[..., None]:
        return self._drop

    def _drop(self, *args: object, **fields: object) -> None:
        """Autobahn's message is not kept."""


class _Stream:
    """
    What both ends have in common, mixed into Autobahn's protocols.

    The class attributes are Autobahn's options: it takes an option from the
    protocol where that has one, and else from the factory.
    """

    _log = Logger()
    log = _Silence()

    logOctets = False
    logFrames = False
    trackTimings = False
    utf8validateIncoming = False
    applyMask = True
    maxMessagePayloadSize = 0
    autoFragmentSize = 0
    failByDrop = True
    echoCloseCodeReason = False
    openHandshakeTimeout = 0
    closeHandshakeTimeout = 0
    tcpNoDelay = True
    autoPingInterval = 0
    autoPingTimeout = 0
    autoPingSize = 12
    autoPingRestartOnAnyTraffic = False

    # Autobahn's, untyped.
    transport: Any
    state: int
    data: bytes
    current_frame: Any
    inside_message: bool
    wasClean: bool
    isServer: bool

    def __init__(
        self, protocol: IProtocol | None, clock: IReactorTime, eof: bool, maxFrame: int
    ) -> None:
        super().__init__()
        self.maxFramePayloadSize = maxFrame
        self._protocol = protocol
        self._clock = clock
        self._eof = eof
        self._stream: WebSocketTransport | None = None
        self._parsing = False
        self._empty = True
        self._headers: tuple[tuple[bytes, bytes], ...] = ()

    # The connection beneath.

    def connectionMade(self) -> None:
        try:
            self.transport.setTcpNoDelay(True)
        except (AttributeError, OSError):
            pass  # not TCP
        self._connectionMade()  # type: ignore[attr-defined]

    def dataReceived(self, data: bytes) -> None:
        if self.state != autobahnProtocol.WebSocketProtocol.STATE_CLOSED:
            self._dataReceived(data)  # type: ignore[attr-defined]

    def readConnectionLost(self) -> None:
        if self._stream is not None:
            self._stream.finReceived()
        else:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Never: WebSocket does not close one direction of the connection beneath."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._stream is not None:
            self._stream.lost(reason)
        else:
            self.finished(reason)
            self._failedBefore(reason)

    def _failedBefore(self, reason: Failure) -> None:
        """The connection ended before there was a stream."""

    def finished(self, reason: Failure) -> None:
        """Let Autobahn clean up."""
        self._connectionLost(reason)  # type: ignore[attr-defined]

    # Frames, for the transport on top.

    def isOpen(self) -> bool:
        return self.state == autobahnProtocol.WebSocketProtocol.STATE_OPEN

    def isWhole(self) -> bool:
        return self.isBetweenMessages() and not self.data

    def isBetweenMessages(self) -> bool:
        return self.current_frame is None and not self.inside_message

    def hasUnparsed(self) -> bool:
        return bool(self.data)

    def unparsed(self) -> bytes:
        return self.data

    def dropUnparsed(self) -> None:
        self.data = b""

    def consumeData(self) -> None:
        """
        Parse, unless a frame further up the stack is doing so.

        The handshake leaves what came with it for another round, outside the
        Deferred that Autobahn runs it in (which would swallow exceptions).
        """
        if self._parsing:
            return
        self._parsing = True
        try:
            before = -1
            while before != len(self.data):
                before = len(self.data)
                super().consumeData()  # type: ignore[misc]
        finally:
            self._parsing = False

    def processData(self) -> bool:
        if self._stream is not None and self._stream.held:
            return False
        return bool(super().processData())  # type: ignore[misc]

    # What Autobahn calls.

    def _onOpen(self) -> None:
        # Autobahn would look for TLS channel bindings here, which nobody uses and
        # which it cannot find where TLS is wrapped.
        self.onOpen()

    def onOpen(self) -> None:
        assert self._protocol is not None
        self._stream = WebSocketTransport(
            self._protocol,
            self.transport,
            self._clock,
            cast(Frames, self),
            eof=self._eof,
            responseHeaders=self._headers,
        )
        self._opened()
        self._stream.start()

    def _opened(self) -> None:
        """The handshake is done."""

    def onMessageBegin(self, isBinary: bool) -> None:
        self._empty = True
        if not isBinary:
            self._fail_connection(1003, "binary messages only")

    def onMessageFrameBegin(self, length: int) -> None:
        if length > self.maxFramePayloadSize:
            self._fail_connection(1009, f"a frame of more than {self.maxFramePayloadSize} bytes")
        if length or not self.current_frame.fin:
            self._empty = False

    def onMessageFrameData(self, payload: bytes) -> None:
        if payload and self._stream is not None and self._alive():
            self._stream.payload(payload)

    def onMessageFrameEnd(self) -> None:
        """Where a frame ends means nothing."""

    def onMessageEnd(self) -> None:
        if self._empty and self._stream is not None and self._alive():
            self._stream.endMark()

    def onPing(self, payload: bytes) -> None:
        if self._stream is not None and self._alive():
            self._stream.pinged(payload)

    def onPong(self, payload: bytes) -> None:
        if self._stream is not None:
            self._stream.ponged(payload)

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> bool | None:
        stop: bool | None = super().onCloseFrame(code, reasonRaw)  # type: ignore[misc]
        if self._stream is not None and self.wasClean:
            text = (reasonRaw or b"").decode("utf-8", "replace")
            self._stream.peerClosed(code, text)
        return stop

    def _alive(self) -> bool:
        return self.state != autobahnProtocol.WebSocketProtocol.STATE_CLOSED

    def _fail_connection(self, code: int = 1002, reason: str = "protocol error") -> None:
        """
        The peer broke the protocol: say so, and parse nothing more.

        Autobahn's own way either drops the connection without a word, or goes on
        to parse what cannot be trusted.
        """
        if not self._alive():
            return
        self.sendCloseFrame(code, reason.encode("utf-8")[:123])  # type: ignore[attr-defined]
        self.state = autobahnProtocol.WebSocketProtocol.STATE_CLOSED
        self.data = b""
        self._log.info("closing a WebSocket: {reason} ({code})", reason=reason, code=code)
        if self._stream is not None:
            self._stream.broke(reason)

    def _closeConnection(self, abort: bool = False) -> None:
        # After close frames both ways there is nothing to abort: a reset would only
        # hide from the peer that all went well.
        if abort and not self.wasClean:
            self.transport.abortConnection()
        else:
            self.transport.loseConnection()


@implementer(IHalfCloseableProtocol)
class _Server(_Stream, WebSocketServerProtocol):  # type: ignore[misc]
    """The accepting end."""

    isServer = True

    versions = [13]
    webStatus = False
    requireMaskedClientFrames = True
    maskServerFrames = False
    serveFlashSocketPolicy = False
    flashSocketPolicy = ""
    maxConnections = 0
    trustXForwardedFor = 0

    def __init__(
        self,
        protocol: IProtocol,
        clock: IReactorTime,
        eof: bool,
        maxFrame: int,
        answerHeaders: dict[str, list[str]],
        openTimeout: float,
        onFailure: Callable[[Failure], None] | None,
    ) -> None:
        super().__init__(protocol, clock, eof, maxFrame)
        self.factory = WebSocketServerFactory(server=None, reactor=clock)
        self._answerHeaders = answerHeaders
        self._openTimeout = openTimeout
        self._onFailure = onFailure
        self._timer: IDelayedCall | None = None
        self._why: str | None = None

    def connectionMade(self) -> None:
        self._timer = self._clock.callLater(self._openTimeout, self._tooSlow)
        super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        if self._stream is None and len(self.data) > MAX_HEAD:
            self._why = "the request's head is too long"
            self.transport.abortConnection()

    def _tooSlow(self) -> None:
        self._timer = None
        self._why = self._why or f"no request in {self._openTimeout} s"
        self.transport.abortConnection()

    def _stopTimer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def onConnect(self, request: Any) -> Any:
        return None, self._answerHeaders

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        self._why = reason
        super().failHandshake(reason, code, responseHeaders)

    def _opened(self) -> None:
        self._stopTimer()

    def _failedBefore(self, reason: Failure) -> None:
        self._stopTimer()
        if self._onFailure is not None:
            if self._why is not None:
                reason = Failure(error.ConnectionLost(f"no WebSocket: {self._why}"))
            self._onFailure(reason)


def webSocketServer(
    protocol: IProtocol,
    *,
    eof: bool,
    responseHeaders: Sequence[tuple[bytes, bytes]] = (),
    clock: IReactorTime,
    maxFrame: int = MAX_FRAME,
    openTimeout: float = 10.0,
    onFailure: Callable[[Failure], None] | None = None,
) -> IProtocol:
    """
    The accepting end of a WebSocket carrier.

    @param protocol: What is put on the carrier once the handshake is done.
    @param eof: Whether the end mark is agreed with this peer.
    @param responseHeaders: Fields of the C{101} beside the handshake's own.
    @param maxFrame: Bytes that one frame may announce.
    @param openTimeout: Seconds for the whole request's head to be replayed.
    @param onFailure: Called once, in place of C{protocol}, when the handshake
        fails or the connection ends before it.
    @return: The protocol for the connection.  It wants the request's head, as
        bytes, and what came after it.
    @raise ValueError: A header field that is not fit for a head.
    @raise RuntimeError: See L{requireNVX}.
    """
    requireNVX()
    fields: dict[str, list[str]] = {}
    for name, value in checkedHeaders(responseHeaders):
        fields.setdefault(name.decode("ascii"), []).append(value.decode("ascii"))
    return _Server(protocol, clock, eof, maxFrame, fields, openTimeout, onFailure)


@implementer(IHalfCloseableProtocol)
class _Client(_Stream, WebSocketClientProtocol):  # type: ignore[misc]
    """The dialling end, after the exchange has found a C{101}."""

    isServer = False

    version = 18
    acceptMaskedServerFrames = False
    maskClientFrames = True
    serverConnectionDropTimeout = 0
    perMessageCompressionOffers: list[Any] = []

    def __init__(
        self,
        clock: IReactorTime,
        eof: bool,
        maxFrame: int,
        url: CarrierURL,
        headers: dict[str, str],
    ) -> None:
        super().__init__(None, clock, eof, maxFrame)
        self.factory = WebSocketClientFactory(reactor=clock)
        self._url = url
        self._requestHeaders = headers
        self.refused: str | None = None

    def onConnecting(self, transport_details: Any) -> Any:
        host = f"[{self._url.host}]" if ":" in self._url.host else self._url.host
        return ConnectingRequest(
            host=host,
            port=self._url.port,
            resource=self._url.path,
            headers=self._requestHeaders,
            useragent=USER_AGENT.decode("ascii"),
            origin=None,
            protocols=[],
        )

    def failHandshake(self, reason: str) -> None:
        self.refused = reason

    def open(self, protocol: IProtocol, answer: Answer) -> None:
        """
        Have Autobahn check the answer, and connect C{protocol}.

        @raise MalformedAnswer: It is no proper C{101}.
        """
        self._protocol = protocol
        self._headers = answer.headers
        fields = tuple(
            (name, value)
            for name, value in answer.headers
            if name in (b"upgrade", b"connection") or name.startswith(b"sec-websocket-")
        )
        head = Answer(101, "Switching Protocols", fields, b"").head()
        try:
            head.decode("ascii")
            self.dataReceived(head)
        except UnicodeDecodeError:
            self.refused = "its head is not ASCII"
        if self._stream is None:
            raise MalformedAnswer(
                f"the server's WebSocket handshake is wrong: {self.refused or 'not accepted'}"
            )


class _WebSocketForm:
    """How a WebSocket is asked for."""

    request = h11.Request(
        method="GET",
        target="/",
        headers=[("Host", "-"), ("Connection", "Upgrade"), ("Upgrade", "websocket")],
    )

    def __init__(self, client: Any) -> None:
        self._client = client

    def begin(self, transport: Any, head: bytes) -> None:
        # Autobahn writes its own head, with its own key.
        self._client.makeConnection(transport)

    def accepts(self, answer: Answer) -> bool:
        return answer.status == 101

    def open(self, transport: Any, answer: Answer, protocol: IProtocol) -> IProtocol:
        self._client.open(protocol, answer)
        client: IProtocol = self._client
        return client


class WebSocketEndpoint(UpgradeEndpoint):
    """
    Dials a WebSocket carrier; see L{UpgradeEndpoint}.

    @param reactor: The clock.
    @param endpoint: Leads to the server
        (L{endpointFor <helix_revdial.revdial.exchange.endpointFor>}).
    @param headers: Fields beside the handshake's own.
    @param eof: Whether the end mark is agreed with this server.
    @param timeout: Seconds for the connection, and again for the answer.
    @param maxFrame: Bytes that one frame may announce.
    @param ready: When the request may be sent, where it has to wait for something;
        the connection is opened meanwhile.  Its failure becomes C{connect}'s.
    @raise ValueError: A header field that is not fit for a head.
    @raise RuntimeError: See L{requireNVX}.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        url: CarrierURL,
        headers: Sequence[tuple[bytes, bytes]] = (),
        *,
        eof: bool,
        timeout: float = 10.0,
        maxFrame: int = MAX_FRAME,
        ready: Deferred[None] | None = None,
    ) -> None:
        requireNVX()
        super().__init__(reactor, endpoint, timeout=timeout, ready=ready)
        self._url = url
        self._eof = eof
        self._maxFrame = maxFrame
        self._headers: dict[str, str] = {}
        for name, value in checkedHeaders(headers):
            key, text = name.decode("ascii"), value.decode("ascii")
            known = self._headers.get(key)
            self._headers[key] = text if known is None else f"{known}, {text}"

    def _form(self) -> CarrierForm:
        return _WebSocketForm(
            _Client(self._clock, self._eof, self._maxFrame, self._url, self._headers)
        )


__all__ = ["MAX_FRAME", "WebSocketEndpoint", "requireNVX", "webSocketServer"]
