"""Tests for L{helix_revdial.revdial.socket_poll}: an epoll that is one reader of a reactor."""

from __future__ import annotations

import socket

from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.socket_poll import READ, WRITE, SocketPoll


class Told:
    """Notes what it is told, and may do something then."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.then = lambda: None

    def doRead(self) -> None:
        self.events.append("read")
        self.then()

    def doWrite(self) -> None:
        self.events.append("write")
        self.then()

    def connectionLost(self, reason: Failure) -> None:
        self.events.append("lost")
        self.then()


class SocketPollTests(SynchronousTestCase):
    """Two sockets and a reactor that is turned by hand."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.poll = SocketPoll(self.reactor)
        self.socket, self.peer = socket.socketpair()
        self.addCleanup(self.socket.close)
        self.addCleanup(self.peer.close)
        self.number = self.socket.fileno()
        self.told = Told()

    def test_inTheReactorOnlyWhileSomethingIsWatched(self) -> None:
        """An agent without streams has no descriptor more."""
        self.assertEqual(self.poll.fileno(), -1)
        self.poll.watch(self.number, self.told, READ)
        self.assertIn(self.poll, self.reactor.getReaders())
        self.poll.watch(self.number, self.told, 0)
        self.poll.watch(self.number, self.told, 0)
        self.assertNotIn(self.poll, self.reactor.getReaders())

    def test_droppedForItsClose(self) -> None:
        """A socket that is dropped is told nothing more, and is out though it is not closed."""
        other = Told()
        self.poll.watch(self.number, self.told, READ)
        self.poll.watch(self.peer.fileno(), other, READ)
        self.poll.drop(self.number, other)  # not the one who watches it
        self.poll.drop(self.number, self.told)
        self.peer.send(b"x")
        self.poll.doRead()
        self.assertEqual(self.told.events, [])
        # What was not taken out could not be registered.
        self.poll.watch(self.number, self.told, READ)
        self.poll.doRead()
        self.assertEqual(self.told.events, ["read"])
        self.poll.drop(self.number, self.told)
        self.poll.drop(self.peer.fileno(), other)
        self.assertNotIn(self.poll, self.reactor.getReaders())

    def test_toldOfWhatIsAsked(self) -> None:
        """Reading and writing, and nothing that is not wanted any more."""
        self.poll.watch(self.number, self.told, READ)
        self.poll.doRead()
        self.assertEqual(self.told.events, [])
        self.peer.send(b"x")
        self.poll.doRead()
        self.poll.watch(self.number, self.told, READ | WRITE)
        self.poll.doRead()
        self.poll.watch(self.number, self.told, WRITE)
        self.poll.doRead()
        self.assertEqual(self.told.events, ["read", "read", "write", "write"])

    def test_aReadThatEndsItIsNotFollowedByAWrite(self) -> None:
        """A socket that is given up while it is read hears nothing more."""
        self.peer.send(b"x")
        self.told.then = lambda: self.poll.watch(self.number, self.told, 0)
        self.poll.watch(self.number, self.told, READ | WRITE)
        self.poll.doRead()
        self.assertEqual(self.told.events, ["read"])

    def test_oneThatEndsAnotherOfTheSameBatch(self) -> None:
        """The two sides of a relay end together: the other's event is void."""
        other = Told()
        self.told.then = lambda: self.poll.watch(self.peer.fileno(), other, 0)
        other.then = lambda: self.poll.watch(self.number, self.told, 0)
        self.socket.send(b"x")
        self.peer.send(b"x")
        self.poll.watch(self.number, self.told, READ)
        self.poll.watch(self.peer.fileno(), other, READ)
        self.poll.doRead()
        self.assertEqual(self.told.events + other.events, ["read"])

    def test_hangUp(self) -> None:
        """Where only a write waits, a hang-up is a loss."""
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        connection = socket.create_connection(listening.getsockname())
        self.addCleanup(connection.close)
        accepted, _ = listening.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        accepted.close()
        self.poll.watch(connection.fileno(), self.told, WRITE)
        self.poll.doRead()
        self.assertEqual(self.told.events, ["lost"])

    def test_closedBeforeItIsLetGo(self) -> None:
        """A transport that was cut has closed its socket already."""
        self.poll.watch(self.number, self.told, READ)
        self.socket.close()
        self.poll.watch(self.number, self.told, 0)
        self.assertNotIn(self.poll, self.reactor.getReaders())

    def test_theReactorEnds(self) -> None:
        """Who is watched hears that nobody watches any more."""
        self.poll.watch(self.number, self.told, READ)
        self.poll.connectionLost(Failure(RuntimeError()))
        self.assertEqual(self.told.events, ["lost"])
