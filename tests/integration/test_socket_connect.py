"""Tests for L{helix_revdial.revdial.socket_connect}, on real sockets."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import error, reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from helix_revdial.revdial.socket_connect import SocketEndpoint


class Heard(Protocol):
    """Remembers; pauses its transport as it is connected, where it is told to."""

    def __init__(self, pause: bool = False) -> None:
        self.received = b""
        self.pause = pause
        self.came: Deferred[bytes] = Deferred()
        self.lost: Deferred[object] = Deferred()

    def connectionMade(self) -> None:
        if self.pause:
            self.wire.pauseProducing()

    @property
    def wire(self) -> Any:
        """The transport."""
        return self.transport

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if not self.came.called:
            self.came.callback(self.received)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(type(reason.value))


class SocketEndpointTests(TestCase):
    """A connection to an address, without a resolver and without a turn of the reactor."""

    timeout = 20

    def listening(self, family: int = socket.AF_INET, backlog: int = 5) -> tuple[Any, int]:
        """A socket that listens on loopback."""
        found = socket.socket(family)
        self.addCleanup(found.close)
        found.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        found.listen(backlog)
        found.settimeout(10)
        return found, found.getsockname()[1]

    def connect(
        self, port: int, protocol: Protocol | None, host: str = "127.0.0.1", timeout: float = 5.0
    ) -> Deferred[Any]:
        """Try."""
        factory: Any = Factory()
        factory.buildProtocol = lambda addr: protocol
        return SocketEndpoint(reactor, host, port, timeout=timeout).connect(factory)

    async def test_aPeerOnThisHostIsConnectedAtOnce(self) -> None:
        """The Deferred has fired when C{connect} returns; bytes go both ways."""
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                door, port = self.listening(family)
            except OSError:
                continue  # a host without IPv6
            heard = Heard()
            connected = self.connect(port, heard, host)
            self.assertIs(self.successResultOf(connected), heard)
            self.assertEqual((heard.wire.getPeer().host, heard.wire.getPeer().port), (host, port))
            peer, address = door.accept()
            self.addCleanup(peer.close)
            peer.settimeout(10)
            self.assertEqual(heard.wire.getHost().port, address[1])
            nodelay = heard.wire.getHandle().getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            self.assertTrue(nodelay)
            heard.wire.write(b"ping")
            peer.sendall(b"pong")
            self.assertEqual(await heard.came, b"pong")
            heard.wire.loseConnection()
            self.assertIs(await heard.lost, error.ConnectionDone)
            self.assertEqual(peer.recv(10), b"ping")

    async def test_aProtocolThatPausesIsNotRead(self) -> None:
        """Not before it resumes its transport; then everything comes."""
        door, port = self.listening()
        heard = Heard(pause=True)
        self.successResultOf(self.connect(port, heard))
        watching: Any = reactor
        self.assertNotIn(heard.wire, watching.getReaders())
        peer, _ = door.accept()
        self.addCleanup(peer.close)
        peer.sendall(b"early")
        heard.wire.resumeProducing()
        self.assertEqual(await heard.came, b"early")
        heard.wire.abortConnection()
        self.assertIs(await heard.lost, error.ConnectionAborted)

    async def test_refused(self) -> None:
        """Nobody listens: Twisted's own error, with its number."""
        door, port = self.listening()
        door.close()
        failure = self.failureResultOf(self.connect(port, Heard()))
        failure.trap(error.ConnectionRefusedError)

    async def test_noProtocol(self) -> None:
        """A factory that wants no connection gets none, and its peer is not kept."""
        door, port = self.listening()
        self.failureResultOf(self.connect(port, None)).trap(error.NoProtocol)
        peer, _ = door.accept()
        self.addCleanup(peer.close)
        peer.settimeout(10)
        self.assertEqual(peer.recv(1), b"")

    async def test_slowPeers(self) -> None:
        """
        C12: A peer that does not accept costs C{timeout}; a cancelled attempt leaves
        nothing in the reactor.
        """
        watching: Any = reactor
        _, port = self.listening(backlog=0)
        before = len(watching.getWriters())
        # With a queue of none the kernel takes one or two, and lets the others wait.
        waiting = [self.connect(port, Heard(pause=True), timeout=0.2) for _ in range(4)]
        late = [each for each in waiting if not each.called]
        self.assertTrue(late)
        self.assertEqual(len(watching.getWriters()) - before, len(late))
        late[0].cancel()
        self.failureResultOf(late[0]).trap(error.ConnectingCancelledError)
        for each in late[1:]:
            await self.assertFailure(each, error.TimeoutError)
        self.assertEqual(len(watching.getWriters()), before)
        for each in waiting:
            if each not in late:
                made = self.successResultOf(each)
                made.wire.abortConnection()
                await made.lost

    def test_whatItSuits(self) -> None:
        """Literals, on a reactor with real sockets."""
        for host in ("127.0.0.1", "::1", "10.1.2.3"):
            self.assertTrue(SocketEndpoint.suits(reactor, host))
            self.assertFalse(SocketEndpoint.suits(MemoryReactorClock(), host))
        for host in ("localhost", "cp.example", "fe80::1%eth0"):
            self.assertFalse(SocketEndpoint.suits(reactor, host))
