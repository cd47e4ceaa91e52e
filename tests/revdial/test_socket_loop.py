"""Tests for L{helix_revdial.revdial.socket_loop}: turns that relays' sockets begin."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.protocol import connectionDone
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.socket_loop import loopOf, useSocketLoop
from helix_revdial.revdial.socket_poll import READ, SocketPoll
from tests.revdial.test_socket_poll import Told


class Reading(Told):
    """A reader of the reactor."""

    def __init__(self, own: socket.socket) -> None:
        super().__init__()
        self.fileno = own.fileno

    def logPrefix(self) -> str:
        return "reading"

    def doRead(self) -> None:
        super().doRead()


class SocketLoopTests(SynchronousTestCase):
    """An epoll reactor that is turned by hand."""

    def setUp(self) -> None:
        self.reactor: Any = EPollReactor()
        self.addCleanup(self.close)
        self.assertTrue(useSocketLoop(self.reactor))
        self.poll = SocketPoll(self.reactor)

    def close(self) -> None:
        """Leave no descriptor."""
        self.reactor.removeAll()
        self.reactor._poller.close()
        for descriptor in self.reactor._internalReaders:
            descriptor.connectionLost(connectionDone)

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Two ends."""
        made = socket.socketpair()
        for each in made:
            self.addCleanup(each.close)
        return made

    def watched(self, poll: SocketPoll) -> tuple[Told, socket.socket, socket.socket]:
        """A socket that C{poll} watches, and its peer."""
        own, peer = self.pair()
        told = Told()
        poll.watch(own.fileno(), told, READ)
        return told, own, peer

    def test_everythingIsServed(self) -> None:
        """Sockets of relays, and the reactor's timers and readers, in the same turn or the next."""
        told, _, peer = self.watched(self.poll)
        self.assertNotIn(self.poll, self.reactor.getReaders())
        own, other = self.pair()
        reading = Reading(own)
        self.reactor.addReader(reading)
        fired: list[str] = []
        self.reactor.callLater(0, fired.append, "timer")
        peer.send(b"x")
        other.send(b"x")
        self.reactor.iterate(10)
        self.assertEqual((told.events, reading.events, fired), (["read"], ["read"], ["timer"]))
        # Of the reactor's alone: what is there wakes a turn that waits for long.
        peer.close()
        self.poll.watch(next(iter(self.poll._watched)), told, 0)
        self.watched(self.poll)
        self.reactor.iterate(10)
        self.assertEqual(reading.events, ["read", "read"])
        self.reactor.removeReader(reading)

    def test_nothingReady(self) -> None:
        """A turn ends at its time."""
        told, _, _ = self.watched(self.poll)
        self.reactor.iterate(0.01)
        self.assertEqual(told.events, [])

    def test_itsOwnWhereNothingIsWatched(self) -> None:
        """Without a socket the reactor waits at its own epoll, and again with the next."""
        for _ in range(2):
            told, own, peer = self.watched(self.poll)
            peer.send(b"x")
            self.reactor.iterate(10)
            self.assertEqual(told.events, ["read"])
            self.poll.watch(own.fileno(), told, 0)
            reading_, other = self.pair()
            reading = Reading(reading_)
            self.reactor.addReader(reading)
            other.send(b"x")
            self.reactor.iterate(10)
            self.reactor.removeReader(reading)
            self.assertEqual(reading.events, ["read"])

    def test_oneLeads(self) -> None:
        """A second is a reader, may lead later, and no epoll ever holds itself."""
        second = SocketPoll(self.reactor)
        told, own, peer = self.watched(self.poll)
        toldToo, ownToo, peerToo = self.watched(second)
        self.assertEqual(
            [each in self.reactor.getReaders() for each in (self.poll, second)], [False, True]
        )
        peer.send(b"x")
        peerToo.send(b"x")
        self.reactor.iterate(10)
        self.assertEqual((told.events, toldToo.events), (["read"], ["read"]))
        self.poll.watch(own.fileno(), told, 0)
        second.watch(ownToo.fileno(), toldToo, 0)
        second.watch(ownToo.fileno(), toldToo, READ)
        self.poll.watch(own.fileno(), told, READ)
        self.assertEqual(
            [each in self.reactor.getReaders() for each in (self.poll, second)], [True, False]
        )
        self.reactor.iterate(10)
        self.reactor.iterate(10)
        self.assertIn("read", told.events[1:])
        self.assertIn("read", toldToo.events[1:])

    def test_theReactorEnds(self) -> None:
        """Whoever is watched hears of it, as a reader would."""
        told, _, _ = self.watched(self.poll)
        loop = loopOf(self.reactor)
        assert loop is not None
        loop.stop()
        self.assertEqual(told.events, ["lost"])

    def test_otherReactors(self) -> None:
        """Where it cannot be nothing is changed."""
        other: Any = SelectReactor()
        self.addCleanup(other.removeAll)
        for reactor in (other, MemoryReactorClock()):
            self.assertFalse(useSocketLoop(reactor))
            self.assertIsNone(loopOf(reactor))
        loop = loopOf(self.reactor)
        self.assertTrue(useSocketLoop(self.reactor))
        self.assertIs(loopOf(self.reactor), loop)
