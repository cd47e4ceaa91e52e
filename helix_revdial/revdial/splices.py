# -*- test-case-name: tests.revdial.test_splices -*-
"""
One direction of a relay in bulk: from socket to socket through a pipe, without a copy.

A L{Splice} belongs to the side that receives.  It looks on while that side reads into
the shared buffer; when reads come large, it takes over, and when they become small it
lets go: a small message costs fewer calls, and less time, through the buffer.  It moves
payload that nobody has to look at or to change:

  - what comes raw, or inside a WebSocket frame without a mask or with a zero key.  The
    heads of frames are read apart, with exactly as many bytes as such a head has, and so
    is everything that is no payload;
  - what goes out raw, or behind the head of a frame that is not masked, or masked with a
    zero key where both ends agreed on that (C{docs/wire.md}).  One pipe filled is one
    frame.

What is kept:

  - B{Memory.}  At most L{Bulk.atOnce} bytes lie in the pipe of a direction; nothing is
    taken from the socket while something waits for the other one.
  - B{Fairness.}  A turn moves L{Bulk.quantum} bytes and a pipe at most, then others have
    theirs.
  - B{A way back.}  Without a pipe, or where the kernel says that a descriptor cannot be
    spliced, the side reads into its buffer as ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helix_revdial.revdial.pipes import Pipes
from helix_revdial.revdial.socket_outbox import LATER, UNABLE

if TYPE_CHECKING:
    from helix_revdial.revdial.socket_side import Side


@dataclass(frozen=True, slots=True)
class Bulk:
    """
    What counts as bulk, and how much of it is moved at a time.

    @ivar large: Bytes of a read that count.
    @ivar reads: Large reads in a row after which it is bulk.
    @ivar small: Fewer bytes at once are better copied.
    @ivar atOnce: Bytes that a pipe is filled with; as many as a read into the buffer.
    @ivar quantum: Bytes that one stream moves in one direction before others have
        their turn.
    """

    large: int = 64 * 1024
    reads: int = 1
    small: int = 16 * 1024
    atOnce: int = 256 * 1024
    quantum: int = 256 * 1024


def spliceOf(side: Side, target: Side, pipes: Pipes | None, bulk: Bulk) -> Splice | None:
    """
    Whether, and by what, the bulk that a side receives can be moved without a copy.

    @param side: The one that receives.
    @param target: The one that sends.
    @param pipes: C{None} where this platform or the operator has none.
    @return: C{None} where TLS stands in the way, or what it sends has to be masked.
        Whether what comes has a mask is seen frame by frame.
    """
    goes = target.stream.framing
    if pipes is None or side.stream.tls is not None or target.stream.tls is not None:
        return None
    if goes is not None and goes.client and not goes.zeroKey:
        return None
    return Splice(side, target, pipes, bulk)


class Splice:
    """
    Moves one direction's bulk.

    @ivar isBulk: Whether what comes is bulk, as far as L{noticed} knows.
    @ivar large: Bytes of a read that are to be L{noticed}; others are where it is bulk.
    """

    __slots__ = (
        "_able",
        "_bulk",
        "_count",
        "_pipes",
        "_reader",
        "_side",
        "_target",
        "isBulk",
        "large",
    )

    def __init__(self, side: Side, target: Side, pipes: Pipes, bulk: Bulk) -> None:
        """
        @param side: The one that receives.
        @param target: The one that sends.
        @param pipes: To take one from for each turn.
        """
        self._side = side
        self._target = target
        self._pipes = pipes
        self._bulk = bulk
        self._reader = None if side.stream.framing is None else side.stream.framing.reader
        self.large = bulk.large
        self.isBulk = False
        self._count = 0
        self._able = True

    def noticed(self, size: int) -> None:
        """The side has read so many bytes into its buffer."""
        if size < self.large or not self._able:
            self._leave()
        elif not self.isBulk:
            self._count += 1
            self.isBulk = self._count >= self._bulk.reads

    def _leave(self) -> None:
        """What comes is no bulk, until it has been anew."""
        self._count = 0
        self.isBulk = False

    def read(self) -> bool:
        """
        Move what has come, if this is bulk.

        @return: Whether that was done; if not, the side is to read into its buffer.
        @raise OSError: A connection broke.
        """
        bulk, side, target = self._bulk, self._side, self._target
        moved = 0
        while self.isBulk and side.isGiving and target.isTaking:
            got = self._fill() if self._payload() >= bulk.small else self._readBetween()
            if got is None:
                break
            if not got:
                return True
            moved += got
            if moved >= bulk.quantum:
                break
        return moved > 0

    def _payload(self) -> int:
        """Bytes that may come before something that is no payload."""
        return self._bulk.atOnce if self._reader is None else self._reader.plain

    def _readBetween(self) -> int | None:
        """
        Read what is no payload, or the little that a frame has left, into the buffer,
        and no more than that.

        @return: As L{_fill}.
        """
        reader = self._reader
        if reader is None:
            return None
        if reader.plain:
            return self._side.receive(reader.plain)
        if not (reader.between and reader.isPlain):
            return None
        got = self._side.receive(reader.headSize)
        if reader.plain < self._bulk.small:
            # A small frame, or none of payload: it is no bulk any more.
            self._leave()
        return got

    def _fill(self) -> int | None:
        """
        Move one pipe.

        @return: How many bytes; 0 for none now; C{None} where the buffer has to be used.
        """
        pipe = self._pipes.take()
        if pipe is None:
            self._leave()
            return None
        try:
            got = pipe.fill(self._side.fileno(), min(self._payload(), self._bulk.atOnce))
        except OSError as failed:
            self._pipes.give(pipe)
            if failed.errno in UNABLE:
                self._able = False
                self._leave()
                return None
            if failed.errno in LATER:
                return 0
            raise
        if got < self._bulk.small:
            self._leave()
        if not got:
            # The end, which the side hears when it reads into its buffer.
            self._pipes.give(pipe)
            return None
        if self._reader is not None:
            self._reader.passed(got)
        self._side.forward(pipe)
        return got


__all__ = ["Bulk", "Splice", "spliceOf"]
