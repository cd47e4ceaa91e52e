# -*- test-case-name: tests.revdial.test_client -*-
"""
The agent's way to a server: where it is, and which carrier gets through.

L{ServerURL} is where the server is.  L{ServerPath} makes the control connection
and the data connections: raw where it can, WebSocket where something in between
refuses raw, an old server's hijacked connection where that is what answers.
What comes over a control connection is for the L{Listener
<helix_revdial.revdial.listener.Listener>}.

Invariants:

  - A data connection leads to the configured server and to no other: what the
    server sends is a path of one of two forms, checked here.
  - The token is asked for at each attempt, goes into C{Authorization} only, and
    no error text of ours contains it, not even one that quotes the server.
  - A refusal in the server's own words (problem+json) is final for the attempt.
    Anything else may come from a proxy, and WebSocket is tried once.
  - Half-close is not lost: raw data connections, whose FIN is the end of one
    direction, are used only where the server's answer came as the server wrote it.
    What forwards HTTP ends both directions with the first (nginx, HAProxy), and
    WebSocket has an end of its own.
  - That raw was refused is remembered for L{RAW_AGAIN} seconds; that an answer
    did not come is not, since it says nothing about the carrier.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.error import TimeoutError as NoAnswer
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from .agent_control import AgentControl, Closed
from .data_websocket import DataWebSocketEndpoint
from .errors import NotAllowed, UnknownDial
from .exchange import (
    Answer,
    CarrierForm,
    CarrierURL,
    MalformedAnswer,
    NoConnection,
    UpgradeRefused,
    checkedHeaders,
    endpointFor,
)
from .features import (
    ALL,
    EOF,
    FEATURES_HEADER,
    POOL,
    RAW,
    TARGETS,
    TARGETS_HEADER,
    TICKET_HEADER,
    ZERO_KEY,
    formatFeatures,
)
from .framed import FramedConnection, FrameUser
from .listener import Listener
from .masks import Keys
from .messages import ConnReady
from .offered import OfferedTarget, formatTargets
from .parking import park
from .refusals import Refused, refusal
from .requests import RUNNER_KEY, AnswerKind, RequestKind, judge
from .server_peer import KnownPeer
from .server_url import ServerURL
from .socket_connect import SocketEndpoint
from .switching import askHead, withFields
from .upgrade import RawUpgradeEndpoint
from .websocket import WebSocketEndpoint

RAW_AGAIN = 3600.0
"""Seconds for which a refusal of the raw carrier is remembered."""

_TICKET = re.compile(r"[A-Za-z0-9_-]{1,256}")

UPGRADE_TIMEOUT = 10.0
"""Seconds for a connection, and again for the answer to an upgrade."""


@dataclass(frozen=True)
class ControlSession:
    """
    A control connection that is up.

    @ivar features: What both ends agreed on.
    @ivar carrier: C{"raw"}, C{"websocket"} or C{"hijack"}.
    @ivar closed: Fires with how it ended.
    @ivar control: Its protocol.
    """

    features: frozenset[str]
    carrier: str
    closed: Deferred[Closed]
    control: AgentControl

    def goodbye(self) -> None:
        """Tell the server that we are leaving; it sends no more dials."""
        self.control.goodbye()

    def close(self) -> None:
        """Close the connection; streams go on."""
        self.control.leave()


class ServerPath:
    """
    Makes connections to one server for one runner.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        serverURL: ServerURL,
        token: Callable[[], str],
        *,
        key: str,
        tlsOptions: IOpenSSLClientConnectionCreator | None = None,
        features: frozenset[str] = ALL,
        zeroKey: bool = False,
        targets: Sequence[OfferedTarget] = (),
        timeout: float = UPGRADE_TIMEOUT,
        endpoint: Callable[[], IStreamClientEndpoint] | None = None,
        peer: KnownPeer | None = None,
        direct: bool = True,
    ) -> None:
        """
        @param reactor: Opens sockets, resolves names and tells the time.
        @param serverURL: Where the server is.
        @param token: Gives the token, at each attempt; an empty one is none, where a client
            certificate stands in its place.
        @param key: The runner's key.
        @param tlsOptions: Other trust than the platform's.
        @param features: What to offer; C{pool} only for a listener that parks.
        @param zeroKey: Whether to offer the zero masking key too.
        @param targets: What to say of the targets, where they are offered.
        @param timeout: Seconds for a connection, and again for its answer.
        @param endpoint: Another way to the server's port than its address.
        @param peer: What that way keeps of where the control connection led, if it does.
        @param direct: Whether that way passes the end of one direction on as such; a
            proxy may not.
        @raise ValueError: C{key} is no runner key.
        """
        if RUNNER_KEY.fullmatch(key) is None:
            raise ValueError(f"not a runner key: {key!r}")
        self._reactor = reactor
        self._clock = cast(IReactorTime, reactor)
        self._server = serverURL
        self._token = token
        self._key = key
        self._tlsOptions = tlsOptions
        self._features = features | {ZERO_KEY} if zeroKey else features
        self._targets = tuple(targets)
        self._timeout = timeout
        self._endpoint = endpoint
        self._peer = KnownPeer() if peer is None else peer
        self._keys = Keys()
        self._controlRawFrom = 0.0
        self._dataRawFrom = 0.0
        self._direct = self._endsPass = direct
        self._dataPath = ""
        self._dataURL = serverURL.carrierURL("")
        self._dataToken: str | None = None
        self._dataHeads: dict[bool, bytes] = {}

    def forget(self) -> None:
        """
        Try raw again: what refused it may not be on the way any more.
        """
        self._controlRawFrom = self._dataRawFrom = 0.0
        self._direct = self._endsPass

    # Control

    async def connectControl(self, listener: Listener) -> ControlSession:
        """
        Log in and register.

        @param listener: Answers the dials that come.
        @return: The session, already under way.
        @raise Refused: The server, or a proxy before it, said no.
        @raise MalformedAnswer: What answered does not speak HTTP.
        @raise Exception: The connection's own error: the name does not resolve,
            nothing listens, the certificate does not fit.
        """
        token = self._token()
        # A control connection goes where its name leads now.
        self._peer.forget()
        forms = [RequestKind.CONTROL_RAW, RequestKind.CONTROL_WEBSOCKET]
        if RAW not in self._features or self._clock.seconds() < self._controlRawFrom:
            del forms[0]
        while True:
            form = forms.pop(0)
            try:
                return await self._connectControl(form, token, listener)
            except UpgradeRefused as refused:
                kind = judge(refused.status, refused.headers, asked=form)
                if form is RequestKind.CONTROL_RAW:
                    if kind is not AnswerKind.REFUSED:
                        self._rememberRawRefused(refused)
                else:
                    # The next attempt may well find another path.
                    self._controlRawFrom = 0.0
                if kind is AnswerKind.REFUSED or not forms:
                    raise refusal(refused, kind, token) from None
            except NoConnection:
                raise
            except (MalformedAnswer, ConnectionLost, ConnectionDone, NoAnswer) as error:
                if not forms:
                    raise
                self._log.info(
                    "No answer to a raw upgrade ({error}); trying WebSocket.", error=str(error)
                )

    async def _connectControl(
        self, form: RequestKind, token: str, listener: Listener
    ) -> ControlSession:
        url = self._server.carrierURL(f"?runnerid={self._key}")
        features = self._features if listener.parks else self._features - {POOL}
        headers = [*_authorization(token), (FEATURES_HEADER, formatFeatures(features))]
        if self._targets and TARGETS in features:
            headers.append((TARGETS_HEADER, formatTargets(self._targets)))
        endpoint: IStreamClientEndpoint
        if form is RequestKind.CONTROL_RAW:
            endpoint = _ControlRaw(
                self._reactor,
                self._serverEndpoint(),
                url,
                headers,
                timeout=self._timeout,
                acceptHijack=True,
                opened=self._opened,
            )
        else:
            endpoint = WebSocketEndpoint(
                self._reactor,
                self._serverEndpoint(),
                url,
                headers,
                eof=False,
                timeout=self._timeout,
            )
        protocol = await endpoint.connect(listener.controlFactory(features))
        control = cast(AgentControl, protocol)
        if control.transport is not None:
            self._peer.learn(control.transport.getPeer())

        def withoutToken(closed: Closed) -> Closed:
            # The reason may be the server's own text.
            return replace(closed, reason=closed.reason.replace(token or "\0", "<hidden>"))

        closed = control.whenClosed().addCallback(withoutToken)
        return ControlSession(control.features, control.carrierName, closed, control)

    def _opened(self, answer: Answer) -> None:
        if answer.status != 101:
            # An old server's own head, for the hijack form; it has no raw streams.
            return
        if self._direct and not answer.direct:
            self._log.info(
                "Something between us and {server} forwards HTTP: streams go over WebSocket.",
                server=str(self._server),
            )
        self._direct = self._endsPass and answer.direct

    def _rememberRawRefused(self, refused: UpgradeRefused) -> None:
        if refused.status >= 500:
            # A proxy whose server is away; it says nothing about upgrades.
            return
        self._controlRawFrom = self._dataRawFrom = self._clock.seconds() + RAW_AGAIN
        self._log.info(
            "Something between us and {server} answers raw upgrades with {status}; "
            "WebSocket is used instead.",
            server=str(self._server),
            status=refused.status,
        )

    # Data

    def dataEndpoint(
        self, connReady: ConnReady, features: frozenset[str], ready: Deferred[float]
    ) -> IStreamClientEndpoint:
        """
        An endpoint that picks a dial up.

        Its C{connect} fails with L{UnknownDial} or L{NotAllowed} where the
        server says so.

        @param connReady: What the server asked.
        @param features: What the control connection agreed on.
        @param ready: Fires with the seconds that the target took.
        @raise ValueError: The path leads elsewhere than to the server.
        """
        token = self._token()
        if connReady.connPath != self._dataPath:
            self._dataURL = self._server.dataURL(connReady.connPath)
            self._dataPath = connReady.connPath
            self._dataToken = None
        headers = [] if connReady.ticket is None else _ticket(connReady.ticket)
        return _DataEndpoint(self, self._dataURL, token, headers, features, ready)

    def _head(
        self, token: str, headers: Sequence[tuple[bytes, bytes]], *, webSocket: bool
    ) -> bytes:
        """The head of a data connection; what all have in common is made once."""
        if token != self._dataToken:
            self._dataHeads.clear()
            self._dataToken = token
        head = self._dataHeads.get(webSocket)
        if head is None:
            fields = checkedHeaders(_authorization(token))
            head = askHead(self._dataURL, fields, webSocket=webSocket)
            self._dataHeads[webSocket] = head
        return withFields(head, headers)

    def wantsRawData(self, features: frozenset[str]) -> bool:
        """
        Whether a data connection is to be raw.

        Not over TLS: Twisted's TLS has no half-close, WebSocket with C{eof} has.  And
        not through what forwards HTTP.
        """
        return (
            RAW in features
            and (self._direct or EOF not in features)
            and not self._server.secure
            and self._clock.seconds() >= self._dataRawFrom
        )

    async def park(
        self, ticket: str, features: frozenset[str], user: FrameUser
    ) -> FramedConnection:
        """
        Open a data connection that waits for a dial.

        Raw wherever that gets through: the ends of its streams are marks, and need
        neither TCP's nor TLS's.

        @param ticket: What the server gave for it.
        @param features: What the control connection agreed on.
        @param user: Hears of what arrives.
        """
        headers = [*_authorization(self._token()), *_ticket(ticket)]
        url = self._server.dataURL("/revdial")
        raw = RAW in features and self._clock.seconds() >= self._dataRawFrom
        while True:
            try:
                return await park(
                    self._reactor,
                    self._serverEndpoint(),
                    url,
                    headers,
                    user,
                    self._keys,
                    webSocket=not raw,
                    zeroKey=ZERO_KEY in features,
                    timeout=self._timeout,
                )
            except MalformedAnswer:
                if not raw:
                    raise
            except UpgradeRefused as refused:
                kind = judge(refused.status, refused.headers, asked=RequestKind.DATA_RAW)
                if not raw or kind is AnswerKind.REFUSED:
                    raise
            self.rawDataRefused()
            raw = False

    def rawDataRefused(self) -> None:
        """Something in between does not let raw data connections through."""
        self._dataRawFrom = self._clock.seconds() + RAW_AGAIN

    def rawData(
        self,
        url: CarrierURL,
        token: str,
        headers: Sequence[tuple[bytes, bytes]],
        ready: Deferred[float],
    ) -> IStreamClientEndpoint:
        """The raw data connection, for L{dataEndpoint}."""
        return RawUpgradeEndpoint(
            self._reactor,
            self._serverEndpoint(),
            url,
            timeout=self._timeout,
            ready=ready,
            head=self._head(token, headers, webSocket=False),
        )

    def webSocketData(
        self,
        url: CarrierURL,
        token: str,
        headers: Sequence[tuple[bytes, bytes]],
        ready: Deferred[float],
        features: frozenset[str],
    ) -> IStreamClientEndpoint:
        """The WebSocket data connection, for L{dataEndpoint}."""
        return DataWebSocketEndpoint(
            self._reactor,
            self._serverEndpoint(),
            url,
            eof=EOF in features,
            zeroKey=ZERO_KEY in features,
            keys=self._keys,
            timeout=self._timeout,
            ready=ready,
            head=self._head(token, headers, webSocket=True),
        )

    def _serverEndpoint(self) -> IStreamClientEndpoint:
        if self._endpoint is not None:
            found = self._endpoint()
        else:
            server = self._server
            found = endpointFor(
                self._reactor,
                server.host,
                server.port,
                server.secure,
                self._tlsOptions,
                self._peer,
            )
        # On a socket of ours nothing has to be set before its carrier is up.
        return found if isinstance(found, SocketEndpoint) else _Watched(found)


@implementer(IStreamClientEndpoint)
class _Watched:
    """
    An endpoint whose sockets send small writes at once, and notice in time when
    their path is gone: a stream may be idle for hours, and has no heartbeat.
    """

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        return self._endpoint.connect(protocolFactory).addCallback(self._connected)

    def _connected(self, protocol: IProtocol) -> IProtocol:
        transport = getattr(protocol, "transport", None)
        for option in ("setTcpNoDelay", "setTcpKeepAlive"):
            # A unix socket has neither.
            set_ = getattr(transport, option, None)
            if set_ is not None:
                set_(True)
        return protocol


@implementer(IStreamClientEndpoint)
class _DataEndpoint:
    """A dial-back: raw if that gets through, else WebSocket."""

    def __init__(
        self,
        path: ServerPath,
        url: CarrierURL,
        token: str,
        headers: Sequence[tuple[bytes, bytes]],
        features: frozenset[str],
        ready: Deferred[float],
    ) -> None:
        self._path = path
        self._url = url
        self._token = token
        self._headers = headers
        self._features = features
        self._ready = ready

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        path = self._path
        if not path.wantsRawData(self._features):
            return self._webSocket(protocolFactory)
        raw = path.rawData(self._url, self._token, self._headers, self._ready)
        return raw.connect(protocolFactory).addErrback(self._notRaw, protocolFactory)

    def _notRaw(self, failure: Failure, factory: IProtocolFactory) -> Deferred[IProtocol]:
        error = failure.value
        if isinstance(error, UpgradeRefused):
            kind = judge(error.status, error.headers, asked=RequestKind.DATA_RAW)
            if kind is AnswerKind.REFUSED:
                return fail(_refused(failure))
        elif not isinstance(error, MalformedAnswer):
            return fail(failure)
        self._path.rawDataRefused()
        return self._webSocket(factory)

    def _webSocket(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        webSocket = self._path.webSocketData(
            self._url, self._token, self._headers, self._ready, self._features
        )
        return webSocket.connect(factory).addErrback(_refused)


def _refused(failure: Failure) -> Failure:
    """What the server says of a dial, in words that others know."""
    error = failure.value
    if isinstance(error, UpgradeRefused):
        if error.status == 404:
            return Failure(UnknownDial())
        if error.status == 403:
            return Failure(NotAllowed("the server does not let us pick the dial up"))
    return failure


class _ControlRaw(RawUpgradeEndpoint):
    """A raw upgrade that shows the answer that it opens with."""

    def __init__(self, *args: Any, opened: Callable[[Answer], None], **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._opened = opened

    def _form(self) -> CarrierForm:
        return _ShownForm(super()._form(), self._opened)


class _ShownForm:
    """A L{CarrierForm} that shows the answer."""

    def __init__(self, form: CarrierForm, opened: Callable[[Answer], None]) -> None:
        self.head = form.head
        self._form = form
        self._opened = opened

    def begin(self, transport: Any, head: bytes, seconds: float | None) -> None:
        self._form.begin(transport, head, seconds)

    def accepts(self, answer: Answer) -> bool:
        return self._form.accepts(answer)

    def open(self, transport: Any, answer: Answer, protocol: IProtocol) -> IProtocol:
        self._opened(answer)
        return self._form.open(transport, answer, protocol)


def _ticket(ticket: str) -> list[tuple[bytes, bytes]]:
    if _TICKET.fullmatch(ticket):
        return [(TICKET_HEADER, ticket.encode("ascii"))]
    return list(checkedHeaders([(TICKET_HEADER, ticket.encode("ascii"))]))


def _authorization(token: str) -> list[tuple[bytes, bytes]]:
    if not token:
        return []
    try:
        return [(b"Authorization", b"Bearer " + token.encode("ascii"))]
    except UnicodeEncodeError:
        raise ValueError("the token has characters that a header cannot carry") from None


__all__ = ["Closed", "ControlSession", "Refused", "ServerPath", "ServerURL"]
