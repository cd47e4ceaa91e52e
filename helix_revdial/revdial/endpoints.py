# -*- test-case-name: tests.revdial.test_connections -*-
"""
A dial as a Twisted client endpoint.

Whatever connects through an L{IStreamClientEndpoint} (treq by
C{Agent.usingEndpointFactory}, Conch, a protocol of one's own) works over a
tunnel by being given a L{DialEndpoint}.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from zope.interface import implementer


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
