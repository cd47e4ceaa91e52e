# -*- test-case-name: tests.integration.test_socket_connect -*-
"""
One connection to one address, on one socket.

Twisted's own client endpoints ask a resolver, make a connector, wrap the factory and
the protocol, and wait a turn of the reactor before they begin: a third of what a dial
costs an agent.  L{SocketEndpoint} is for where nothing of that is needed: the address
is a literal.  Its transport is Twisted's (C{tcp.Connection}), so that whatever works on
one works on this.

Invariants:

  - A peer on this host that listens is connected when C{connect} returns, in the
    same turn of the reactor.
  - A protocol that pauses its transport as it is connected is never registered for
    reading: a relay that takes the socket over has nothing to undo.
  - However an attempt ends, it leaves no timer, and no socket but the connection's.
  - It fails with Twisted's errors: a timeout with C{TimeoutError}, a cancellation with
    C{ConnectingCancelledError}, everything else with the C{ConnectError} of its number.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from os import strerror
from typing import Any, cast

from twisted.internet import error, tcp
from twisted.internet.abstract import FileDescriptor, isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IReadWriteDescriptor,
    IStreamClientEndpoint,
)
from twisted.internet.posixbase import PosixReactorBase
from twisted.python.failure import Failure
from zope.interface import implementer

CONNECT_TIMEOUT = 30.0
"""Seconds that a peer has to accept, if nothing else is said."""

_UNDER_WAY = frozenset({errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK, errno.EINTR})


class ConnectedSocket(tcp.Connection):
    """
    The transport of a connection that was made here.

    @ivar isWatched: Whether its socket was made with the options of a data connection.
    """

    logstr = "connection"

    isWatched = False

    hasNoDelay = True
    """Whoever makes the socket says that it sends small pieces at once."""

    # close(2) does it: nobody else has the descriptor.
    _shouldShutdown = False

    def __init__(self, made: socket.socket, protocol: IProtocol, reactor: Any, peer: IAddress):
        FileDescriptor.__init__(self, reactor)
        if made.gettimeout() != 0:
            made.setblocking(False)
        self.socket = made
        self.fileno = made.fileno
        self.protocol = protocol
        self.connected = 1
        self._peer = peer
        self._asksForBytes = True
        # The reactor may know us; asking it takes longer.
        self._isReader = self._isWriter = False

    def begin(self) -> None:
        """Connect the protocol, and read unless it wants to wait."""
        self.protocol.makeConnection(self)
        self.readIfWanted()

    def readIfWanted(self) -> None:
        """The protocol is connected: read, unless it has paused us."""
        if self._asksForBytes and self.connected and not self.disconnecting:
            self.startReading()

    def stopReading(self) -> None:
        self._asksForBytes = False
        if self._isReader:
            self._isReader = False
            super().stopReading()

    def startReading(self) -> None:
        self._asksForBytes = self._isReader = True
        super().startReading()

    def stopWriting(self) -> None:
        if self._isWriter:
            self._isWriter = False
            super().stopWriting()

    def startWriting(self) -> None:
        self._isWriter = True
        super().startWriting()

    def receiveNow(self) -> bool:
        """
        Receive what has come already, paused or not.

        @return: Whether something had.
        """
        try:
            data = self.socket.recv(self.bufferSize)
        except BlockingIOError:
            return False
        except OSError:
            # It is told once; not within the call of whoever asks.
            clock = cast(IReactorTime, self.reactor)
            clock.callLater(0, self.connectionLost, Failure(error.ConnectionLost()))
            return False
        if data:
            self.protocol.dataReceived(data)
        # An end is seen again by whoever reads next.
        return bool(data)

    def getPeer(self) -> IAddress:
        return self._peer

    def getHost(self) -> IAddress:
        host, port = self.socket.getsockname()[:2]
        if self.socket.family == socket.AF_INET6:
            return IPv6Address("TCP", host, port)
        return IPv4Address("TCP", host, port)


@implementer(IStreamClientEndpoint)
class SocketEndpoint:
    """
    Connects to a literal address over TCP.
    """

    @staticmethod
    def suits(reactor: Any, host: str) -> bool:
        """Whether C{host} is a literal, and C{reactor} one that watches real sockets."""
        return isinstance(reactor, PosixReactorBase) and (
            isIPAddress(host) or (isIPv6Address(host) and "%" not in host)
        )

    def __init__(
        self, reactor: Any, host: str, port: int, *, timeout: float = CONNECT_TIMEOUT
    ) -> None:
        """
        @param reactor: Watches the socket, and times the attempt.
        @param host: An IPv4 or IPv6 address.
        @param timeout: Seconds that the peer has to accept.
        """
        self.reactor = reactor
        self.timeout = timeout
        self.sockaddr: tuple[str, int] = (host, port)
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET
        kind = IPv6Address if ":" in host else IPv4Address
        self.address: IAddress = kind("TCP", host, port)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        attempt = _Attempt(self, protocolFactory.buildProtocol)
        attempt.start()
        return attempt.result


@implementer(IReadWriteDescriptor)
class _Attempt:
    """One attempt."""

    __slots__ = ("_build", "_endpoint", "_over", "_socket", "_timer", "result")

    def __init__(
        self, endpoint: SocketEndpoint, build: Callable[[IAddress], IProtocol | None]
    ) -> None:
        self.result: Deferred[IProtocol] = Deferred(self._cancelled)
        self._endpoint = endpoint
        self._build = build
        self._socket: socket.socket | None = None
        self._timer: IDelayedCall | None = None
        self._over = False

    def start(self) -> None:
        """Begin, and be done if the peer is on this host."""
        endpoint = self._endpoint
        try:
            made = socket.socket(
                endpoint.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
        except OSError as failed:
            self._fail(error.ConnectBindError(failed.errno, failed.strerror))
            return
        self._socket = made
        number = made.connect_ex(endpoint.sockaddr)
        if number in _UNDER_WAY:
            # Over loopback the peer's answer has come, though the first call did not
            # wait for it.
            number = made.connect_ex(endpoint.sockaddr)
        if number in _UNDER_WAY:
            self._timer = endpoint.reactor.callLater(endpoint.timeout, self._timedOut)
            endpoint.reactor.addWriter(self)
        else:
            self._settled(0 if number == errno.EISCONN else number)

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        return "connecting"

    def doRead(self) -> None:
        """Nothing is read before the connection is made."""

    def doWrite(self) -> None:
        """The kernel knows how it came out."""
        if self._socket is not None:
            self._endpoint.reactor.removeWriter(self)
            self._settled(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def connectionLost(self, reason: Failure) -> None:
        """The reactor saw a hang-up, or ends."""
        if self._socket is not None:
            number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._fail(_connectError(number or errno.ECONNABORTED))

    def _settled(self, number: int) -> None:
        made = self._socket
        if self._over or made is None:
            return
        if number:
            self._fail(_connectError(number))
            return
        self._over = True
        self._socket = None
        self._stopTimer()
        endpoint = self._endpoint
        protocol: IProtocol | None = None
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            protocol = self._build(endpoint.address)
            if protocol is None:
                raise error.NoProtocol()
            ConnectedSocket(made, protocol, endpoint.reactor, endpoint.address).begin()
        except Exception:
            made.close()
            self.result.errback(Failure())
            return
        self.result.callback(protocol)

    def _timedOut(self) -> None:
        self._timer = None
        self._fail(error.TimeoutError())

    def _cancelled(self, result: Deferred[IProtocol]) -> None:
        self._fail(error.ConnectingCancelledError(self._endpoint.address))

    def _fail(self, why: Exception) -> None:
        if self._over:
            return
        self._over = True
        self._stopTimer()
        made = self._socket
        if made is not None:
            # Before its number is gone, by which the reactor finds it.
            self._endpoint.reactor.removeWriter(self)
            self._socket = None
            made.close()
        self.result.errback(Failure(why))

    def _stopTimer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


def _connectError(number: int) -> Exception:
    found: Exception = error.getConnectError((number, strerror(number)))
    return found


__all__ = ["CONNECT_TIMEOUT", "ConnectedSocket", "SocketEndpoint"]
