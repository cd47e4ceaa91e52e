"""Tests for L{helix_revdial.agent.addresses}."""

from __future__ import annotations

import socket

from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.agent.addresses import SETTLE, AddressWatch, isHere, openAnnouncements


class AddressWatchTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.kernel.close)
        ours.setblocking(False)
        self.ours = ours
        self.calls = 0
        self.watch = AddressWatch(self.reactor, announcements=lambda: ours)
        self.addCleanup(self.watch.stop)

    def changed(self) -> None:
        self.calls += 1

    def test_burst(self) -> None:
        """A burst of announcements is one change, once it has settled; the next is another."""
        self.watch.start(self.changed)
        self.assertEqual(self.reactor.getReaders(), [self.watch])
        for expected in (1, 2):
            for _ in range(100):
                self.kernel.send(b"x")
            self.watch.doRead()
            self.reactor.advance(SETTLE / 2)
            self.watch.doRead()
            self.assertEqual(self.calls, expected - 1)
            self.reactor.advance(SETTLE / 2)
            self.assertEqual(self.calls, expected)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop(self) -> None:
        """After a stop nothing is left, and nothing is called."""
        self.watch.start(self.changed)
        self.kernel.send(b"x")
        self.watch.doRead()
        self.watch.stop()
        self.reactor.advance(SETTLE)
        self.assertEqual((self.calls, self.reactor.getReaders()), (0, []))
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.ours.fileno(), -1)
        self.watch.doRead()
        self.watch.stop()

    def test_lost(self) -> None:
        """A reactor that gives the descriptor up ends the watch."""
        self.watch.start(self.changed)
        self.watch.connectionLost(Failure(Exception()))
        self.assertEqual(self.reactor.getReaders(), [])

    def test_none(self) -> None:
        """Where nothing is announced, nothing is watched."""
        watch = AddressWatch(self.reactor, announcements=lambda: None)
        watch.start(self.changed)
        self.assertEqual(self.reactor.getReaders(), [])
        watch.stop()

    def test_kernel(self) -> None:
        """The kernel lets an ordinary program listen."""
        found = openAnnouncements()
        if found is None:
            self.assertFalse(hasattr(socket, "AF_NETLINK"), "Linux does not let us listen")
        else:
            found.close()

    def test_isHere(self) -> None:
        """An address of this host, and addresses that no host has."""
        self.assertTrue(isHere("127.0.0.1"))
        self.assertFalse(isHere("192.0.2.7"))
        self.assertFalse(isHere("2001:db8::7"))
        self.assertTrue(isHere("not an address"), "no reason to cut anything")
