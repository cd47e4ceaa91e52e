# -*- test-case-name: tests.revdial.test_sockets,tests.revdial.test_splices -*-
"""
What one socket is still to be sent.

Bytes are sent at once; what the socket does not take waits, in this order: copies in
memory, then a L{Pipe <helix_revdial.revdial.pipes.Pipe>}.  Whatever is to go out behind
a pipe brings the pipe's bytes into memory first, so that there is never more than one
pipe, and never anything behind it.

Bounded by its user, who gives nothing more while something waits, but for a control
frame or two.
"""

from __future__ import annotations

import errno
import socket

from helix_revdial.revdial.pipes import Pipe, Pipes

MAX_PIECES = 512
"""Ranges that one C{sendmsg} is given; the kernel takes 1,024."""

LATER = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS})
"""Not now: the socket is full, or empty."""

UNABLE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
"""The descriptor cannot be spliced, or we may not (a system call filter)."""


class Outbox:
    """
    Sends to one socket.

    @ivar held: Bytes that wait.
    @ivar isAble: Whether the socket takes from a pipe, as far as is known.
    """

    def __init__(self, socket: socket.socket, pipes: Pipes | None) -> None:
        """
        @param socket: Non-blocking.
        @param pipes: Takes a pipe back when it is empty.
        """
        self._socket = socket
        self._pipes = pipes
        self._pending: list[memoryview | bytes] = []
        self._pendingSize = 0
        self._pipe: Pipe | None = None
        self.isAble = True

    @property
    def held(self) -> int:
        return self._pendingSize + (0 if self._pipe is None else self._pipe.size)

    @property
    def waits(self) -> bool:
        """Whether the socket has not taken everything."""
        return bool(self._pending) or self._pipe is not None

    def send(self, pieces: list[memoryview], size: int) -> None:
        """
        Send at once; keep a copy of what the socket does not take.

        @param pieces: Not used after the call.
        @param size: Their sum.
        @raise OSError: The connection broke.
        """
        if self.waits:
            self._takeOut()
            self._keep(pieces, 0)
            return
        sent = 0
        try:
            if len(pieces) == 1:
                sent = self._socket.send(pieces[0])
            else:
                sent = self._socket.sendmsg(pieces[:MAX_PIECES])
        except OSError as failed:
            if failed.errno not in LATER:
                raise
        if sent < size:
            self._keep(pieces, sent)

    def flush(self) -> int:
        """
        Send what waits, as far as the socket takes it.

        @return: Bytes that it took.
        @raise OSError: The connection broke.
        """
        sent = self._flushMemory() if self._pending else 0
        if self._pipe is not None and not self._pending:
            sent += self._flushPipe(self._pipe)
        return sent

    def clear(self) -> None:
        """Drop what waits."""
        self._pending.clear()
        self._pendingSize = 0
        if self._pipe is not None:
            self._giveBack(self._pipe)

    def _keep(self, pieces: list[memoryview], skip: int) -> None:
        """Copy the pieces, less their first C{skip} bytes: the buffer is shared."""
        for piece in pieces:
            size = len(piece)
            if skip >= size:
                skip -= size
                continue
            kept = bytes(piece[skip:])
            skip = 0
            self._pending.append(kept)
            self._pendingSize += len(kept)

    def _flushMemory(self) -> int:
        pending = self._pending
        try:
            sent = size = self._socket.sendmsg(pending[:MAX_PIECES])
        except OSError as failed:
            if failed.errno in LATER:
                return 0
            raise
        self._pendingSize -= sent
        done = 0
        for piece in pending:
            if sent < len(piece):
                break
            sent -= len(piece)
            done += 1
        del pending[:done]
        if sent:
            pending[0] = memoryview(pending[0])[sent:]
        return size

    # Without a copy.

    def splice(self, head: bytes, pipe: Pipe) -> None:
        """
        Send what is in a pipe, and give the pipe back when it is empty.

        @param head: Goes out before it.
        @param pipe: Not empty; ours from now on.
        @raise OSError: The connection broke.
        """
        if self.waits:
            self._takeOut()
            self._keep([memoryview(head)], 0)
            self._pipe = pipe
            return
        self._pipe = pipe
        if head:
            sent = 0
            try:
                # The payload follows at once, in the same segment.
                sent = self._socket.send(head, socket.MSG_MORE)
            except OSError as failed:
                if failed.errno not in LATER:
                    raise
            if sent < len(head):
                self._keep([memoryview(head)], sent)
                return
        self._flushPipe(pipe)

    def _flushPipe(self, pipe: Pipe) -> int:
        before = pipe.size
        try:
            pipe.drain(self._socket.fileno())
        except OSError as failed:
            if failed.errno in UNABLE:
                self.isAble = False
                self._takeOut()
                return self._flushMemory()
            if failed.errno not in LATER:
                raise
        if not pipe.size:
            self._giveBack(pipe)
        return before - pipe.size

    def _takeOut(self) -> None:
        """Bring what lies in the pipe into memory: something is to follow it."""
        pipe = self._pipe
        if pipe is not None:
            kept = pipe.read()
            self._pending.append(kept)
            self._pendingSize += len(kept)
            self._giveBack(pipe)

    def _giveBack(self, pipe: Pipe) -> None:
        assert self._pipes is not None
        self._pipe = None
        self._pipes.give(pipe)
