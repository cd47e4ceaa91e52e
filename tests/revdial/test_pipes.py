"""Tests for L{helix_revdial.revdial.pipes}: pipes that streams share."""

from __future__ import annotations

import fcntl
import os
import socket

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.pipes import ASK_AGAIN, Pipe, Pipes, openPipe
from tests.revdial.socket_pairs import descriptors


class PipeTests(SynchronousTestCase):
    """One pipe between two pairs of sockets."""

    def setUp(self) -> None:
        self.giver, self.source = socket.socketpair()
        self.target, self.taker = socket.socketpair()
        for each in (self.giver, self.source, self.target, self.taker):
            each.setblocking(False)
            self.addCleanup(each.close)
        pipe = openPipe()
        assert pipe is not None
        self.pipe = pipe
        self.addCleanup(pipe.close)

    def test_throughIt(self) -> None:
        """What one socket received the other sends; the pipe says what is in it."""
        self.giver.send(b"hello world")
        self.assertEqual(self.pipe.fill(self.source.fileno(), 5), 5)
        self.assertEqual(self.pipe.size, 5)
        self.assertEqual(self.pipe.drain(self.target.fileno()), 5)
        self.assertEqual(self.pipe.size, 0)
        self.assertEqual(self.taker.recv(100), b"hello")

    def test_nothingThere(self) -> None:
        """From an empty pipe's view C{EAGAIN} means one thing: the socket has nothing."""
        with self.assertRaises(BlockingIOError):
            self.pipe.fill(self.source.fileno(), 5)
        self.giver.shutdown(socket.SHUT_WR)
        self.assertEqual(self.pipe.fill(self.source.fileno(), 5), 0)

    def test_fullTarget(self) -> None:
        """What the target does not take stays in the pipe, and can be had by a copy."""
        self.target.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sent = b""
        for number in range(100):
            part = bytes([number]) * 4000
            self.giver.send(part)
            sent += part
            self.pipe.fill(self.source.fileno(), len(part))
            try:
                self.pipe.drain(self.target.fileno())
            except BlockingIOError:
                break
        self.assertGreater(self.pipe.size, 0)
        rest = self.pipe.read()
        self.assertEqual(self.pipe.size, 0)
        got = b""
        while len(got) + len(rest) < len(sent):
            got += self.taker.recv(65536)
        self.assertEqual(got + rest, sent)


class PipesTests(SynchronousTestCase):
    """The pipes that all streams share."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.made = 0
        self.refuse = False

    def make(self) -> Pipe | None:
        self.made += 1
        if self.refuse:
            return None
        return openPipe(4096)

    def pipes(self, limit: int = 3) -> Pipes:
        pipes = Pipes(self.clock, limit=limit, make=self.make)
        self.addCleanup(pipes.close)
        return pipes

    def taken(self, pipes: Pipes) -> Pipe:
        pipe = pipes.take()
        assert pipe is not None
        return pipe

    def test_usedAgain(self) -> None:
        """A pipe that comes back empty is the next that is handed out."""
        pipes = self.pipes()
        pipe = self.taken(pipes)
        self.assertEqual((pipes.inUse, pipes.open), (1, 1))
        pipes.give(pipe)
        self.assertEqual((pipes.inUse, pipes.open), (0, 1))
        self.assertIs(pipes.take(), pipe)
        self.assertEqual(self.made, 1)
        pipes.give(pipe)

    def test_limit(self) -> None:
        """No more than so many at a time."""
        pipes = self.pipes(2)
        one, two = self.taken(pipes), self.taken(pipes)
        self.assertIsNone(pipes.take())
        self.assertEqual(self.made, 2)
        pipes.give(one)
        pipes.give(two)
        self.assertIs(pipes.take(), two)
        pipes.give(two)

    def test_bytesInIt(self) -> None:
        """A pipe that comes back with bytes in it is never handed on; another may be made."""
        pipes = self.pipes(1)
        giver, source = socket.socketpair()
        self.addCleanup(giver.close)
        self.addCleanup(source.close)
        pipe = self.taken(pipes)
        giver.send(b"secret of the one")
        pipe.fill(source.fileno(), 100)
        before = descriptors()
        pipes.give(pipe)
        self.assertEqual(descriptors(), before - 2)
        self.assertEqual(pipes.open, 0)
        other = self.taken(pipes)
        self.assertIsNot(other, pipe)
        with self.assertRaises(BlockingIOError):
            os.read(other._reading, 100)
        pipes.give(other)

    def test_refused(self) -> None:
        """After a refusal nobody asks for a while; what there is goes on being used."""
        pipes = self.pipes()
        kept = self.taken(pipes)
        self.refuse = True
        self.assertIsNone(pipes.take())
        self.assertIsNone(pipes.take())
        self.assertEqual(self.made, 2)
        pipes.give(kept)
        self.assertIs(pipes.take(), kept)
        pipes.give(kept)
        pipes.close()
        self.refuse = False
        self.assertIsNone(pipes.take())
        self.clock.advance(ASK_AGAIN)
        pipes.give(self.taken(pipes))

    def test_noDescriptors(self) -> None:
        """A process that may open no more has no pipe, and no error."""

        def make() -> Pipe | None:
            raise OSError(24, "Too many open files")

        pipes = Pipes(self.clock, make=make)
        self.assertIsNone(pipes.take())
        self.assertEqual(pipes.open, 0)

    def test_close(self) -> None:
        """The spare ones are closed; one in use when it comes back is spare again."""
        before = descriptors()
        pipes = self.pipes()
        one, two = self.taken(pipes), self.taken(pipes)
        pipes.give(one)
        pipes.close()
        self.assertEqual((pipes.open, pipes.inUse), (1, 1))
        pipes.give(two)
        pipes.close()
        self.assertEqual(pipes.open, 0)
        self.assertEqual(descriptors(), before)


class ShrunkTests(SynchronousTestCase):
    """What the kernel grants."""

    def test_small(self) -> None:
        """
        A pipe that the kernel does not let grow is none: a user without privileges gets
        such once he has 64 of 1 MiB.
        """

        def grants(descriptor: int, command: int, capacity: int = 0) -> int:
            if command == fcntl.F_SETPIPE_SZ:
                raise PermissionError(1, "Operation not permitted")
            return 8192

        before = descriptors()
        self.patch(fcntl, "fcntl", grants)
        self.assertIsNone(openPipe())
        self.assertEqual(descriptors(), before)

    def test_whole(self) -> None:
        """It has the size that was asked for, and blocks nobody."""
        capacity = 64 * 1024
        pipe = openPipe(capacity)
        assert pipe is not None
        self.addCleanup(pipe.close)
        self.assertGreaterEqual(fcntl.fcntl(pipe._writing, fcntl.F_GETPIPE_SZ), capacity)
        self.assertFalse(os.get_blocking(pipe._writing) or os.get_blocking(pipe._reading))
