"""
Something between an agent and a server that ends connections which look idle to it, in
each of the ways that such things do.
"""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from tests.integration.tunnels import Server, reactor


class Link:
    """
    One connection through the box.

    @ivar agent: The end where the agent is.
    @ivar server: The end where the server is; C{None} until it is connected.
    """

    def __init__(self) -> None:
        self.agent: _End | None = None
        self.server: _End | None = None
        self.silent = False
        self.early: list[bytes] = []

    def forget(self) -> None:
        """From now on nothing gets through, and nobody is told."""
        self.silent = True

    def reset(self) -> None:
        """Tell both ends that the other has gone."""
        for end in (self.agent, self.server):
            if end is not None:
                cast(Any, end.transport).abortConnection()

    def finish(self) -> None:
        """End both connections in good order."""
        for end in (self.agent, self.server):
            if end is not None:
                cast(Any, end.transport).loseConnection()

    def resetAtUse(self) -> None:
        """Forget the connection; who uses it gets a reset."""
        self.silent = True
        if self.server is not None:
            self.server.dies = True


class _End(Protocol):
    def __init__(self, link: Link, name: str) -> None:
        self.link = link
        self.name = name
        self.dies = False

    @property
    def other(self) -> _End | None:
        return self.link.server if self.name == "agent" else self.link.agent

    def connectionMade(self) -> None:
        wire = cast(Any, self.transport)
        wire.setTcpNoDelay(True)
        if self.name == "server":
            self.link.server = self
            for data in self.link.early:
                wire.write(data)

    def dataReceived(self, data: bytes) -> None:
        if self.dies:
            cast(Any, self.transport).abortConnection()
        elif self.link.silent:
            return
        elif self.other is not None:
            cast(Any, self.other.transport).write(data)
        else:
            self.link.early.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.other is not None and not self.link.silent:
            cast(Any, self.other.transport).loseConnection()


class Middlebox(Factory):
    """
    The box.

    @ivar links: Its connections, the oldest first.
    """

    noisy = False

    def __init__(self, server: Server) -> None:
        self.form = server.form
        self.links: list[Link] = []
        self._to = cast(Any, server.port.getHost()).port
        self.port: IListeningPort = reactor.listenTCP(0, self, interface="127.0.0.1")

    @property
    def url(self) -> str:
        """How an agent names the server, by way of the box."""
        return f"http://127.0.0.1:{cast(Any, self.port.getHost()).port}"

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        link = Link()
        self.links.append(link)
        link.agent = _End(link, "agent")
        reactor.connectTCP("127.0.0.1", self._to, _Onward(link))
        return link.agent

    async def stop(self) -> None:
        """Close everything."""
        for link in self.links:
            link.silent = True
            link.reset()
        stopped = self.port.stopListening()
        if stopped is not None:
            await stopped


class _Onward(ClientFactory):
    noisy = False

    def __init__(self, link: Link) -> None:
        self._link = link

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return _End(self._link, "server")


__all__ = ["Link", "Middlebox"]
