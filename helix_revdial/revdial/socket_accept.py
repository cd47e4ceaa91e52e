# -*- test-case-name: tests.integration.test_socket_accept -*-
"""
A listening port that hands out connections as L{SocketEndpoint
<helix_revdial.revdial.socket_connect.SocketEndpoint>} does.

Twisted's port makes, for each connection, a transport that reads from the start, a log
that buffers, and a name; whoever dials for a connection wants it paused, and sets the
same options on every one.  L{SocketPort} sets them once, on the listening socket, from
which the kernel copies them; what it accepts is a L{ConnectedSocket
<helix_revdial.revdial.socket_connect.ConnectedSocket>}.

Invariants:

  - For everything but the accepting it is Twisted's C{tcp.Port}: C{IListeningPort}.
  - Whatever accept(2) says but "nothing more" is left to Twisted's own way, which keeps a
    descriptor in reserve, and closes what it cannot serve, where there are none left.
  - One failure costs one connection.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, cast

from twisted.internet import tcp
from twisted.internet.interfaces import IAddress, IProtocol, IReactorTime
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from .keepalive import DATA_WATCH, watchSocket
from .socket_connect import ConnectedSocket

BACKLOG = 1024
"""Connections that may wait to be accepted."""

MOST = 64
"""Connections that are accepted in one turn of the reactor."""


class SocketPort(tcp.Port):
    """
    Listens on one address.
    """

    _log = Logger()

    @staticmethod
    def suits(reactor: Any) -> bool:
        """Whether C{reactor} is one that watches real sockets."""
        return isinstance(reactor, PosixReactorBase)

    def __init__(
        self,
        reactor: Any,
        port: int,
        factory: Factory,
        interface: str,
        onConnection: Callable[[IProtocol], None],
    ) -> None:
        """
        @param factory: Builds a protocol for each connection.
        @param onConnection: Told of it when it has its transport, which is not read
            if the protocol has paused it.
        """
        super().__init__(port, factory, BACKLOG, interface, reactor)
        self._onConnection = onConnection
        # Twisted's own way makes transports by this attribute.
        cast(Any, self).transport = self._transportOf

    def startListening(self) -> None:
        """Listen; what is accepted has the options of the listening socket."""
        super().startListening()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        watchSocket(self.socket, DATA_WATCH)

    def doRead(self) -> None:
        """Accept what there is."""
        for _ in range(MOST):
            try:
                made, peer = self.socket.accept()
            except BlockingIOError:
                return
            except OSError:
                super().doRead()
                return
            try:
                self._accepted(made, self._buildAddr(peer))
            except Exception:
                self._log.failure("a connection could not be taken")
                made.close()
            if not self.connected or self.disconnecting:
                return

    def _accepted(self, made: socket.socket, peer: IAddress) -> None:
        factory: Any = self.factory
        protocol = factory.buildProtocol(peer)
        if protocol is None:
            made.close()
            return
        connected = self._transportOf(made, protocol, peer)
        connected.begin()
        self._onConnection(protocol)

    def _transportOf(
        self, made: socket.socket, protocol: IProtocol, peer: Any, *others: object
    ) -> ConnectedSocket:
        """
        The transport of what was accepted.

        @param others: What Twisted's own way gives beside it.  That connects the
            protocol afterwards.
        """
        address = self._buildAddr(peer) if isinstance(peer, tuple) else peer
        connected = ConnectedSocket(made, protocol, self.reactor, address)
        connected.isWatched = True
        if others:
            clock = cast(IReactorTime, self.reactor)
            clock.callLater(0, self._connectedByTwisted, connected, protocol)
        return connected

    def _connectedByTwisted(self, connected: ConnectedSocket, protocol: IProtocol) -> None:
        if connected.connected:
            connected.readIfWanted()
            self._onConnection(protocol)


__all__ = ["SocketPort"]
