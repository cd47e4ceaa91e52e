# -*- test-case-name: tests.revdial.test_sockets -*-
"""
The relay on plain sockets: the fast way between two connections.

Twisted's transports copy what they are given, wait for the next turn of the
reactor to send it, and register and unregister for each chunk.  Where both
connections are plain sockets and the reactor takes descriptors of ours
(C{IReactorFDSet}), L{SocketRelays} takes them over once the stream is joined,
and moves the same bytes, and the same WebSocket frames, itself: received into
one buffer that all relays share, unmasked and masked in place, sent at once.
A side is registered for writing only after a send that took less than all.

What is kept from the portable relay (L{helix_revdial.revdial.relay}), and
tested by the same tests:

  - B{Backpressure.}  While a side has bytes that its socket did not take, the
    other side is not read.
  - B{Memory.}  A direction holds what one read could not pass on: at most the
    shared buffer's size (256 KiB) and the heads of its frames.
  - B{Ends, linger, breaks.}  As there.
  - B{Bulk} goes through pipes, without a copy, where no mask stands in the way
    (L{helix_revdial.revdial.splices}).
  - B{A failure costs its own stream.}  No exception leaves a C{doRead} or
    C{doWrite}: Twisted would drop the descriptor, and this relay would hang.

The transports that the sockets came from are parked: they are out of the
reactor, and hear C{connectionLost} when the relay is over, which closes the
sockets and tells the protocols on top.  While parked they must not be used;
their owners go through L{SocketRelay.abort}.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReactorTime
from twisted.logger import Logger

from helix_revdial.revdial.frames import MAX_HEAD
from helix_revdial.revdial.masks import Keys
from helix_revdial.revdial.pipes import Pipes, hasSplice
from helix_revdial.revdial.socket_poll import SocketPoll
from helix_revdial.revdial.socket_side import Side
from helix_revdial.revdial.socket_streams import SocketStream
from helix_revdial.revdial.splices import Bulk
from helix_revdial.revdial.tls_side import TLSSide

BUFFER = 256 * 1024
"""Bytes that one receive may bring."""

LINGER_PARTS = 20
"""A relay that lingers is dropped at most this part of its limit late."""

DELIVERY = 10
"""Times its linger limit that a relay waits for a reader who takes nothing of what is there."""

BULK = Bulk()


class SocketRelays:
    """
    Takes pairs of connections over.

    @ivar size: Bytes that one receive may bring.
    @ivar buffer: What all share: room for a head, then for what is received.
    @ivar room: The same without the first.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        size: int = BUFFER,
        keys: Keys | None = None,
        splice: bool = True,
        pipes: Pipes | None = None,
        bulk: Bulk = BULK,
    ) -> None:
        """
        @param reactor: Tells the time and, on a platform where this works, watches
            descriptors.
        @param size: Bytes that one receive may bring.
        @param keys: Makes masking keys.
        @param splice: Whether bulk is moved without a copy where the platform can.
        @param pipes: To do that by; of our own if not given.
        @param bulk: What counts as bulk.
        """
        self.reactor = reactor
        self.clock = cast(IReactorTime, reactor)
        self.keys = keys or Keys()
        self.available = sys.platform == "linux" and IReactorFDSet.providedBy(reactor)
        self.poll = SocketPoll(reactor)
        self.pipes: Pipes | None = None
        if splice and hasSplice and self.available:
            self.pipes = pipes or Pipes(self.clock)
        self.bulk = bulk
        self._relays = 0
        # Those of which one direction has ended, with one timer for all.
        self._lingering: dict[SocketRelay, None] = {}
        self._timer: IDelayedCall | None = None
        self.size = size
        # Both made with the first relay: an agent without streams does not have them.
        self.buffer = self.room = memoryview(b"")

    def join(
        self,
        left: SocketStream,
        right: SocketStream,
        *,
        linger: float,
        onEnd: Callable[[SocketRelay], None],
        toLeft: bytes = b"",
        toRight: bytes = b"",
    ) -> SocketRelay:
        """
        Take two connections over.

        @param linger: Seconds of silence after the first end.
        @param onEnd: Told when the relay is over, before the transports are; its
            C{why} is C{"done"}, C{"broken"}, C{"lingered"} or C{"aborted"}.
        @param toLeft: Payload that is to go to the left before anything else.
        @param toRight: The same for the right.
        """
        if not self.buffer:
            self.buffer = memoryview(bytearray(MAX_HEAD + self.size))
            self.room = self.buffer[MAX_HEAD:]
        relay = SocketRelay(self, left, right, linger, onEnd)
        self._relays += 1
        relay.start(toLeft, toRight)
        return relay

    def lingers(self, relay: SocketRelay) -> None:
        """From now on the silence of a relay has a limit."""
        self._lingering[relay] = None
        due = self.clock.seconds() + relay.linger
        if self._timer is not None and self._timer.getTime() > due:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self.clock.callLater(relay.linger, self._lookAtSilence)

    def _lookAtSilence(self) -> None:
        self._timer = None
        now = self.clock.seconds()
        for relay in list(self._lingering):
            if relay.silentAt() <= now and not relay.isDelivering(now):
                relay.finish("lingered", "nothing moved after the first end")
        # Many may be due one after the other: they are not looked through for each.
        waits = [
            max(relay.silentAt() - now, relay.linger / LINGER_PARTS) for relay in self._lingering
        ]
        if waits and self._timer is None:
            self._timer = self.clock.callLater(min(waits), self._lookAtSilence)

    def ended(self, relay: SocketRelay) -> None:
        """A relay is over; with the last one, the timer and the pipes go."""
        self._lingering.pop(relay, None)
        self._relays -= 1
        if not self._relays:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self.pipes is not None:
                self.pipes.close()


class SocketRelay:
    """
    One pair.

    @ivar why: How it ended, or C{None}.
    @ivar linger: Seconds of silence after the first end.
    @ivar first: Which side ended first: C{"left"}, C{"right"}, or C{None}.
    @ivar fromLeft: Once it is over: payload bytes that came from the left.
    @ivar fromRight: The same for the right.
    @ivar movedAt: When a byte moved last, by the clock, from the first end on.
    @ivar unsent: Bytes that the kernel still had for both sides when it was last silent.
    """

    __slots__ = (
        "_onEnd",
        "_sides",
        "first",
        "fromLeft",
        "fromRight",
        "linger",
        "movedAt",
        "relays",
        "unsent",
        "why",
    )

    _log = Logger()

    def __init__(
        self,
        relays: SocketRelays,
        left: SocketStream,
        right: SocketStream,
        linger: float,
        onEnd: Callable[[SocketRelay], None],
    ) -> None:
        self.relays = relays
        self.why: str | None = None
        self.first: str | None = None
        self.linger = linger
        self.fromLeft = 0
        self.fromRight = 0
        self.movedAt: float | None = None
        self.unsent = 0
        self._onEnd = onEnd
        first, second = _sideOf(self, left), _sideOf(self, right)
        first.other, second.other = second, first
        # None when it is over.
        self._sides: tuple[Side, ...] = (first, second)

    def start(self, toLeft: bytes, toRight: bytes) -> None:
        """Take the sockets out of Twisted's hands and let bytes flow."""
        sides = self._sides
        for side in sides:
            side.take()
        for side, first in zip(sides, (toLeft, toRight), strict=True):
            if first:
                side.guard(side.sendFirst, first)
        for side in sides:
            payload, side.stream.payload = side.stream.payload, b""
            if payload:
                side.guard(side.receivedPayload, payload)
            early, side.stream.early = side.stream.early, b""
            if early:
                side.guard(side.received, memoryview(bytearray(early)))
        for side in sides:
            side.updateReading()

    def abort(self) -> None:
        """End both connections at once, for an owner who wants no more of them."""
        self.finish("aborted", "the stream was cut")

    # What the sides report.

    def moved(self) -> None:
        """A byte moved."""
        if self.movedAt is not None:
            self.movedAt = self.relays.clock.seconds()

    def silentAt(self) -> float:
        """When it will have been silent for too long, by the clock, if it lingers."""
        return (self.movedAt or 0.0) + self.linger

    def isDelivering(self, now: float) -> bool:
        """
        Whether a reader takes what is there for it, if slowly, to be asked when silence
        has reached its limit: a socket says that it has room only when a good part of its
        buffer is free, and a full one's peer gives way again only after a good part of
        its own.
        """
        unsent = sum(side.unsent for side in self._sides)
        before, self.unsent = self.unsent, unsent
        if unsent != before:
            self.moved()
            return True
        waits = unsent or any(side.outbox.waits for side in self._sides)
        return bool(waits) and now < (self.movedAt or 0.0) + DELIVERY * self.linger

    def ending(self, side: Side) -> None:
        """One direction has ended: from now on silence has a limit."""
        if self.why is not None:
            return
        if self.first is None:
            self.first = "left" if side is self._sides[0] else "right"
        if self.movedAt is None:
            self.movedAt = self.relays.clock.seconds()
            self.relays.lingers(self)

    def checkDone(self) -> None:
        """Both directions may have ended, and both connections."""
        if self.why is None:
            left, right = self._sides
            if left.isOver and right.isOver:
                self.finish("done", "")

    def finish(self, why: str, text: str) -> None:
        """It is over: give the sockets back to their transports, which close them."""
        if self.why is not None:
            return
        self.why = why
        sides, self._sides = self._sides, ()
        # What a peer was sent up to the end is its own, also where it is slow to take it.
        flushed = [why == "done" or (why == "lingered" and side.hasSentAll) for side in sides]
        for side in sides:
            side.leaveReactor()
        self.relays.ended(self)
        self.fromLeft, self.fromRight = sides[0].stream.received, sides[1].stream.received
        try:
            self._onEnd(self)
        except Exception:
            self._log.failure("the end of a relay was not taken")
        for side, flush in zip(sides, flushed, strict=True):
            side.release(why == "done", flush, text)
        for side in sides:
            side.dissolve()


def _sideOf(relay: SocketRelay, stream: SocketStream) -> Side:
    return Side(relay, stream) if stream.tls is None else TLSSide(relay, stream)


__all__ = ["SocketRelay", "SocketRelays"]
