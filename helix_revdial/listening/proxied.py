# -*- test-case-name: tests.listening.test_proxied -*-
"""
Connections that begin with a PROXY header.

L{ProxiedConnection} sits on the real socket.  It reads the header, and only
then builds the protocol that serves, on a transport that has the header's
addresses; so that whatever serves sees the caller's address from its first
moment, TLS (which comes after the header) included, and needs no knowledge of
proxies.  From then on it passes everything through.

Invariants:

  - A peer that is no named proxy is never read: its connection is refused as it
    is accepted.  (To take it as a direct caller would let it choose, by its
    first bytes, to be somebody else.)
  - What has sent no header yet counts among the strangers, and is cut off after
    a while; a proxy's own address is not counted, since it is everybody's.
  - Half-close is heard by the protocol above exactly if it can hear it; if it
    cannot, the socket does as it does for such a protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast
from typing import Protocol as Structural

from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    IReactorFDSet,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Protocol, ServerFactory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import alsoProvides, directlyProvides, implementer, providedBy

from helix_revdial.listening.apart import ApartReader
from helix_revdial.listening.proxy_header import BadProxyHeader, ProxyHeader, ProxyHeaderReader
from helix_revdial.listening.sources import ProxySources
from helix_revdial.revdial.socket_streams import plainStream

LINES_A_SECOND = 5
"""Refusals that are logged in a second; the others are counted."""


class Strangers(Structural):
    """Counts the connections of those who have not shown who they are."""

    def admit(self, address: str) -> bool:
        """Take a place for that address (empty: none in particular), if there is one."""

    def release(self, address: str) -> None:
        """Give it back."""


class ProxiedTransport:
    """
    The socket, with the addresses of a PROXY header.

    It provides what the socket provides; everything but the addresses is the
    socket's.
    """

    def __init__(self, transport: Any, header: ProxyHeader) -> None:
        self._transport = transport
        self._header = header
        self.write = transport.write
        self.writeSequence = transport.writeSequence
        self.pauseProducing = transport.pauseProducing
        self.resumeProducing = transport.resumeProducing
        directlyProvides(self, providedBy(transport))

    def getPeer(self) -> IAddress:
        """Where the connection came from."""
        return cast(IAddress, self._header.source or self._transport.getPeer())

    def getHost(self) -> IAddress:
        """Where it came to."""
        return cast(IAddress, self._header.destination or self._transport.getHost())

    def plainTransport(self) -> Any:
        """The socket, for a relay that moves its bytes itself: once served, all are passed on."""
        return self._transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class ProxiedConnection(Protocol):
    """One connection of a proxy; see the module."""

    def __init__(self, factory: ProxiedFactory) -> None:
        self._owner = factory
        self._reader = ProxyHeaderReader()
        self._wrapped: IProtocol | None = None
        self._admitted = False
        self._timer: Any = None
        self._header: ProxyHeader | None = None
        self._apart: ApartReader | None = None

    def connectionMade(self) -> None:
        """Take a place among the strangers, and wait for the header."""
        owner = self._owner
        if not owner.strangers.admit(""):
            self._refuse("too many connections wait already")
            return
        self._admitted = True
        self._timer = owner.clock.callLater(owner.patience(), self._tooSlow)
        if IReactorFDSet.providedBy(owner.clock) and plainStream(self.transport) is not None:
            # What follows the header stays in the socket, for whoever reads it there.
            self._apart = ApartReader(owner.clock, self.transport, self._look, self._whole)
            self._apart.start()

    def _look(self, seen: bytes) -> int | None:
        """How many of these bytes are the header's, if that is whole with them."""
        try:
            found = self._reader.feed(seen)
        except BadProxyHeader as error:
            self._refuse(str(error))
            return None
        if found is None:
            return None
        self._header, rest = found
        return len(seen) - len(rest)

    def _whole(self) -> None:
        assert self._header is not None
        self._serve(self._header, b"")

    def dataReceived(self, data: bytes) -> None:
        """The header, then everything else."""
        wrapped = self._wrapped
        if wrapped is not None:
            wrapped.dataReceived(data)
            return
        if not self._admitted:
            return
        try:
            found = self._reader.feed(data)
        except BadProxyHeader as error:
            self._refuse(str(error))
            return
        if found is not None:
            self._serve(*found)

    def _serve(self, header: ProxyHeader, rest: bytes) -> None:
        self._release()
        socket: Any = self.transport
        transport = ProxiedTransport(socket, header)
        wrapped = self._owner.wrapped.buildProtocol(transport.getPeer())
        if wrapped is None:
            socket.abortConnection()
            return
        self._wrapped = wrapped
        if IHalfCloseableProtocol.providedBy(wrapped):
            alsoProvides(self, IHalfCloseableProtocol)
        wrapped.makeConnection(cast(Any, transport))
        if rest:
            wrapped.dataReceived(rest)

    def readConnectionLost(self) -> None:
        """The peer has ended its direction."""
        cast(Any, self._wrapped).readConnectionLost()

    def writeConnectionLost(self) -> None:
        """Our direction has ended."""
        cast(Any, self._wrapped).writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end."""
        self._release()
        wrapped = self._wrapped
        if wrapped is not None:
            wrapped.connectionLost(reason)

    def _tooSlow(self) -> None:
        self._timer = None
        self._refuse(f"no PROXY header within {self._owner.patience():g} s")

    def _refuse(self, why: str) -> None:
        self._release()
        transport: Any = self.transport
        self._owner.logRefused(transport.getPeer(), why)
        transport.abortConnection()

    def _release(self) -> None:
        apart, self._apart = self._apart, None
        if apart is not None:
            apart.stop()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if self._admitted:
            self._admitted = False
            self._owner.strangers.release("")


class ProxiedFactory(ServerFactory):
    """
    Makes L{ProxiedConnection}s for named proxies, and nothing for others.

    @ivar sources: Whom it believes; may be replaced at any time.
    """

    _log = Logger()
    noisy = False

    def __init__(
        self,
        wrapped: IProtocolFactory,
        sources: ProxySources,
        clock: IReactorTime,
        strangers: Strangers,
        patience: Callable[[], float],
    ) -> None:
        """
        @param wrapped: Builds what serves, from the caller's address.
        @param strangers: Counts who waits.
        @param patience: Gives the seconds within which a header must be complete.
        """
        self.wrapped = wrapped
        self.sources = sources
        self.clock = clock
        self.strangers = strangers
        self.patience = patience
        self._second = float("-inf")
        self._lines = 0
        self._unsaid = 0

    def doStart(self) -> None:
        """The port listens."""
        super().doStart()
        self.wrapped.doStart()

    def doStop(self) -> None:
        """The port listens no more."""
        self.wrapped.doStop()
        super().doStop()

    def buildProtocol(self, addr: IAddress | None) -> ProxiedConnection | None:
        """
        @return: C{None}, which closes the connection, for whoever is no proxy.
        """
        if not self.sources.trusts(addr):
            self.logRefused(addr, "not one of the proxies that this port is for")
            return None
        return ProxiedConnection(self)

    def logRefused(self, peer: IAddress | None, why: str) -> None:
        """One line, unless there were too many just now."""
        now = self.clock.seconds()
        if now >= self._second + 1:
            self._second, self._lines = now, 0
        if self._lines >= LINES_A_SECOND:
            self._unsaid += 1
            return
        self._lines += 1
        unsaid, self._unsaid = self._unsaid, 0
        self._log.warn(
            "A connection from {peer} was refused: {why}",
            peer=getattr(peer, "host", "unix"),
            why=why,
            notLogged=unsaid,
        )


@implementer(IStreamServerEndpoint)
class ProxiedEndpoint:
    """Listens on another endpoint, for proxies."""

    def __init__(
        self, endpoint: IStreamServerEndpoint, build: Callable[[IProtocolFactory], ProxiedFactory]
    ) -> None:
        """
        @param build: Makes the factory for what is listened with.
        """
        self._endpoint = endpoint
        self._build = build

    def listen(self, protocolFactory: IProtocolFactory) -> Any:
        """See L{IStreamServerEndpoint.listen}."""
        return self._endpoint.listen(self._build(protocolFactory))
