# -*- test-case-name: tests.revdial.test_websocket,tests.revdial.test_websocket_frames -*-
"""
A WebSocket's frames as a stream of bytes: what Autobahn is told, at both ends.

L{AutobahnStream} is mixed into Autobahn's protocols, and is where most is known of
their insides.  It owns what was read and not parsed; how the stream behaves is
L{helix_revdial.revdial.websocket_transport}'s, and what only one end does is
L{helix_revdial.revdial.websocket}'s.

Invariants:

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
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, cast

from autobahn.websocket import protocol as autobahnProtocol
from twisted.internet.interfaces import (
    IProtocol,
    IReactorTime,
)
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from helix_revdial.revdial.websocket_transport import Frames, WebSocketTransport


def _settle() -> None:
    """
    Set what Autobahn takes from its module's names only.

    It draws masking keys from C{random}, which is not strong (its issue 758).
    It also formats a table of its options for each connection, for a debug message
    that is then dropped; that was a fifth of the CPU time of a dial.
    """
    vars(autobahnProtocol).update(random=random.SystemRandom(), pformat=repr)


_settle()


_HANDSHAKE = (
    "http_headers",
    "http_headers_cnt",
    "http_request_data",
    "http_request_host",
    "http_request_params",
    "http_request_path",
    "http_request_uri",
    "http_response_data",
    "http_status_line",
    "websocket_key",
)
"""Autobahn's attributes that nothing looks at once messages flow."""


class _Silence:
    """
    In place of Autobahn's log, whose debug messages hold request heads, and with
    them credentials.  What an operator should hear is logged here, by us.
    """

    def __getattr__(self, name: str) -> Callable[..., None]:
        return self._drop

    def _drop(self, *args: object, **fields: object) -> None:
        """Autobahn's message is not kept."""


class AutobahnStream:
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
        self._zeroKey = False
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
        return self.current_frame is None and not self.inside_message and not self.data

    def hasUnparsed(self) -> bool:
        return bool(self.data)

    def reader(self) -> None:
        """Autobahn's parser is its own; control connections are not taken over."""

    def parsed(self) -> bytes:
        return b""

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
            zeroKey=self._zeroKey,
            responseHeaders=self._headers,
        )
        self._opened()
        self._forgetHandshake()
        self._stream.start()

    def _opened(self) -> None:
        """The handshake is done."""

    def _forgetHandshake(self) -> None:
        """
        Let go of what Autobahn keeps of it: the request, credentials and all, and a
        queue for sending in pieces, which is never done.
        """
        kept = vars(self)
        for name in _HANDSHAKE:
            if name in kept:
                kept[name] = None
        self.send_queue: Any = ()

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


__all__ = ["AutobahnStream"]
