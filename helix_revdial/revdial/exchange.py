# -*- test-case-name: tests.revdial.test_exchange -*-
"""
The dialling side's HTTP exchange: one GET that asks to leave HTTP.

Owns the request head, the wait for the answer (read by
L{helix_revdial.revdial.http_answer}), and the judgement of it: another protocol from
here on, a refusal, or not an answer at all.  What comes after a C{101} belongs to a
carrier (L{helix_revdial.revdial.upgrade}, L{helix_revdial.revdial.websocket}), which
is a L{CarrierForm} to this module.

Invariants:

  - Nothing the caller passes can add a line to the head (CR, LF and NUL are
    refused), and no error text repeats a header's value.
  - A redirect is a refusal like any other; it is never followed, so a
    credential goes to the server it was meant for only.
  - Bytes after the answer's head reach the carrier, at every split, after the
    caller's Deferred has fired.
  - Whatever ends an exchange (an answer, a timeout, a cancellation) leaves no
    socket and no timer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import Protocol as Shape

from twisted.internet import error
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
)
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import optionsForClientTLS
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial import __version__
from helix_revdial.revdial.http_answer import (
    DIRECT,
    MAX_BODY,
    Answer,
    AnswerReader,
    Headers,
    MalformedAnswer,
    firstHeader,
    requestHead,
)
from helix_revdial.revdial.server_peer import KnownPeer, PeerFirst
from helix_revdial.revdial.socket_connect import SocketEndpoint
from helix_revdial.revdial.tls_endpoints import TLSClientEndpoint

BODY_TIMEOUT = 2.0
"""Seconds in which a refusal's body has to come; what came by then is kept."""

USER_AGENT = f"helix-revdial/{__version__}".encode("ascii")

_OURS = frozenset(
    {
        b"host",
        b"user-agent",
        b"connection",
        b"upgrade",
        b"content-length",
        b"transfer-encoding",
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-protocol",
        b"sec-websocket-extensions",
        b"origin",
    }
)


class UpgradeRefused(Exception):
    """
    The server answered, and did not switch.

    @ivar status: The HTTP status.
    @ivar reason: The words beside it.
    @ivar headers: The answer's header fields, names in lower case.
    @ivar body: At most L{MAX_BODY} bytes of the answer's body.
    """

    def __init__(self, status: int, reason: str, headers: Headers, body: bytes) -> None:
        super().__init__(f"the server answered {status} {reason}".rstrip())
        self.status = status
        self.reason = reason
        self.headers = headers
        self.body = body

    def header(self, name: bytes) -> bytes | None:
        """The first value of the field C{name} (in lower case), or C{None}."""
        return firstHeader(self.headers, name)


class NoConnection(error.TimeoutError):
    """No connection was made in time, so that nothing could be asked."""


@dataclass(frozen=True, slots=True)
class CarrierURL:
    """
    Where a carrier is asked for.

    @ivar host: A DNS name or an IP address, without brackets.
    @ivar port: The TCP port.
    @ivar secure: Whether TLS is spoken.
    @ivar path: Origin form: the path and, after C{?}, the query.
    """

    host: str
    port: int
    secure: bool
    path: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._~:%-]+", self.host):
            raise ValueError(f"not a host name: {self.host!r}")
        if not 0 < self.port < 65536:
            raise ValueError(f"not a port: {self.port}")
        if not re.fullmatch(r"/[\x21-\x7e]*", self.path) or "#" in self.path:
            # The query may hold the ids of a dial: it is not repeated.
            raise ValueError("not the path of a URL")

    def hostName(self) -> str:
        """The host as a server is told it: IPv6 in brackets, no interface (RFC 6874, 4)."""
        return f"[{self.host.partition('%')[0]}]" if ":" in self.host else self.host

    def hostHeader(self) -> bytes:
        """The C{Host} field: no default port (RFC 9110, 7.2)."""
        host = self.hostName()
        if self.port != (443 if self.secure else 80):
            host += f":{self.port}"
        return host.encode("ascii")


def addressEndpoint(
    reactor: Any, host: str, port: int, peer: KnownPeer | None = None
) -> IStreamClientEndpoint:
    """
    The endpoint for a name or an address.

    A name is resolved in a thread and tried address by address; a literal needs
    neither, and each dial would pay for both.

    @param peer: Where a name has led to already, which is tried first.
    """
    if SocketEndpoint.suits(reactor, host):
        return SocketEndpoint(reactor, host, port)
    if isIPAddress(host):
        return TCP4ClientEndpoint(reactor, host, port)
    if isIPv6Address(host):
        return TCP6ClientEndpoint(reactor, host, port)
    byName = HostnameEndpoint(reactor, host, port)
    if peer is None:
        return byName
    return PeerFirst(reactor, peer, lambda found: addressEndpoint(reactor, found, port), byName)


def endpointFor(
    reactor: Any,
    host: str,
    port: int,
    secure: bool,
    tlsOptions: IOpenSSLClientConnectionCreator | None = None,
    peer: KnownPeer | None = None,
) -> IStreamClientEndpoint:
    """
    The endpoint for a server's address, with TLS verified where it is spoken.

    @param tlsOptions: Other trust than the platform's; it still has to verify
        C{host}.
    @param peer: See L{addressEndpoint}.
    """
    endpoint = addressEndpoint(reactor, host, port, peer)
    if not secure:
        return endpoint
    if tlsOptions is None:
        tlsOptions = optionsForClientTLS(host)
    return TLSClientEndpoint(reactor, tlsOptions, endpoint)


def checkedHeaders(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """
    Refuse header fields that would break a head.

    @raise ValueError: A name or value that HTTP does not allow, or a field that
        is the carrier's own; names the field, never its value.
    """
    for name, value in headers:
        if not re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError(f"not a header name: {name[:40]!r}")
        if not re.fullmatch(rb"[\x21-\x7e]?([\x20-\x7e\t]*[\x21-\x7e])?", value):
            raise ValueError(f"the value of {name.decode('ascii')} is not fit for a header")
        if name.lower() in _OURS:
            raise ValueError(f"{name.decode('ascii')} is not the caller's to set")
    return tuple((bytes(name), bytes(value)) for name, value in headers)


class CarrierForm(Shape):
    """How one kind of carrier is asked for, to L{UpgradeExchange}."""

    head: bytes

    def begin(self, transport: Any, head: bytes, seconds: float | None) -> None:
        """
        Send the request.

        @param seconds: What C{ready} fired with.
        """

    def accepts(self, answer: Answer) -> bool:
        """
        Whether this answer switches.

        @raise MalformedAnswer: It claims to, but to something else.
        """

    def open(self, transport: Any, answer: Answer, protocol: IProtocol) -> IProtocol:
        """
        Connect C{protocol}.

        @return: What the bytes after the head go to.
        @raise MalformedAnswer: The answer proves wrong on closer sight.
        """


@implementer(IHalfCloseableProtocol)
class UpgradeExchange(Protocol):
    """
    The exchange on one connection, and then the way to its carrier.

    @ivar done: Fires with the caller's protocol, connected; errbacks with
        L{UpgradeRefused}, L{MalformedAnswer}, or the connection's error.
        Cancelling it drops the connection.  It is given up when it has fired.
    """

    __slots__ = (
        "_asked",
        "_clock",
        "_connecting",
        "_factory",
        "_form",
        "_lostWhileOpening",
        "_opening",
        "_over",
        "_reader",
        "_ready",
        "_successor",
        "_timeout",
        "_timer",
        "connected",
        "done",
        "transport",
    )

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        form: CarrierForm,
        factory: IProtocolFactory,
        *,
        timeout: float,
        ready: Deferred[Any] | None,
    ) -> None:
        self.transport = None
        self.connected = 0
        self.done: Deferred[IProtocol] = Deferred(self._cancelled)
        self._connecting: Deferred[IProtocol] | None = None
        self._clock = clock
        self._form = form
        self._factory = factory
        self._timeout = timeout
        self._ready = ready
        self._reader = AnswerReader(form.head)
        self._asked = False
        self._over = False
        self._timer: IDelayedCall | None = None
        self._successor: IProtocol | None = None
        self._opening = False
        self._lostWhileOpening: Failure | None = None

    # The connection.

    def connectionMade(self) -> None:
        if self._over:
            self.transport.abortConnection()  # type: ignore[union-attr]
        elif self._ready is None:
            self._begin(None)
        else:
            self._ready.addCallbacks(self._isReady, self._isNotReady)

    def dataReceived(self, data: bytes) -> None:
        if self._successor is not None:
            self._successor.dataReceived(data)
        elif not self._over:
            self._read(data)

    def readConnectionLost(self) -> None:
        if self._successor is not None:
            listener = IHalfCloseableProtocol(self._successor, None)
            if listener is not None:
                listener.readConnectionLost()
        else:
            self.connectionLost(connectionDone)
            self.transport.loseConnection()  # type: ignore[union-attr]

    def writeConnectionLost(self) -> None:
        """Nothing follows from it: we ended that direction ourselves."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._successor is not None:
            self._successor.connectionLost(reason)
        elif self._opening:
            # The caller's protocol ended it in its connectionMade.
            self._lostWhileOpening = reason
        elif self._over:
            return
        elif self._reader.answer is not None:
            self._reader.feed(b"")
            self._reader.readBody()
            self._refuse()
        elif reason.check(error.ConnectionDone):
            self._fail(Failure(error.ConnectionLost("closed before an answer to the upgrade")))
        else:
            self._fail(reason)

    # The exchange.

    def _isReady(self, result: Any) -> Any:
        if not self._over:
            self._begin(result)
        return result

    def _isNotReady(self, failure: Failure) -> None:
        self._fail(failure)

    def _begin(self, seconds: float | None) -> None:
        self._asked = True
        self._timer = self._clock.callLater(self._timeout, self._timedOut)
        self._form.begin(self.transport, self._reader.head, seconds)

    def _timedOut(self) -> None:
        self._timer = None
        if self._reader.answer is not None:
            self._refuse()
        else:
            self._fail(
                Failure(error.TimeoutError(f"no answer to the upgrade in {self._timeout} s"))
            )

    def _cancelled(self, done: Deferred[IProtocol]) -> None:
        if self._connecting is not None:
            # Its failure is told.
            self._connecting.cancel()
        self._end()

    def connect(self, endpoint: IStreamClientEndpoint) -> Deferred[IProtocol]:
        """
        Have C{endpoint} connect this.

        @return: C{done}.
        """
        done = self.done
        connecting = endpoint.connect(_Only(self))
        if not connecting.called:
            self._connecting = connecting
            connecting.addTimeout(self._timeout, self._clock, onTimeoutCancel=self._tooSlow)
        connecting.addCallbacks(self._isConnected, self._isNotConnected)
        return done

    def _isConnected(self, _: IProtocol) -> None:
        self._connecting = None

    def _isNotConnected(self, failure: Failure) -> None:
        self._connecting = None
        self._fail(failure)

    def _tooSlow(self, result: object, timeout: float) -> None:
        raise NoConnection(f"no connection in {timeout:g} s")

    def _read(self, data: bytes) -> None:
        try:
            if not self._asked:
                raise MalformedAnswer("the server spoke before it was asked")
            self._reader.feed(data)
            answer = self._reader.answer
            if answer is None:
                return
            if self._form.accepts(answer):
                self._open(answer)
                return
        except MalformedAnswer:
            self._fail(Failure())
            return
        self._reader.readBody()
        if self._reader.complete:
            self._refuse()
        elif self._timer is not None and self._timer.getTime() > (
            self._clock.seconds() + BODY_TIMEOUT
        ):
            self._timer.reset(BODY_TIMEOUT)

    def _open(self, answer: Answer) -> None:
        protocol = self._factory.buildProtocol(self.transport.getPeer())  # type: ignore[union-attr]
        if protocol is None:
            self._fail(Failure(error.NoProtocol()))
            return
        self._opening = True
        try:
            self._successor = self._form.open(self.transport, answer, protocol)
        finally:
            self._opening = False
        self._over = True
        self._stopTimer()
        # A stream lives long, and this with it: the answer is of no more use.
        done = self.done
        del self._reader, self._form, self._factory, self.done
        self._ready = None
        done.callback(protocol)
        if self._lostWhileOpening is not None:
            self._successor.connectionLost(self._lostWhileOpening)
        elif answer.rest:
            self._successor.dataReceived(answer.rest)

    def _refuse(self) -> None:
        answer = self._reader.answer
        assert answer is not None
        self._fail(
            Failure(UpgradeRefused(answer.status, answer.reason, answer.headers, self._reader.body))
        )

    def _fail(self, failure: Failure) -> None:
        if not self._over:
            self._end()
            self.done.errback(failure)

    def _end(self) -> None:
        self._over = True
        self._stopTimer()
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]

    def _stopTimer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


class _Only(Factory):
    """Builds the exchange."""

    noisy = False  # two log lines for each dial say nothing

    def __init__(self, exchange: UpgradeExchange) -> None:
        self._exchange = exchange

    def buildProtocol(self, addr: IAddress | None) -> UpgradeExchange:
        return self._exchange


@implementer(IStreamClientEndpoint)
class UpgradeEndpoint:
    """
    Connects through an endpoint, then by an upgrade.

    C{connect} opens the connection, waits for C{ready}, asks, and fires with the
    factory's protocol once that is connected to its carrier.  It fails with
    L{UpgradeRefused}, L{MalformedAnswer}, L{error.TimeoutError
    <twisted.internet.error.TimeoutError>}, the failure of C{ready}, or the
    connection's own error; L{error.ConnectionLost
    <twisted.internet.error.ConnectionLost>} where the server closed before it
    answered.  Cancelling it drops the connection.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        *,
        timeout: float,
        ready: Deferred[Any] | None,
    ) -> None:
        self._clock: IReactorTime = reactor
        self._endpoint = endpoint
        self._timeout = timeout
        self._ready = ready

    def _form(self) -> CarrierForm:
        """A form for one exchange."""
        raise AssertionError("an upgrade endpoint has a form")

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        exchange = UpgradeExchange(
            self._clock, self._form(), protocolFactory, timeout=self._timeout, ready=self._ready
        )
        return exchange.connect(self._endpoint)


__all__ = [
    "BODY_TIMEOUT",
    "DIRECT",
    "MAX_BODY",
    "USER_AGENT",
    "Answer",
    "AnswerReader",
    "CarrierForm",
    "CarrierURL",
    "Headers",
    "MalformedAnswer",
    "NoConnection",
    "UpgradeEndpoint",
    "UpgradeExchange",
    "UpgradeRefused",
    "addressEndpoint",
    "checkedHeaders",
    "endpointFor",
    "firstHeader",
    "requestHead",
]
