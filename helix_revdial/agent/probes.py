# -*- test-case-name: tests.integration.test_diagnosis -*-
"""
What a look at the way to a server puts on that way: connections that are made to see
whether they can be, one handshake, one request.

Each opens what it needs, and is gone when it knows what it is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, cast

from OpenSSL import SSL, crypto
from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import (
    IHandshakeListener,
    IHostResolution,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ..revdial.exchange import (
    USER_AGENT,
    Answer,
    CarrierForm,
    CarrierURL,
    MalformedAnswer,
    UpgradeEndpoint,
    UpgradeRefused,
    requestHead,
)
from .failures import connectReason
from .findings import Finding, Heard, plain

ANSWER = 10.0
"""Seconds for an answer to HTTP, as an agent waits."""

STEP = 5.0
"""Seconds for a step: a name, a connection, an answer."""


async def getPage(
    reactor: Any, endpoint: IStreamClientEndpoint, url: CarrierURL, *, limit: float
) -> Heard:
    """
    A plain GET; only the beginning of the body is read.

    @param limit: Seconds for the connection, and again for the answer.
    """
    try:
        await _Get(reactor, endpoint, url, limit).connect(quiet(Protocol))
    except UpgradeRefused as answer:
        return Heard(answer.status, answer.reason, answer.headers, answer.body)
    raise AssertionError("a plain GET switches to nothing")


class _Get(UpgradeEndpoint):
    """An exchange that asks for no upgrade, so that every answer ends it."""

    def __init__(
        self, reactor: Any, endpoint: IStreamClientEndpoint, url: CarrierURL, timeout: float
    ) -> None:
        super().__init__(reactor, endpoint, timeout=timeout, ready=None)
        self._head = requestHead(
            b"GET",
            url.path,
            [
                (b"Host", url.hostHeader()),
                (b"User-Agent", USER_AGENT),
                (b"Accept", b"application/json"),
                (b"Connection", b"close"),
            ],
        )

    def _form(self) -> CarrierForm:
        return _GetForm(self._head)


class _GetForm:
    def __init__(self, head: bytes) -> None:
        self.head = head

    def begin(self, transport: Any, head: bytes, seconds: float | None) -> None:
        transport.write(head)

    def accepts(self, answer: Answer) -> bool:
        if answer.status == 101:
            raise MalformedAnswer("the server switched protocols unasked")
        return False

    def open(self, transport: Any, answer: Answer, protocol: IProtocol) -> IProtocol:
        raise AssertionError("a plain GET opens nothing")


def quiet(build: Callable[[], Protocol]) -> IProtocolFactory:
    """A factory that does not log its own life."""
    factory: Factory = Factory.forProtocol(build)
    factory.noisy = False
    return factory


class Leaving(Protocol):
    """Is connected, and goes."""

    def connectionMade(self) -> None:
        cast(Any, self.transport).abortConnection()


@implementer(IHandshakeListener)
class Handshake(Protocol):
    """
    Waits for a TLS handshake.

    @ivar done: Fires when it is complete, errbacks when it never will be.
    @ivar certificate: The server's.
    @ivar version: Of TLS.
    """

    def __init__(self) -> None:
        self.done: Deferred[None] = Deferred()
        self.certificate: crypto.X509 | None = None
        self.version = "TLS"
        self._fired = False

    def handshakeCompleted(self) -> None:
        transport = cast(Any, self.transport)
        self.certificate = transport.getPeerCertificate()
        self.version = str(transport.getHandle().get_protocol_version_name())
        self._fire(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._fire(reason)

    def leave(self) -> None:
        """Close, whatever is known by then."""
        if self.transport is not None:
            cast(Any, self.transport).abortConnection()
        # Nobody waits any more.
        self.done.addErrback(lambda _: None)

    def _fire(self, result: Failure | None) -> None:
        if not self._fired:
            self._fired = True
            if result is None:
                self.done.callback(None)
            else:
                self.done.errback(result)


@implementer(IOpenSSLClientConnectionCreator)
class Unverified:
    """
    TLS with anybody, to see which certificate he has; nothing is ever sent over it.
    """

    def __init__(self, host: str) -> None:
        self._host = host

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_verify(SSL.VERIFY_NONE, lambda *_: True)
        connection = SSL.Connection(context, None)
        try:
            ip_address(self._host)
        except ValueError:
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        return connection


@implementer(IResolutionReceiver)
class Addresses:
    """
    Collects the addresses of a name.

    @ivar done: Fires with them, in order and each once.
    """

    def __init__(self) -> None:
        self.done: Deferred[list[str]] = Deferred()
        self._found: list[str] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Nothing to do: what comes too late is not looked at."""

    def addressResolved(self, address: Any) -> None:
        if address.host not in self._found:
            self._found.append(address.host)

    def resolutionComplete(self) -> None:
        if not self.done.called:
            self.done.callback(self._found)


def noAnswer(what: str, failed: Exception) -> Finding:
    """
    Why there was no answer at all, though the port is open.

    @param what: What was asked for.
    """
    if isinstance(failed, MalformedAnswer):
        return Finding(
            what,
            "failed",
            f"what answers does not speak HTTP: {failed}",
            "see that host and port are the API's; a port for TLS needs https://",
        )
    if isinstance(failed, error.TimeoutError | DeferredTimeoutError):
        return Finding(
            what,
            "failed",
            f"connected, but no answer within {ANSWER:g} s",
            "the server hangs, or something in between swallows what it does not know: ask "
            "from another network, or over https",
        )
    reason = plain(connectReason(failed) or str(failed) or type(failed).__name__)
    if isinstance(failed, SSL.Error):
        # In TLS 1.3 a server judges the client's certificate when, to the client, the
        # handshake is over (RFC 8446, 4.4.2.4).
        advice = (
            "the server ends TLS: if it wants a client certificate, give one that it trusts "
            "(--client-certificate, --client-key); else something in between cuts TLS off"
        )
    else:
        advice = (
            "something closes the connection instead of answering: a port for TLS needs "
            "https://, a server that wants client certificates --client-certificate; else a "
            "firewall or proxy in between does not let this through"
        )
    return Finding(what, "failed", f"connected, then: {reason}", advice)


__all__ = [
    "ANSWER",
    "STEP",
    "Addresses",
    "Handshake",
    "Leaving",
    "Unverified",
    "getPage",
    "noAnswer",
    "quiet",
]
