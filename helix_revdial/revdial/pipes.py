# -*- test-case-name: tests.revdial.test_pipes -*-
"""
Pipes that carry bytes from socket to socket without a copy (C{splice(2)}).

The kernel moves pages from a socket into a pipe, and from a pipe into a socket; the
pipe is where they lie when the second socket takes fewer than the first gave.  All
streams of a process share L{Pipes}: one takes a pipe to move bytes, and gives it back
as soon as it is empty.

Invariants:

  - At most so many pipes are open, in use and spare together.
  - A pipe that is given back with bytes in it is closed, and never handed on: nobody
    reads another stream's bytes.
  - Who gets none has lost nothing: he goes on with buffers.  There is none when all are
    in use, when the process may open no more descriptors, and when the kernel grants
    only small pipes.  To a user without privileges it grants 64 of 1 MiB
    (C{pipe-user-pages-soft}), and from then on pipes of 8 KiB, which cost more than
    a copy; then nobody asks again for a while.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

CAPACITY = 1024 * 1024
"""Bytes that a pipe is to take: what an unprivileged user may ask for by default
(C{/proc/sys/fs/pipe-max-size}).  It is counted in pages, and bytes that came in small
packets fill a page each."""

LEAST_CAPACITY = 256 * 1024
"""A smaller pipe is not worth its calls."""

MAX_PIPES = 64
"""Pipes that are open at a time, two descriptors each."""

ASK_AGAIN = 10.0
"""Seconds without another attempt once a pipe was refused."""


class Pipe:
    """
    One pipe, and how many bytes are in it.

    @ivar size: Bytes in it.
    """

    __slots__ = ("_reading", "_writing", "size")

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self.size = 0

    def fill(self, descriptor: int, most: int) -> int:
        """
        Take bytes from a socket.

        @param most: Bytes to take at most.
        @return: How many came; 0 is the end of the socket's stream.
        @raise OSError: C{EAGAIN}: there are none now, if the pipe was empty.
        """
        got = os.splice(descriptor, self._writing, most, flags=_FLAGS)
        self.size += got
        return got

    def drain(self, descriptor: int) -> int:
        """
        Give a socket what it takes.

        @return: How many bytes that were.
        @raise OSError: C{EAGAIN}: none now, if the pipe is not empty.
        """
        sent = os.splice(self._reading, descriptor, self.size, flags=_FLAGS)
        self.size -= sent
        return sent

    def read(self) -> bytes:
        """Take out all that is in it, by a copy."""
        pieces = []
        while self.size:
            piece = os.read(self._reading, self.size)
            self.size -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Drop it, with what is in it."""
        os.close(self._reading)
        os.close(self._writing)


def openPipe(capacity: int = CAPACITY) -> Pipe | None:
    """
    Make a pipe.

    @param capacity: Bytes that it is to take.
    @return: C{None} where the kernel grants only a small one.
    @raise OSError: It grants none.
    """
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    pipe = Pipe(reading, writing)
    try:
        granted = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, capacity)
    except OSError:
        granted = fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)
    if granted >= min(capacity, LEAST_CAPACITY):
        return pipe
    pipe.close()
    return None


class Pipes:
    """
    The pipes that all streams of a process share.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        limit: int = MAX_PIPES,
        make: Callable[[], Pipe | None] = openPipe,
    ) -> None:
        """
        @param clock: Says when to ask again after a refusal.
        @param limit: Pipes that are open at a time.
        @param make: Opens one.
        """
        self._clock = clock
        self._limit = limit
        self._make = make
        self._spare: list[Pipe] = []
        self._open = 0
        self._askFrom = float("-inf")

    @property
    def inUse(self) -> int:
        """Pipes that were taken and not given back."""
        return self._open - len(self._spare)

    @property
    def open(self) -> int:
        """Pipes that there are."""
        return self._open

    def take(self) -> Pipe | None:
        """An empty pipe, to be given back; C{None} where there is none."""
        if self._spare:
            return self._spare.pop()
        if self._open >= self._limit or self._clock.seconds() < self._askFrom:
            return None
        try:
            pipe = self._make()
        except OSError:
            pipe = None
        if pipe is None:
            self._askFrom = self._clock.seconds() + ASK_AGAIN
            return None
        self._open += 1
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Take a pipe back; with bytes in it, it is closed."""
        if pipe.size:
            self._open -= 1
            pipe.close()
        else:
            self._spare.append(pipe)

    def close(self) -> None:
        """Close the spare ones: nobody moves bytes any more."""
        spare, self._spare = self._spare, []
        self._open -= len(spare)
        for pipe in spare:
            pipe.close()


_FLAGS = getattr(os, "SPLICE_F_MOVE", 0) | getattr(os, "SPLICE_F_NONBLOCK", 0)

hasSplice = hasattr(os, "splice")
"""Whether the platform has the call at all."""

__all__ = ["MAX_PIPES", "Pipe", "Pipes", "hasSplice", "openPipe"]
