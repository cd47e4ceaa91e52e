"""Ports that hand out connections on plain sockets, with real ones."""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from helix_revdial.revdial.socket_accept import SocketPort


class Pausing(Protocol):
    """A protocol that wants nothing for now."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        wire: Any = self.transport
        wire.pauseProducing()

    def dataReceived(self, data: bytes) -> None:
        self.received.append(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(None)


class Pausings(Factory):
    """Builds them, but for the first C{refused}."""

    noisy = False
    refused = 0
    broken = 0

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        if self.refused:
            self.refused -= 1
            return None
        if self.broken:
            self.broken -= 1
            raise ValueError("no protocol for this one")
        return Pausing()


class SocketPortTests(TestCase):
    """L{SocketPort}."""

    timeout = 20

    def setUp(self) -> None:
        self.made: list[Pausing] = []
        self.waiting: Deferred[Pausing] | None = None
        self.factory = Pausings()
        self.port = SocketPort(reactor, 0, self.factory, "127.0.0.1", self._made)
        self.port.startListening()
        self.number = self.port.getHost().port
        self.addCleanup(self._stop)

    def _stop(self) -> Any:
        for protocol in self.made:
            wire: Any = protocol.transport
            if wire.connected:
                wire.abortConnection()
        return self.port.stopListening()

    def _made(self, protocol: Any) -> None:
        self.made.append(protocol)
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.callback(protocol)

    def connect(self) -> tuple[socket.socket, Deferred[Pausing]]:
        waiting: Deferred[Pausing] = Deferred()
        self.waiting = waiting
        caller = socket.create_connection(("127.0.0.1", self.number))
        self.addCleanup(caller.close)
        return caller, waiting

    async def test_aConnectionIsPausedAndWatched(self) -> None:
        """What came is received when it is asked for; the options are the port's."""
        verifyObject(IListeningPort, self.port)
        caller, waiting = self.connect()
        caller.sendall(b"first")
        protocol = await waiting
        wire: Any = protocol.transport
        self.assertEqual(protocol.received, [])
        self.assertTrue(wire.receiveNow())
        self.assertEqual(protocol.received, [b"first"])
        self.assertFalse(wire.receiveNow(), "there was nothing more")
        self.assertTrue(wire.getTcpNoDelay())
        self.assertTrue(wire.getTcpKeepAlive())
        self.assertEqual(wire.getPeer().port, caller.getsockname()[1])
        caller.close()
        self.assertFalse(wire.receiveNow(), "the end is for whoever reads")
        wire.resumeProducing()
        await protocol.lost

    async def test_oneThatIsRefusedOrFailsCostsNoOther(self) -> None:
        """The factory says no, or raises: that connection is closed, the next one is taken."""
        self.factory.refused = self.factory.broken = 1
        callers = [self.connect()[0] for _ in range(2)]
        await self.connect()[1]
        for caller in callers:
            self.assertEqual(caller.recv(1), b"", "it was not closed")
        self.assertEqual(len(self.made), 1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    async def test_withoutDescriptorsItGoesOn(self) -> None:
        """accept(2) has no descriptor: Twisted's reserve closes that one, the next is taken."""
        listening = self.port.socket
        failing: list[int] = [errno.EMFILE]

        class Failing:
            def accept(self) -> Any:
                if failing:
                    raise OSError(failing.pop(), "no more")
                return listening.accept()

            def __getattr__(self, name: str) -> Any:
                return getattr(listening, name)

        replaced: Any = Failing()
        self.port.socket = replaced
        self.addCleanup(setattr, self.port, "socket", listening)
        await self.connect()[1]

    async def test_itStopsAsAnyPort(self) -> None:
        """Nothing is accepted any more, and the number is free."""
        await self.port.stopListening()
        self.assertRaises(ConnectionRefusedError, self.connect)
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", self.number))
