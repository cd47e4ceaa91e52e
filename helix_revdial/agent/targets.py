# -*- test-case-name: tests.agent.test_targets -*-
"""
The local services that an agent offers.

Owns how a service is named in settings (C{host:port}, C{unix:///path}), how it
is reached, how long that may take and what is said when it cannot be.  Knows
nothing of servers, dials or tokens.

Invariants:

  - Every dial gets a connection of its own, opened when the dial comes: a
    socket file that was removed and made again is simply found.
  - A service is given at most C{timeout} seconds to accept; nothing else waits
    for it meanwhile.
  - C{localhost} is this host's loopback, whatever a resolver would say (RFC 6761, 6.3):
    it is asked only where nothing answers on 127.0.0.1.
  - Until the data connection is joined, the service's side is paused: a
    service that speaks first (ssh, smtp) loses nothing and fills nothing.
  - What goes wrong is said as one line that names the service as the settings
    do, since that line travels to the person whose dial failed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any, cast
from typing import Protocol as TypingProtocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
)
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    TCPTimedOutError,
)
from twisted.internet.error import TimeoutError as ConnectTimeoutError
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..revdial.errors import DialError, TargetRefused, TargetTimeout
from ..revdial.interfaces import ITarget
from ..revdial.relay import relayPair
from ..revdial.socket_connect import SocketEndpoint
from ..revdial.streams import Prepared
from .failures import connectReason

CONNECT_TIMEOUT = 5.0
"""Seconds a local service has to accept a connection."""

LOOPBACK = "127.0.0.1"

BUSY_PAUSE = 0.02
"""Seconds between tries at a unix socket whose queue is full."""

MAX_SOCKET_PATH = 107
"""Bytes of a unix socket's path: C{sun_path} of unix(7) less its final NUL."""


@dataclass(frozen=True, slots=True)
class HostPort:
    """A TCP service, as the settings name it."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SocketPath:
    """A service on a unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix://{self.path}"


TargetAddress = HostPort | SocketPath


def parseTarget(text: str) -> TargetAddress:
    """
    Read the address of a local service.

    @param text: C{host:port}, C{[ipv6]:port}, C{:port} (this host, as Go's
        C{net.Dial} takes it) or C{unix:///path}.
    @raise ValueError: It is none of these; the text says what to write.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/"):
            raise ValueError(f"{text!r}: a unix socket is written unix:///absolute/path")
        if "\0" in path or len(path.encode()) > MAX_SOCKET_PATH:
            raise ValueError(
                f"{text!r}: the path of a unix socket has at most {MAX_SOCKET_PATH} bytes"
            )
        return SocketPath(path)
    if "://" in text:
        raise ValueError(f"{text!r}: write host:port or unix:///path, not a URL")
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"{text!r}: write host:port or unix:///path")
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
        raise ValueError(f"{text!r}: the port is a number from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        try:
            host = str(IPv6Address(host[1:-1]))
        except ValueError:
            raise ValueError(f"{text!r}: no IPv6 address between the brackets") from None
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, [::1]:9876")
    elif any(character.isspace() or character in "/@[]" for character in host):
        raise ValueError(f"{text!r}: write host:port or unix:///path")
    return HostPort(host or "localhost", int(port))


class RelayPair(TypingProtocol):
    """How two protocols that forward to each other are made."""

    def __call__(self, clock: IReactorTime, *, linger: float) -> tuple[IProtocol, IProtocol]: ...


class _Joins(Factory):
    """
    Builds the local end of a stream for every connection that an attempt makes.

    A host name with several addresses may be connected twice at once; one of the
    two is dropped by the endpoint.  So every connection has a pair of its own.
    """

    noisy = False

    def __init__(self, makePair: Callable[[], tuple[IProtocol, IProtocol]]) -> None:
        self._makePair = makePair
        self._outward: dict[IProtocol, IProtocol] = {}

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        local, outward = self._makePair()
        self._outward[local] = outward
        return cast(Protocol, local)

    def outwardOf(self, winner: IProtocol) -> IProtocol:
        """The end for the data connection, of the connection that the endpoint chose."""
        return self._outward[winner]


@implementer(ITarget)
class LocalTarget:
    """
    A service beside the agent, reached over TCP or a unix socket.

    @ivar address: Where it is.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: TargetAddress,
        *,
        timeout: float = CONNECT_TIMEOUT,
        linger: float = 60.0,
        pair: RelayPair = relayPair,
    ) -> None:
        """
        @param reactor: Provides time, TCP, unix sockets and name resolution.
        @param address: Where the service is.
        @param timeout: Seconds that the service has to accept.
        @param linger: Seconds that a stream may go on after one of its directions
            ended.
        @param pair: Makes the two joined ends.
        """
        self.address = address
        self._reactor = reactor
        self._timeout = timeout
        self._linger = linger
        self._makePair = pair
        self._near: SocketEndpoint | None = None
        self._nearIsAll = True
        if isinstance(address, HostPort):
            host = LOOPBACK if address.host == "localhost" else address.host
            if SocketEndpoint.suits(reactor, host):
                self._near = SocketEndpoint(reactor, host, address.port, timeout=timeout)
                self._nearIsAll = host == address.host

    def __repr__(self) -> str:
        return f"<LocalTarget {self.address}>"

    def open(self) -> Deferred[IProtocol]:
        """See L{ITarget.open}."""
        if self._near is None:
            return self._openSomehow()
        local, outward = self._pair()
        connecting = self._near.connect(Prepared(local))
        return connecting.addCallbacks(lambda _: outward, self._notNear)

    def _notNear(self, failure: Failure) -> Failure | Deferred[IProtocol]:
        if not self._nearIsAll and failure.check(ConnectError):
            return self._openSomehow()
        return self._explained(failure)

    def _openSomehow(self) -> Deferred[IProtocol]:
        """By the endpoint that fits: over a resolver, over a unix socket."""
        attempt: Deferred[IProtocol] = Deferred.fromCoroutine(self._open())
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            attempt.cancel()

        timer = self._clock.callLater(self._timeout, expire)

        def done(result: IProtocol | Failure) -> IProtocol | Failure:
            if timer.active():
                timer.cancel()
            if not isinstance(result, Failure):
                return result
            if expired:
                return Failure(self._explain(ConnectTimeoutError()))
            return self._explained(result)

        return attempt.addBoth(done)

    def _explained(self, failure: Failure) -> Failure:
        failed = failure.value
        assert failed is not None
        if isinstance(failed, DialError | CancelledError | ConnectingCancelledError):
            return failure
        return Failure(self._explain(failed))

    @property
    def _clock(self) -> IReactorTime:
        return cast(IReactorTime, self._reactor)

    def _endpoint(self) -> IStreamClientEndpoint:
        match self.address:
            case SocketPath(path):
                unix = UNIXClientEndpoint(self._reactor, path, timeout=self._timeout)
                return cast(IStreamClientEndpoint, unix)
            case HostPort(host, port):
                try:
                    version = ip_address(host).version
                except ValueError:
                    return HostnameEndpoint(self._reactor, host, port, timeout=self._timeout)
                if version == 4:
                    return TCP4ClientEndpoint(self._reactor, host, port, timeout=self._timeout)
                return TCP6ClientEndpoint(self._reactor, host, port, timeout=self._timeout)

    async def _open(self) -> IProtocol:
        while True:
            joins = _Joins(self._pair)
            try:
                local = await self._endpoint().connect(joins)
            except ConnectError as error:
                if not self._queueIsFull(error):
                    raise
                # A blocking connect(2) would wait here for the service to accept.
                # Twisted's, on a unix socket, gives up at once: so we wait.
                await deferLater(self._clock, BUSY_PAUSE)
                continue
            return joins.outwardOf(local)

    def _queueIsFull(self, error: ConnectError) -> bool:
        # EAGAIN of connect(2) on a unix socket reaches us as a connection that was
        # lost before it was made, which carries no number.
        return (
            isinstance(self.address, SocketPath)
            and type(error) is ConnectError
            and error.osError is None
        )

    def _pair(self) -> tuple[IProtocol, IProtocol]:
        return self._makePair(self._clock, linger=self._linger)

    def _explain(self, failed: BaseException) -> DialError:
        """What people are told about a service that could not be reached."""
        if isinstance(failed, ConnectTimeoutError):
            return TargetTimeout(f"{self.address}: no answer within {self._timeout:g} s")
        reason = connectReason(failed)
        if isinstance(failed, TCPTimedOutError):
            return TargetTimeout(f"{self.address}: {reason}")
        if reason is None:
            self._log.failure(
                "target {target} could not be opened", Failure(failed), target=str(self.address)
            )
            reason = "the connection could not be opened"
        return TargetRefused(f"{self.address}: {reason}")


__all__ = [
    "CONNECT_TIMEOUT",
    "HostPort",
    "LocalTarget",
    "SocketPath",
    "TargetAddress",
    "parseTarget",
]
