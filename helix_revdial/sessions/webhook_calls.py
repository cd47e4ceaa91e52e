# -*- test-case-name: tests.sessions.test_webhook_calls,tests.integration.test_webhook_calls -*-
"""
One POST to a server that a user named.

The other end may be anything: a port of our own network, a server that answers byte by
byte, or without end, or that leads elsewhere.  So:

  - the name is resolved once, the address is judged, and the connection goes to that
    very address; TLS still asks for the certificate of the name;
  - no redirect is followed, no proxy and no environment is asked;
  - head and body of the answer have a limit (L{MAX_HEAD}, L{MAX_ANSWER}), and all of it,
    from the name to the answer, has one deadline;
  - of the answer only the status, and C{Retry-After}, are looked at.

Knows no webhooks: it is told what to send.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import h11
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionClosed, ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IHostnameResolver, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import VerificationError, optionsForClientTLS, platformTrust
from twisted.python.failure import Failure

from helix_revdial.sessions.public_addresses import (
    Address,
    AddressRefused,
    Network,
    isPublic,
    publicAddress,
)

MAX_HEAD: Final = 16 * 1024
"""Bytes of an answer's head."""

MAX_ANSWER: Final = 64 * 1024
"""Bytes of an answer that are taken, in all."""

MAX_URL: Final = 2048

MAX_HOST: Final = 253
"""Characters of a host's name (RFC 1035, 3.1)."""

CLOSE: Final = 2.0
"""Seconds for the other end to close, before the connection is dropped."""


_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")


class CallFailed(Exception):
    """There was no answer.  The text is for the owner of the URL, and says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """
    What a URL says.

    @ivar origin: C{https://host:port}, in lower case.
    @ivar path: what is asked for, with its query.
    """

    secure: bool
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """Whose server it is."""
        return f"{'https' if self.secure else 'http'}://{self._bracketed}:{self.port}"

    @property
    def hostHeader(self) -> str:
        """The value of C{Host}."""
        usual = self.port == (443 if self.secure else 80)
        return self._bracketed if usual else f"{self._bracketed}:{self.port}"

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


@dataclass(frozen=True, slots=True)
class Answer:
    """
    @ivar retryAfter: the seconds that the other end asks for, if it does.
    """

    status: int
    retryAfter: float | None = None


@dataclass(frozen=True, slots=True)
class CallSettings:
    """
    @ivar allowed: networks that are not public and may be called.
    @ivar timeout: seconds for one call.
    @ivar trust: whose certificates are believed; C{None}: the platform's.
    """

    allowed: Sequence[Network] = ()
    timeout: float = 10.0
    trust: Any = field(default=None, repr=False)


def parseURL(url: str) -> Target:
    """
    @raise ValueError: for what is no http or https URL of a server; the text says why.
    """
    if len(url) > MAX_URL or not all(0x21 <= ord(c) <= 0x7E for c in url):
        raise ValueError(f"is no URL: up to {MAX_URL} visible ASCII characters")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("is no URL") from None
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https"):
        raise ValueError("is no http or https address")
    if parts.username is not None or parts.password is not None:
        raise ValueError("has a user or a password")
    if not parts.hostname or not _isHost(parts.hostname):
        raise ValueError("has no host")
    try:
        port = parts.port
    except ValueError:
        raise ValueError("has no port between 1 and 65535") from None
    if port == 0:
        raise ValueError("has no port between 1 and 65535")
    path = parts.path or "/"
    return Target(
        scheme == "https",
        parts.hostname.lower(),
        port or (443 if scheme == "https" else 80),
        f"{path}?{parts.query}" if parts.query else path,
    )


def _isHost(text: str) -> bool:
    """Whether it is an address, or a name that a resolver can be asked for."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return len(text) <= MAX_HOST and _NAME.fullmatch(text) is not None
    # The part of an address that names an interface is of no use to others.
    return "%" not in text


def problemOf(url: str, allowed: Sequence[Network]) -> str:
    """
    What is wrong with a URL as far as it can be told without asking anybody; empty if
    nothing is.  A name is judged when it is called.
    """
    try:
        target = parseURL(url)
    except ValueError as error:
        return str(error)
    try:
        address = ipaddress.ip_address(target.host)
    except ValueError:
        last = target.host.rstrip(".").rpartition(".")[2]
        if last.isdigit() or last.startswith("0x"):
            # A number that some resolvers take for an address.
            return "has no host"
        if last != "localhost":
            return ""
        address = ipaddress.IPv4Address("127.0.0.1")
    return "" if isPublic(address, allowed) else "is at an address that is not public"


class Calls:
    """
    Makes them.

    @ivar settings: those of now.
    """

    def __init__(
        self, reactor: Any, resolver: IHostnameResolver, settings: CallSettings | None = None
    ) -> None:
        """
        @param reactor: for sockets and the time.
        """
        self.settings = settings or CallSettings()
        self._reactor = reactor
        self._resolver = resolver

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """
        POST.

        @param headers: beside those of HTTP itself.
        @raise CallFailed: There is no answer.
        """
        settings = self.settings
        calling = Deferred.fromCoroutine(self._post(url, headers, body, settings))
        calling.addTimeout(settings.timeout, self._reactor)
        try:
            return await calling
        except TookTooLong:
            raise CallFailed(f"there was no answer within {settings.timeout:g} seconds") from None
        except AddressRefused as error:
            raise CallFailed(str(error)) from None
        except (ConnectError, ConnectionClosed, OSError, SSL.Error, VerificationError) as error:
            raise CallFailed(_why(error)) from None

    async def _post(
        self, url: str, headers: Mapping[str, str], body: bytes, settings: CallSettings
    ) -> Answer:
        try:
            target = parseURL(url)
        except ValueError as error:
            raise CallFailed(f"the address {error}") from None
        address = await publicAddress(self._resolver, self._reactor, target.host, settings.allowed)
        fields = [
            ("Host", target.hostHeader),
            ("Connection", "close"),
            ("Content-Length", str(len(body))),
            *headers.items(),
        ]
        request = h11.Request(method="POST", target=target.path, headers=fields)
        exchange = _Exchange(self._reactor, request, body)
        endpoint = self._endpoint(target, address, settings)
        await endpoint.connect(Factory.forProtocol(lambda: exchange))
        return await exchange.answered

    def _endpoint(
        self, target: Target, address: Address, settings: CallSettings
    ) -> IStreamClientEndpoint:
        kind = TCP6ClientEndpoint if address.version == 6 else TCP4ClientEndpoint
        endpoint: Any = kind(self._reactor, str(address), target.port, timeout=settings.timeout)
        if target.secure:
            trust = platformTrust() if settings.trust is None else settings.trust
            endpoint = wrapClientTLS(optionsForClientTLS(target.host, trustRoot=trust), endpoint)
        return endpoint  # type: ignore[no-any-return]


class _Exchange(Protocol):
    """
    A request and its answer on a connection of its own.

    @ivar answered: fires when the answer is whole, or as much of it has come as is
        taken.  When it is cancelled, with what there is.
    """

    def __init__(self, clock: Any, request: h11.Request, body: bytes) -> None:
        self.answered: Deferred[Answer] = Deferred(self._cancelled)
        self._clock = clock
        self._request = request
        self._body = body
        self._framing = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._answer: Answer | None = None
        self._taken = 0
        self._over = False
        self._lost = False
        self._closing: IDelayedCall | None = None

    @property
    def _socket(self) -> Any:
        return self.transport

    def connectionMade(self) -> None:
        framing = self._framing
        for event in (self._request, h11.Data(data=self._body), h11.EndOfMessage()):
            self._socket.write(framing.send(event) or b"")

    def dataReceived(self, data: bytes) -> None:
        if self._over:
            return
        self._taken += len(data)
        self._framing.receive_data(data)
        self._read()
        if self._taken > MAX_ANSWER:
            self._end("the answer is too long")

    def _read(self) -> None:
        try:
            while not self._over:
                event = self._framing.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return
                if isinstance(event, h11.Response):
                    self._answer = Answer(event.status_code, _retryAfter(event))
                elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                    self._end("there was no answer")
        except h11.RemoteProtocolError:
            self._end(
                "the answer is no HTTP, or broke off" if self._taken else "there was no answer"
            )

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        if self._over:
            return
        if reason.check(ConnectionDone) is not None:
            # A body without a length ends so.
            self._framing.receive_data(b"")
            self._read()
        self._end(f"the connection broke: {_why(reason.value)}")

    def _cancelled(self, deferred: Deferred[Answer]) -> None:
        self._over = True
        self._drop()
        if self._answer is not None:
            deferred.callback(self._answer)

    def _end(self, otherwise: str) -> None:
        """There is an answer by now, or will be none."""
        if self._over:
            return
        self._over = True
        if not self._lost:
            self._closing = self._clock.callLater(CLOSE, self._drop)
            self._socket.loseConnection()
        if self._answer is None:
            self.answered.errback(CallFailed(otherwise))
        else:
            self.answered.callback(self._answer)

    def _drop(self) -> None:
        self._socket.abortConnection()


def _retryAfter(response: h11.Response) -> float | None:
    for name, value in response.headers:
        if name == b"retry-after" and value.isdigit() and len(value) < 8:
            return float(value)
    return None


def _why(error: BaseException | None) -> str:
    """A failure in a few words that hold nothing of what was sent."""
    match error:
        case VerificationError():
            return "the certificate is not that of the host"
        case SSL.Error():
            reasons = [str(one[-1]) for one in error.args[0]] if error.args else []
            return f"TLS failed: {', '.join(reasons)[:200]}" if reasons else "TLS failed"
        case OSError() | ConnectError() | ConnectionClosed():
            text = error.__doc__ or type(error).__name__
            return " ".join(text.split()).rstrip(".").lower()[:100]
        case _:
            return type(error).__name__
