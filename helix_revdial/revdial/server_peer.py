# -*- test-case-name: tests.revdial.test_server_peer -*-
"""
A server given by name is resolved once for each control connection.

A data connection belongs to the server that the control connection reached: another
address of the same name may be another server, which knows nothing of the dial, and
asking the resolver costs a dial a thread and a turn.  So L{PeerFirst} connects to the
address of the control connection's peer (L{KnownPeer}), and only where nothing accepts
there asks for the name again, once until the next control connection.

Not through a proxy, whose business names are then.  TLS goes on top and verifies the
name, whichever address was taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from twisted.internet import error
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from zope.interface import implementer

PEER_TIMEOUT = 3.0
"""Seconds in which a known address has to accept; then its name is asked for."""


class KnownPeer:
    """
    Where a server's control connection leads.

    @ivar host: A literal address; C{None} while none is known.
    """

    __slots__ = ("host",)

    def __init__(self) -> None:
        self.host: str | None = None

    def learn(self, address: IAddress) -> None:
        """A control connection is up, and this is its peer."""
        host = address.host if isinstance(address, IPv4Address | IPv6Address) else ""
        isLiteral = isIPAddress(host) or (isIPv6Address(host) and "%" not in host)
        self.host = host if isLiteral else None

    def forget(self) -> None:
        """Ask for the name."""
        self.host = None


@implementer(IStreamClientEndpoint)
class PeerFirst:
    """Connects to a known address, or by the name where there is none that accepts."""

    def __init__(
        self,
        clock: IReactorTime,
        peer: KnownPeer,
        toAddress: Callable[[str], IStreamClientEndpoint],
        byName: IStreamClientEndpoint,
    ) -> None:
        """
        @param toAddress: Makes an endpoint for a literal address.
        @param byName: Asks the resolver.
        """
        self._clock = clock
        self._peer = peer
        self._toAddress = toAddress
        self._byName = byName

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        host = self._peer.host
        if host is None:
            return self._byName.connect(protocolFactory)
        connecting = self._toAddress(host).connect(protocolFactory)
        if not connecting.called:
            connecting.addTimeout(PEER_TIMEOUT, self._clock, onTimeoutCancel=_tooSlow)
        return connecting.addErrback(self._failed, host, protocolFactory)

    def _failed(self, failure: Failure, host: str, factory: IProtocolFactory) -> Any:
        failure.trap(error.ConnectError)
        if self._peer.host == host:
            self._peer.forget()
        return self._byName.connect(factory)


def _tooSlow(result: object, timeout: float) -> NoReturn:
    raise error.TimeoutError(f"no connection in {timeout:g} s")


__all__ = ["PEER_TIMEOUT", "KnownPeer", "PeerFirst"]
