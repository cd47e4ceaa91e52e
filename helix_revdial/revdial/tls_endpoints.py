# -*- test-case-name: tests.integration.test_tls_transport -*-
"""
TLS over an endpoint: on the connection's own socket where that can be, else Twisted's.

This is the one place where that is chosen, for each connection as it is made: once TLS
has begun it stays with what it began with.  On its own socket it runs where

  - the connection is a plain socket of Twisted's, or wraps one and has no byte of it in
    hand (a PROXY header that was read apart, a CONNECT that was answered);
  - the reactor watches descriptors of ours (C{IReactorFDSet});
  - whoever makes the sessions can make one on a socket (L{ISocketTLS}).

Everything else (TLS inside TLS, a transport in memory, other reactors, options of
Twisted's own) runs through Twisted's C{TLSMemoryBIOProtocol}.  Both get their sessions
from the same object, made from the same contexts: there is one policy.
"""

from __future__ import annotations

import sys
from typing import Any, cast

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IReactorFDSet,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from helix_revdial.revdial.socket_streams import plainStream
from helix_revdial.revdial.tls_socket import TLSSocket
from helix_revdial.revdial.tls_transport import TLSTransport


class ISocketTLS(Interface):
    """
    Makes TLS sessions on sockets.

    Beside what Twisted asks for (C{IOpenSSLClientConnectionCreator} or
    C{IOpenSSLServerConnectionCreator}), and from the same contexts.
    """

    def connectionOnSocket(transport: Any, socket: Any) -> SSL.Connection:
        """
        Make a session that has not begun.

        @param transport: Has C{failVerification}, for a certificate that is refused.
        @param socket: What it is to be on.
        """


class _Beneath(Protocol):
    """Sits on the connection, and decides what runs TLS on it."""

    def __init__(self, owner: TLSFactory, protocol: IProtocol) -> None:
        self._owner = owner
        self.wrapped = protocol
        self._tls: TLSTransport | None = None
        self._memory: IProtocol | None = None

    def connectionMade(self) -> None:
        owner = self._owner
        # Whether there are bytes in hand does not show, but nobody passes them on before
        # this returns, and then they come as dataReceived.
        stream = plainStream(self.transport) if owner.onSockets else None
        if stream is None or stream.tls is not None:
            memory: Any = owner.memory.buildProtocolAround(self.wrapped)
            self._memory = memory
            memory.makeConnection(self.transport)
            return
        parked: Any = stream.transport
        tls = TLSTransport(owner.reactor, self.wrapped, parked, self.transport)
        self._tls = tls
        made = owner.creator.connectionOnSocket(tls, parked.getHandle())
        if owner.isClient:
            made.set_connect_state()
        else:
            made.set_accept_state()
        tls.begin(TLSSocket(made))

    def dataReceived(self, data: bytes) -> None:
        if self._memory is not None:
            self._memory.dataReceived(data)
        else:
            # Read from the socket before we had it: TLS cannot be told of them.
            cast(TLSTransport, self._tls).abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._memory is not None:
            self._memory.connectionLost(reason)
        elif self._tls is not None:
            self._tls.lost(reason)


class _Memory(TLSMemoryBIOFactory):
    """Twisted's TLS around a protocol that is built already."""

    noisy = False

    def buildProtocolAround(self, protocol: IProtocol) -> IProtocol:
        """The protocol for a connection."""
        return cast(IProtocol, self.protocol(self, protocol))


class TLSFactory(Factory):
    """
    Builds what sits on connections and runs TLS on them.

    @ivar onSockets: Whether TLS may run on their sockets.
    """

    noisy = False

    def __init__(
        self, reactor: Any, creator: Any, wrapped: IProtocolFactory, *, isClient: bool
    ) -> None:
        """
        @param reactor: Watches sockets and tells the time.
        @param creator: Makes the sessions.
        @param wrapped: Builds what goes on top.
        """
        self.reactor = reactor
        self.creator = creator
        self.isClient = isClient
        self.wrapped = wrapped
        self.memory = _Memory(creator, isClient, wrapped, clock=reactor)
        self.onSockets = (
            sys.platform == "linux"
            and ISocketTLS.providedBy(creator)
            and IReactorFDSet.providedBy(reactor)
        )

    def doStart(self) -> None:
        """The port listens, or the connection is tried."""
        super().doStart()
        self.wrapped.doStart()

    def doStop(self) -> None:
        """No more."""
        self.wrapped.doStop()
        super().doStop()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        protocol = self.wrapped.buildProtocol(cast(Any, addr))
        return None if protocol is None else _Beneath(self, protocol)


@implementer(IStreamServerEndpoint)
class TLSServerEndpoint:
    """Listens on another endpoint, with TLS."""

    def __init__(self, reactor: Any, creator: Any, endpoint: IStreamServerEndpoint) -> None:
        """
        @param reactor: Watches sockets and tells the time.
        @param creator: An C{IOpenSSLServerConnectionCreator}, best also L{ISocketTLS}.
        """
        self._reactor = reactor
        self._creator = creator
        self._endpoint = endpoint

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        factory = TLSFactory(self._reactor, self._creator, protocolFactory, isClient=False)
        return cast("Deferred[Any]", self._endpoint.listen(cast(IProtocolFactory, factory)))


@implementer(IStreamClientEndpoint)
class TLSClientEndpoint:
    """Connects by another endpoint, with TLS."""

    def __init__(self, reactor: Any, creator: Any, endpoint: IStreamClientEndpoint) -> None:
        """
        @param reactor: Watches sockets and tells the time.
        @param creator: An C{IOpenSSLClientConnectionCreator}, best also L{ISocketTLS}.
        """
        self._reactor = reactor
        self._creator = creator
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        factory = TLSFactory(self._reactor, self._creator, protocolFactory, isClient=True)
        connecting: Any = self._endpoint.connect(cast(IProtocolFactory, factory))
        return cast("Deferred[IProtocol]", connecting.addCallback(_onTop))


def _onTop(beneath: _Beneath) -> IProtocol:
    return beneath.wrapped


__all__ = ["ISocketTLS", "TLSClientEndpoint", "TLSFactory", "TLSServerEndpoint"]
