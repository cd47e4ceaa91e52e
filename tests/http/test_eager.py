"""Tests for L{helix_revdial.http.eager}, on real sockets."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.http.eager import writeEagerly


class Recorded(Protocol):
    """What became of a connection."""

    lost: Failure | None = None

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.lost = reason


class EagerTests(SynchronousTestCase):
    """L{writeEagerly}."""

    def setUp(self) -> None:
        ours, self.peer = socket.socketpair(socket.AF_UNIX)
        self.addCleanup(ours.close)
        self.addCleanup(self.peer.close)
        ours.setblocking(False)
        self.reactor = MemoryReactorClock()
        self.protocol = Recorded()
        listening: Any = None
        self.transport: Any = Server(
            ours, self.protocol, ("127.0.0.1", 1), listening, 1, self.reactor
        )
        self.protocol.makeConnection(self.transport)

    @property
    def wantsToWrite(self) -> bool:
        return self.transport in self.reactor.writers

    def test_atOnce(self) -> None:
        """What the socket takes is there before the reactor's turn, and asks for none."""
        writeEagerly(self.transport, [b"ab", b"", b"c"])
        self.assertEqual(self.peer.recv(10), b"abc")
        self.assertFalse(self.wantsToWrite)
        writeEagerly(self.transport, [])
        writeEagerly(self.transport, [b""])
        self.assertFalse(self.wantsToWrite)

    def test_rest(self) -> None:
        """What it does not take follows in order, with what is written after it."""
        data = bytes(range(256)) * 4096
        writeEagerly(self.transport, [data])
        self.assertTrue(self.wantsToWrite)
        writeEagerly(self.transport, [b"later"])
        received = bytearray()
        while len(received) < len(data) + 5:
            received += self.peer.recv(65536)
            if self.wantsToWrite:
                self.transport.doWrite()
        self.assertEqual(received, data + b"later")
        self.assertFalse(self.wantsToWrite)

    def test_afterWhatWaits(self) -> None:
        """Nothing overtakes what was written the ordinary way."""
        self.transport.write(b"first ")
        writeEagerly(self.transport, [b"second"])
        self.transport.doWrite()
        self.assertEqual(self.peer.recv(20), b"first second")

    def test_gone(self) -> None:
        """A peer that is gone is the reactor's to find, in its own turn."""
        self.peer.close()
        writeEagerly(self.transport, [b"x"])
        self.assertIsNone(self.protocol.lost)
        self.assertTrue(self.wantsToWrite)
        self.assertIsInstance(self.transport.doWrite(), Exception)

    def test_closing(self) -> None:
        """What is written to a connection that closes, or whose end was told, is dropped."""
        self.transport.loseWriteConnection()
        self.transport.doWrite()
        writeEagerly(self.transport, [b"x"])
        self.assertEqual(self.peer.recv(10), b"")

    def test_otherTransports(self) -> None:
        """Any other transport is written to as ever."""
        transport = StringTransport()
        writeEagerly(transport, [b"a", b"b"])
        self.assertEqual(transport.value(), b"ab")
