"""Who owns what: descriptors of this very process, timers of a clock, a reactor's buffers."""

from __future__ import annotations

import functools
import os
import socket
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock, LoopingCall
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.telemetry.ledger import (
    descriptorLimit,
    descriptors,
    openDescriptors,
    reactorDescriptors,
    timers,
    unsentBytes,
)

reactor: Any = _reactor


class DescriptorTests(SynchronousTestCase):
    """L{descriptors}: this process, looked at from inside."""

    def test_known(self) -> None:
        """What an owner claims is his; what nobody claims is other."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        before = descriptors({})
        found = descriptors({ours.fileno(): "control"})
        self.assertEqual(found["control"], 1)
        self.assertEqual(before["other"] - found["other"], 1)

    def test_files(self) -> None:
        """Files are told by their path."""
        path = os.path.abspath(self.mktemp())
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
        self.addCleanup(os.close, descriptor)
        found = descriptors({}, lambda file: "database" if file == path else None)
        self.assertEqual(found["database"], 1)

    def test_everyDescriptorOnce(self) -> None:
        """The kinds add up to what is open, and an owner's closed descriptor is not there."""
        self.assertEqual(sum(descriptors({987_654: "control"}).values()), openDescriptors())
        self.assertNotIn("control", descriptors({987_654: "control"}))
        self.assertGreaterEqual(descriptorLimit(), openDescriptors())

    def test_standard(self) -> None:
        """The three that every process has are no surprise."""
        self.assertEqual(descriptors({})["standard"], 3)

    def test_reserve(self) -> None:
        """A descriptor that is held in reserve is one of Twisted's."""
        before = descriptors({}).get("reserve", 0)
        descriptor = os.open(os.devnull, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        self.assertEqual(descriptors({})["reserve"], before + 1)

    def test_reactor(self) -> None:
        """A listening port is a listener; the reactor's pipe is its own, at both ends."""
        port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        known = reactorDescriptors(reactor)
        self.assertEqual(known[port.fileno()], "listener")
        if reactor.waker is not None:
            self.assertEqual(known[reactor.waker.i], "reactor")
            self.assertEqual(known[reactor.waker.o], "reactor")

    def test_aBrokenSelectable(self) -> None:
        """One whose own code fails hides nothing else."""

        class Broken:
            def fileno(self) -> int:
                raise ValueError("no")

        class Reactor:
            def getReaders(self) -> list[Any]:
                return [Broken()]

        self.assertEqual(reactorDescriptors(Reactor()), {})


class TimerTests(SynchronousTestCase):
    """L{timers}."""

    def method(self) -> None:
        """Something to call."""

    def test_names(self) -> None:
        """Each timer has the name of what it calls; loops the name of their own function."""
        clock = Clock()
        clock.callLater(1, self.method)
        clock.callLater(1, self.method)
        clock.callLater(1, functools.partial(self.method))
        clock.callLater(1, lambda: None)
        loop = LoopingCall(self.method)
        loop.clock = clock
        loop.start(1, now=False)
        name = f"{__name__}.TimerTests"
        self.assertEqual(
            timers(clock.getDelayedCalls()),
            {f"{name}.method": 4, f"{name}.test_names.<locals>.<lambda>": 1},
        )
        loop.stop()


class BufferTests(SynchronousTestCase):
    """L{unsentBytes}."""

    def test_stalledPeer(self) -> None:
        """What a peer does not read is counted under the kind of its connection."""

        class Transport:
            dataBuffer = b"x" * 100
            offset = 40
            _tempDataLen = 1000

            def fileno(self) -> int:
                return 7

        class Other(Transport):
            def fileno(self) -> int:
                return 8

        class NoTransport:
            pass

        found = unsentBytes([Transport(), Other(), NoTransport()], {7: "data"})
        self.assertEqual(found, {"data": 1060, "other": 1060})
