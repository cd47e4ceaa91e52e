# -*- test-case-name: tests.revdial.test_connections,tests.revdial.test_listener -*-
"""
Tunnels as Twisted endpoints, in both directions.

Whatever connects through an L{IStreamClientEndpoint} (treq by
C{Agent.usingEndpointFactory}, Conch, a protocol of one's own) works over a
tunnel by being given a L{DialEndpoint}.  Whatever is served through an
L{IStreamServerEndpoint} is served at the agent's end by a L{ListenerEndpoint}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol as TypingProtocol

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from zope.interface import implementer

from .errors import TargetRefused
from .interfaces import ITarget
from .streams import Prepared, StreamProtocol, TargetAddress


@implementer(IStreamClientEndpoint)
class DialEndpoint:
    """
    Connects to a service beside an agent.

    C{connect} fires when the service is connected; it errbacks with a
    L{DialError <helix_revdial.revdial.errors.DialError>} that says what is wrong.
    Cancelling it withdraws the dial, and leaves nothing.  The protocol's
    transport provides L{IStreamTransport
    <helix_revdial.revdial.streams.IStreamTransport>}.
    """

    def __init__(
        self,
        dial: Callable[[str, str | None, float | None, IProtocolFactory], Deferred[IProtocol]],
        runner: str,
        target: str | None,
        timeout: float | None,
    ) -> None:
        """
        @param dial: Asks for the stream: L{Connections.dial
            <helix_revdial.revdial.connections.Connections.dial>}.
        @param runner: The runner's key.
        @param target: The service's name; C{None} for the agent's default.
        @param timeout: Seconds for the whole dial; C{None} for the most allowed.
        """
        self.runner = runner
        self.target = target
        self._dial = dial
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<DialEndpoint {self.runner} target={self.target!r}>"

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """
        Dial.

        @param protocolFactory: Builds the protocol for the stream, from a
            L{RunnerAddress <helix_revdial.revdial.streams.RunnerAddress>}.
        """
        return self._dial(self.runner, self.target, self._timeout, protocolFactory)


class Targets(TypingProtocol):
    """Where an agent's targets are kept."""

    def addTarget(self, name: str, target: ITarget) -> None:
        """
        Offer one more target.

        @raise ValueError: There is one of that name.
        """

    def removeTarget(self, name: str) -> None:
        """Offer a target no more."""


@implementer(IStreamServerEndpoint)
class ListenerEndpoint:
    """
    Offers a protocol as a target of the agent: every dial of its name is a
    connection.
    """

    def __init__(self, targets: Targets, name: str) -> None:
        """
        @param targets: The agent's: a L{Listener
            <helix_revdial.revdial.listener.Listener>}.
        @param name: The target's name.
        """
        self._targets = targets
        self._name = name

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """
        @return: Fires with a port whose C{stopListening} withdraws the target.
        """
        try:
            self._targets.addTarget(self._name, _FactoryTarget(protocolFactory, self._name))
        except ValueError as error:
            return fail(CannotListenError("revdial", self._name, error))
        port: IListeningPort = _TargetPort(self._targets, self._name, protocolFactory)
        port.startListening()
        return succeed(port)


@implementer(IListeningPort)
class _TargetPort:
    def __init__(self, targets: Targets, name: str, factory: IProtocolFactory) -> None:
        self._targets = targets
        self._name = name
        self._factory = factory
        self._listening = False

    def startListening(self) -> None:
        if not self._listening:
            self._listening = True
            self._factory.doStart()

    def stopListening(self) -> Deferred[None] | None:
        if self._listening:
            self._listening = False
            self._targets.removeTarget(self._name)
            self._factory.doStop()
        return succeed(None)

    def getHost(self) -> IAddress:
        return TargetAddress(self._name)


@implementer(ITarget)
class _FactoryTarget:
    """A target that is a protocol in this process."""

    def __init__(self, factory: IProtocolFactory, name: str) -> None:
        self._factory = factory
        self._address = TargetAddress(name)

    def open(self) -> Deferred[IProtocol]:
        protocol = self._factory.buildProtocol(self._address)
        if protocol is None:
            return fail(TargetRefused(f"{self._address.target} takes no connection"))
        return succeed(StreamProtocol(Prepared(protocol), self._address))
