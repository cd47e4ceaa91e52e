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
from collections.abc import Sequence

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
    @ivar waits: Whether the socket has not taken everything.
    @ivar isAble: Whether the socket takes from a pipe, as far as is known.
    """

    # There are two for each stream.
    __slots__ = ("_pending", "_pendingSize", "_pipe", "_pipes", "_socket", "isAble", "waits")

    def __init__(self, socket: socket.socket, pipes: Pipes | None) -> None:
        """
        @param socket: Non-blocking.
        @param pipes: Takes a pipe back when it is empty.
        """
        self._socket = socket
        self._pipes = pipes
        # Made with what first waits, which most sockets never see.
        self._pending: list[memoryview | bytes] | None = None
        self._pendingSize = 0
        self._pipe: Pipe | None = None
        self.isAble = True
        self.waits = False

    @property
    def held(self) -> int:
        return self._pendingSize + (0 if self._pipe is None else self._pipe.size)

    def _settle(self) -> None:
        self.waits = bool(self._pending) or self._pipe is not None

    def send(self, piece: bytes | memoryview) -> None:
        """
        Send at once; keep a copy of what the socket does not take.

        @param piece: Not used after the call.
        @raise OSError: The connection broke.
        """
        sent = 0
        if self.waits:
            self._takeOut()
        else:
            try:
                sent = self._socket.send(piece)
            except OSError as failed:
                if failed.errno not in LATER:
                    raise
        if sent < len(piece):
            self._keep((piece,), sent)

    def sendPieces(self, pieces: Sequence[bytes | memoryview], size: int) -> None:
        """
        The same for several.

        @param size: Their sum.
        """
        sent = 0
        if self.waits:
            self._takeOut()
        else:
            try:
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
        sent = self._flushMemory(self._pending) if self._pending else 0
        if self._pipe is not None and not self._pending:
            sent += self._flushPipe(self._pipe)
        self._settle()
        return sent

    def clear(self) -> None:
        """Drop what waits."""
        self._pending = None
        self._pendingSize = 0
        if self._pipe is not None:
            self._giveBack(self._pipe)
        self.waits = False

    def _keep(self, pieces: Sequence[bytes | memoryview], skip: int) -> None:
        """Copy the pieces, less their first C{skip} bytes: the buffer is shared."""
        pending = self._pending
        if pending is None:
            pending = self._pending = []
        for piece in pieces:
            size = len(piece)
            if skip >= size:
                skip -= size
                continue
            kept = bytes(piece[skip:])
            skip = 0
            pending.append(kept)
            self._pendingSize += len(kept)
        self._settle()

    def _flushMemory(self, pending: list[memoryview | bytes]) -> int:
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
            self._keep((head,), 0)
            self._pipe = pipe
            self._settle()
            return
        self._pipe = pipe
        self.waits = True
        if head:
            sent = 0
            try:
                # The payload follows at once, in the same segment.
                sent = self._socket.send(head, socket.MSG_MORE)
            except OSError as failed:
                if failed.errno not in LATER:
                    raise
            if sent < len(head):
                self._keep((head,), sent)
                return
        self._flushPipe(pipe)
        self._settle()

    def _flushPipe(self, pipe: Pipe) -> int:
        before = pipe.size
        try:
            pipe.drain(self._socket.fileno())
        except OSError as failed:
            if failed.errno in UNABLE:
                self.isAble = False
                return self._flushMemory(self._takeOut())
            if failed.errno not in LATER:
                raise
        if not pipe.size:
            self._giveBack(pipe)
        return before - pipe.size

    def _takeOut(self) -> list[memoryview | bytes]:
        """
        Bring what lies in the pipe into memory: something is to follow it.

        @return: What waits now.
        """
        pending = self._pending
        if pending is None:
            pending = self._pending = []
        pipe = self._pipe
        if pipe is not None:
            kept = pipe.read()
            pending.append(kept)
            self._pendingSize += len(kept)
            self._giveBack(pipe)
        return pending

    def _giveBack(self, pipe: Pipe) -> None:
        assert self._pipes is not None
        self._pipe = None
        self._pipes.give(pipe)
