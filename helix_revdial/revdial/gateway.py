# -*- test-case-name: tests.revdial.test_gateway -*-
"""
Tunnels from any machine: through a server's stream gateway, as a client endpoint.

The caller's end of what C{docs/wire.md}, section 14, describes: an upgrade with a
user's token, answered when the target is connected.  WebSocket with C{eof}, always:
that has half-close over TLS, and through whatever forwards HTTP.

Invariants:

  - The token goes to the server that was named and nowhere else; it is read again for
    each dial, and stands in no text made here.
  - TLS is verified.
  - A refusal is the L{DialError} that the server's own caller would have got, with the
    server's sentence, or L{GatewayRefused}.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import Deferred
from twisted.internet.error import TimeoutError as NoAnswer
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from zope.interface import implementer

from .data_websocket import DataWebSocketEndpoint
from .errors import (
    DialError,
    DialTimeout,
    NotAllowed,
    NotConnected,
    ReconnectTimeout,
    TargetRefused,
    TargetTimeout,
    TooManyPendingDials,
    TunnelBroke,
)
from .exchange import (
    CarrierURL,
    MalformedAnswer,
    NoConnection,
    UpgradeRefused,
    endpointFor,
    firstHeader,
)
from .features import EOF, FEATURES_HEADER, parseFeatures
from .keepalive import DATA_WATCH, watchPath
from .server_url import API_PATH, ServerURL

CONNECT_TIMEOUT = 10.0
"""Seconds for the connection to the server."""

DIAL_TIMEOUT = 30.0
"""Seconds for a dial, where nobody says otherwise."""

GRACE = 5.0
"""Seconds beyond the dial's for the server's answer to arrive."""

MAX_TOKEN = 8 * 1024
"""Bytes of a token file that are read."""

_SESSION = re.compile(r"ses_[0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{26}")
"""What a session's id looks like."""

_ERRORS: dict[str, type[DialError]] = {
    kind.word: kind
    for kind in (
        NotConnected,
        ReconnectTimeout,
        TooManyPendingDials,
        DialTimeout,
        TargetTimeout,
        TargetRefused,
        TunnelBroke,
        NotAllowed,
    )
}


class GatewayRefused(Exception):
    """
    The server gave no stream, for a reason that is not the dial's.

    @ivar status: The HTTP status.
    @ivar code: The one word for it, where the server gave one.
    """

    def __init__(self, status: int, detail: str, code: str | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


class TokenUnreadable(Exception):
    """The file that should hold the token cannot be used; says why."""


@implementer(IStreamClientEndpoint)
class GatewayEndpoint:
    """
    Connects to a service beside an agent, through a server.

    C{connect} fires when the service is connected.  It fails with a L{DialError} or
    L{GatewayRefused}; with L{MalformedAnswer}, where something else than our server
    answered; or with the connection's own error.  Cancelling it withdraws the dial.
    The protocol's transport is a L{ICarrierTransport
    <helix_revdial.revdial.interfaces.ICarrierTransport>}.

    @ivar server: The server's URL, for people.
    """

    def __init__(
        self,
        reactor: Any,
        server: ServerURL,
        token: Callable[[], str],
        runner: str,
        target: str | None = None,
        *,
        timeout: float = DIAL_TIMEOUT,
        tlsOptions: IOpenSSLClientConnectionCreator | None = None,
        endpoint: IStreamClientEndpoint | None = None,
    ) -> None:
        """
        @param reactor: Opens sockets, resolves names and tells the time.
        @param server: Where the server is.
        @param token: Gives the user's token; what it raises is C{connect}'s error.
        @param runner: The runner's key, or a session's id for that session's runner.
        @param target: The service's name; C{None} for the agent's default.
        @param timeout: Seconds for the dial.
        @param tlsOptions: Other trust than the platform's; it still has to verify the host.
        @param endpoint: Another way to the server.
        """
        self._reactor = reactor
        self._token = token
        self._timeout = timeout
        kind = "sessions" if _SESSION.fullmatch(runner) else "runners"
        base = server.basePath + API_PATH.rpartition("/")[0]
        path = f"{base}/{kind}/{quote(runner, safe='')}/stream"
        if target is not None:
            path += f"?target={quote(target, safe='')}"
        self._url = CarrierURL(server.host, server.port, server.secure, path)
        self._way = _Prompt(
            reactor,
            endpoint or endpointFor(reactor, server.host, server.port, server.secure, tlsOptions),
        )
        self.server = str(server)
        self._text = f"{server} {runner} target={target!r}"

    def __repr__(self) -> str:
        return f"<GatewayEndpoint {self._text}>"

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """
        Dial.

        @param protocolFactory: Builds the protocol for the stream.
        """
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        wait = max(1, math.ceil(self._timeout))
        dialling = DataWebSocketEndpoint(
            self._reactor,
            self._way,
            self._url,
            [
                (b"Authorization", b"Bearer " + self._token().encode("ascii")),
                (FEATURES_HEADER, EOF.encode("ascii")),
                (b"Prefer", b"wait=%d" % wait),
            ],
            eof=True,
            timeout=self._timeout + GRACE,
        ).connect(factory)
        try:
            protocol = await dialling
        except UpgradeRefused as refused:
            raise _errorOf(refused) from None
        except NoConnection:
            raise
        except NoAnswer:
            raise DialTimeout(f"the server did not answer in {self._timeout:g} s") from None
        transport: Any = protocol.transport  # type: ignore[attr-defined]
        offers = firstHeader(transport.responseHeaders, FEATURES_HEADER.lower())
        if EOF not in parseFeatures([offers or b""]):
            transport.abortConnection()
            raise MalformedAnswer("the server gives streams without an end (no eof)")
        # A stream has no heartbeat of its own, and may be idle for hours.
        watchPath(transport, DATA_WATCH)
        return protocol


@implementer(IStreamClientEndpoint)
class _Prompt:
    """An endpoint that connects soon or not at all, and sends small writes at once."""

    def __init__(self, clock: Any, endpoint: IStreamClientEndpoint) -> None:
        self._clock = clock
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        connecting = self._endpoint.connect(protocolFactory)
        connecting.addTimeout(CONNECT_TIMEOUT, self._clock, onTimeoutCancel=self._tooSlow)
        return connecting.addCallback(self._connected)

    def _tooSlow(self, result: object, timeout: float) -> IProtocol:
        raise NoConnection(f"no connection in {timeout:g} s")

    def _connected(self, protocol: IProtocol) -> IProtocol:
        setNoDelay = getattr(getattr(protocol, "transport", None), "setTcpNoDelay", None)
        if setNoDelay is not None:
            setNoDelay(True)
        return protocol


def _errorOf(refused: UpgradeRefused) -> Exception:
    """What a refusal means."""
    media = (refused.header(b"content-type") or b"").partition(b";")[0].strip().lower()
    problem: Any = None
    if media == b"application/problem+json":
        try:
            problem = json.loads(refused.body)
        except ValueError:
            problem = None
    if not isinstance(problem, dict):
        if refused.status == 426 or refused.status < 400:
            return MalformedAnswer(
                f"something on the way to the server lets no WebSocket through ({refused})"
            )
        return GatewayRefused(refused.status, str(refused))
    code = problem.get("code")
    detail = problem.get("detail") or str(refused)
    kind = _ERRORS.get(code) if isinstance(code, str) else None
    if kind is None:
        return GatewayRefused(refused.status, str(detail), code if isinstance(code, str) else None)
    after = refused.header(b"retry-after") or b""
    return kind(
        str(detail), retryAfter=float(after) if after.isdigit() and len(after) < 8 else None
    )


def tokenFromFile(path: str) -> str:
    """
    Read a token.

    @raise TokenUnreadable: It cannot be read, or holds none.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_TOKEN + 1)
    except OSError as error:
        raise TokenUnreadable(f"{path}: {error.strerror or error}") from None
    token = content.strip()
    if not re.fullmatch(rb"[\x21-\x7e]+", token) or len(content) > MAX_TOKEN:
        raise TokenUnreadable(f"{path}: expected a token, one line of ASCII text without spaces")
    return token.decode("ascii")


def trustedBy(host: str, caFile: str) -> IOpenSSLClientConnectionCreator:
    """
    Options for TLS with C{host} that trust the authorities in a file, and no others.

    @param caFile: PEM, one certificate or more.
    @raise ValueError: It holds none.
    @raise OSError: It cannot be read.
    """
    blocks = re.findall(
        rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----",
        Path(caFile).read_bytes(),
        re.DOTALL,
    )
    if not blocks:
        raise ValueError(f"{caFile}: no certificate in PEM")
    try:
        roots = trustRootFromCertificates([Certificate.loadPEM(block) for block in blocks])
    except Exception:
        raise ValueError(f"{caFile}: not a certificate in PEM") from None
    options: IOpenSSLClientConnectionCreator = optionsForClientTLS(host, trustRoot=roots)
    return options


__all__ = [
    "GatewayEndpoint",
    "GatewayRefused",
    "TokenUnreadable",
    "tokenFromFile",
    "trustedBy",
]
