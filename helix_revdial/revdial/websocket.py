# -*- test-case-name: tests.revdial.test_websocket -*-
"""
WebSocket carriers, both ends, on Autobahn.

Autobahn does the handshakes, the frames, the masks; what it is told is in
L{helix_revdial.revdial.websocket_stream}.  Here is what only one end does: the
server's answer to a request that is replayed to it, and the client's form of the
exchange (L{helix_revdial.revdial.exchange}).

Invariants:

  - No header field that a caller gives can add a line to a head.
  - A handshake that fails, or never comes, is told once, and leaves no timer.

How the stream behaves is L{helix_revdial.revdial.websocket_transport}'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from autobahn.websocket import USES_NVX
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
from helix_revdial.revdial.features import TIMING_HEADER
from helix_revdial.revdial.switching import timing
from helix_revdial.revdial.websocket_stream import AutobahnStream

MAX_FRAME = 16 * 1024 * 1024
"""Bytes that one frame may announce."""

MAX_HEAD = 64 * 1024
"""Bytes of a request's head; the HTTP layer before us has a lower limit."""


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


@lru_cache(maxsize=4)
def _serverFactory(clock: IReactorTime) -> WebSocketServerFactory:
    """
    What Autobahn's protocols take for their factory: only options, which all have in
    common, in four kilobytes.
    """
    return WebSocketServerFactory(server=None, reactor=clock)


@lru_cache(maxsize=4)
def _clientFactory(clock: IReactorTime) -> WebSocketClientFactory:
    """The same for the dialling end."""
    return WebSocketClientFactory(reactor=clock)


@implementer(IHalfCloseableProtocol)
class _Server(AutobahnStream, WebSocketServerProtocol):  # type: ignore[misc]
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
        self.factory = _serverFactory(clock)
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
        self._answerHeaders = {}
        self._onFailure = None

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
class _Client(AutobahnStream, WebSocketClientProtocol):  # type: ignore[misc]
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
        zeroKey: bool,
        maxFrame: int,
        url: CarrierURL,
        headers: dict[str, str],
    ) -> None:
        super().__init__(None, clock, eof, maxFrame)
        self._zeroKey = zeroKey
        self.factory = _clientFactory(clock)
        self._url = url
        self._requestHeaders = headers
        self.refused: str | None = None

    def onConnecting(self, transport_details: Any) -> Any:
        return ConnectingRequest(
            host=self._url.hostName(),
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

    head = b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    """Only what an answer is read by."""

    def __init__(self, client: Any, headers: dict[str, str]) -> None:
        self._client = client
        self._headers = headers

    def begin(self, transport: Any, head: bytes, seconds: float | None) -> None:
        if seconds is not None:
            name = TIMING_HEADER.decode("ascii")
            self._headers[name] = timing(seconds).decode("ascii")
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
    @param zeroKey: Whether a zero masking key is.
    @param timeout: Seconds for the connection, and again for the answer.
    @param maxFrame: Bytes that one frame may announce.
    @param ready: When the request may be sent, where it has to wait for something;
        the connection is opened meanwhile.  Its failure becomes C{connect}'s.  A
        number that it fires with is the seconds that the target took, and is said.
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
        zeroKey: bool = False,
        timeout: float = 10.0,
        maxFrame: int = MAX_FRAME,
        ready: Deferred[Any] | None = None,
    ) -> None:
        requireNVX()
        super().__init__(reactor, endpoint, timeout=timeout, ready=ready)
        self._url = url
        self._eof = eof
        self._zeroKey = zeroKey
        self._maxFrame = maxFrame
        self._headers: dict[str, str] = {}
        for name, value in checkedHeaders(headers):
            key, text = name.decode("ascii"), value.decode("ascii")
            known = self._headers.get(key)
            self._headers[key] = text if known is None else f"{known}, {text}"

    def _form(self) -> CarrierForm:
        headers = dict(self._headers)
        return _WebSocketForm(
            _Client(self._clock, self._eof, self._zeroKey, self._maxFrame, self._url, headers),
            headers,
        )


__all__ = ["MAX_FRAME", "WebSocketEndpoint", "requireNVX", "webSocketServer"]
