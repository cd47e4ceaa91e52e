"""
The server, with one TCP door more that leads to a runner's default target.

    python -m benchmarks.server PORT RUNNER PATH FLAG...

PATH is C{sockets}, C{copied} for the same without C{splice}, or C{portable} for the relay
that works on any transport.  The FLAGs are those of C{twistd helix-revdial-server}:
everything else is the server as it is run, with authentication, limits, accounting and its
log.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory

from helix_revdial.control_plane import ControlPlane
from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.endpoints import DialEndpoint
from helix_revdial.revdial.relay import RelayProtocol, relayPair
from helix_revdial.revdial.sockets import SocketRelays


class _Ready(Factory):
    """Gives a protocol that is there already."""

    noisy = False

    def __init__(self, protocol: RelayProtocol) -> None:
        self._protocol = protocol
        self.early = protocol

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return self._protocol


class Forward(Factory):
    """Each connection is a dial."""

    noisy = False

    def __init__(self, reactor: Any, dialEndpoint: Any, sockets: SocketRelays | None) -> None:
        self._reactor = reactor
        self._endpoint = dialEndpoint
        self._sockets = sockets

    def buildProtocol(self, addr: IAddress | None) -> Any:
        caller: RelayProtocol
        caller, stream = relayPair(self._reactor, sockets=self._sockets)
        dialled = self._endpoint().connect(_Ready(stream))
        dialled.addErrback(lambda _: caller.abandon())
        return caller


def main() -> None:
    """Run C{twistd} with the door added."""
    port, runner, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    start = ControlPlane.startService

    def startService(controlPlane: ControlPlane) -> None:
        from twisted.internet import reactor as installed

        reactor: Any = installed
        start(controlPlane)
        connections: Connections = controlPlane.services.connections

        def endpoint() -> DialEndpoint:
            return connections.endpoint(runner)

        sockets = None
        if path != "portable":
            sockets = SocketRelays(reactor, splice=path == "sockets")
        forward = Forward(reactor, endpoint, sockets)
        reactor.listenTCP(port, forward, backlog=1024, interface="127.0.0.1")

    controlPlaneClass: Any = ControlPlane
    controlPlaneClass.startService = startService
    from twisted.scripts.twistd import run

    sys.argv[1:] = ["-n", "--pidfile=", "--logfile=-", "helix-revdial-server", *sys.argv[4:]]
    run()


if __name__ == "__main__":
    main()
