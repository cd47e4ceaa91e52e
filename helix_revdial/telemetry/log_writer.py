# -*- test-case-name: tests.telemetry.test_log_writer -*-
"""
Writes log lines without ever waiting for whoever reads them.

A pipe to a collector that hangs, a terminal stopped with Ctrl-S, a journal that is
slow: a write to any of them blocks the process that writes, and with it every tunnel.

L{LogWriter} writes a line at once where that does not block, so that a crash loses
nothing.  What cannot be written now is held, up to a limit, and written by a thread
that lives only as long as something is held; lines beyond the limit are dropped and
counted, and the count is the first thing written afterwards.

Invariants:

  - L{LogWriter.write} neither blocks nor raises, in whatever thread, and in the
    handler of a signal too that comes while its thread writes: Twisted's handlers log.
  - Lines come out in order and whole, but for those that were dropped.
  - At most C{maxHeld} bytes are held.

How each kind of descriptor is written to:

  - a pipe through a description of our own (C{/proc/self/fd}) that does not block,
    since the flag of the given one is shared with other processes;
  - a socket with C{MSG_DONTWAIT};
  - a regular file at once: to write to it never waits for a reader;
  - anything else when C{poll} says that it takes at least a page.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

MAX_HELD = 1024 * 1024
"""Bytes of lines that may wait for the reader."""

FLUSH_LIMIT = 2.0
"""Seconds that the last lines get when the process ends."""

_PAGE = 4096
"""What a descriptor takes without blocking if poll(2) says that it is writable (PIPE_BUF)."""


class LogWriter:
    """
    A file descriptor for lines.

    @ivar dropped: Lines that were dropped so far.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        maxHeld: int = MAX_HELD,
        lost: Callable[[int], bytes] | None = None,
    ) -> None:
        """
        @param descriptor: Where to write; stays the caller's.
        @param maxHeld: Bytes that may wait.
        @param lost: Makes the line that says how many were dropped.
        """
        self.dropped = 0
        self._descriptor = descriptor
        self._maxHeld = maxHeld
        self._lost = lost
        self._unsaid = 0
        self._held: deque[bytes] = deque()
        self._heldBytes = 0
        # The handler of a signal may find its own thread within.
        self._lock = threading.RLock()
        self._writing = False
        self._thread: threading.Thread | None = None
        self._own: int | None = None
        self._some = self._way(descriptor)

    @property
    def own(self) -> int | None:
        """The descriptor that was opened here, if one was."""
        return self._own

    @property
    def held(self) -> int:
        """Bytes that wait for the reader."""
        return self._heldBytes

    def write(self, line: bytes) -> None:
        """
        Write one line, or hold it, or drop it.

        @param line: With its line end.
        """
        with self._lock:
            if self._writing:
                # A signal's handler, amid a line of the same thread, which goes on.
                self._hold(line)
                return
            self._writing = True
            try:
                rest = line if self._held else self._attempt(line)
                if rest:
                    self._hold(rest, first=rest is not line)
            finally:
                self._writing = False
            # After a fork there is no thread, whatever the parent had.
            if self._held and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._drain, name="log", daemon=True)
                self._thread.start()

    def flush(self, limit: float = FLUSH_LIMIT) -> bool:
        """
        Wait until nothing is held.

        @param limit: Seconds, at most.
        @return: Whether everything is out.
        """
        thread = self._thread
        if thread is not None:
            thread.join(limit)
        return not self._held

    def close(self) -> None:
        """Give our own descriptor back; what is held is dropped."""
        with self._lock:
            self._held.clear()
            self._heldBytes = 0
            own, self._own = self._own, None
            self._some = _refuse
        if own is not None:
            os.close(own)

    # Within; the lock is held

    def _hold(self, line: bytes, *, first: bool = False) -> None:
        """@param first: Whether it is the rest of a line, which nothing may come before."""
        if self._held and not first and self._heldBytes + len(line) > self._maxHeld:
            self.dropped += 1
            self._unsaid += 1
            return
        if first:
            self._held.appendleft(line)
        else:
            self._held.append(line)
        self._heldBytes += len(line)

    def _attempt(self, data: bytes) -> bytes:
        """
        @return: What could not be written now.
        """
        try:
            while data:
                data = data[self._some(data[:_PAGE]) :]
        except (BlockingIOError, InterruptedError):
            return data
        except OSError:
            # Nobody will ever read it.
            self.dropped += 1
            return b""
        return data

    def _drain(self) -> None:
        while True:
            self._isReady(1000)
            with self._lock:
                while self._held:
                    line = self._held.popleft()
                    rest = self._attempt(line)
                    self._heldBytes -= len(line) - len(rest)
                    if rest:
                        self._held.appendleft(rest)
                        break
                else:
                    unsaid, self._unsaid = self._unsaid, 0
                    if unsaid and self._lost is not None:
                        notice = self._lost(unsaid)
                        self._held.append(notice)
                        self._heldBytes += len(notice)
                        continue
                    self._thread = None
                    return

    # How to write

    def _way(self, descriptor: int) -> Callable[[bytes], int]:
        try:
            mode = os.fstat(descriptor).st_mode
        except OSError:
            return _refuse
        if stat.S_ISSOCK(mode):
            own = socket.socket(fileno=os.dup(descriptor))
            self._own = own.detach()
            return _sender(self._own)
        if stat.S_ISFIFO(mode):
            try:
                self._own = os.open(
                    f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
                )
            except OSError:
                return self._whenReady
            return _plain(self._own)
        if stat.S_ISREG(mode):
            return _plain(descriptor)
        return self._whenReady

    def _whenReady(self, data: bytes) -> int:
        if not self._isReady(0):
            raise BlockingIOError
        return os.write(self._descriptor, data)

    def _isReady(self, milliseconds: int) -> bool:
        # A poll object of one thread is of no use to another, nor to a fork's child.
        poll = select.poll()
        poll.register(self._descriptor if self._own is None else self._own, select.POLLOUT)
        return bool(poll.poll(milliseconds))


def _plain(descriptor: int) -> Callable[[bytes], int]:
    return lambda data: os.write(descriptor, data)


def _sender(descriptor: int) -> Callable[[bytes], int]:
    def send(data: bytes) -> int:
        stream: Any = socket.socket(fileno=descriptor)
        try:
            return int(stream.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL))
        finally:
            stream.detach()

    return send


def _refuse(data: bytes) -> int:
    raise OSError("there is no such descriptor")


__all__ = ["FLUSH_LIMIT", "MAX_HELD", "LogWriter"]
