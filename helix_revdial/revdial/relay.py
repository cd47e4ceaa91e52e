# -*- test-case-name: tests.revdial.test_relay,tests.revdial.test_relay_machine -*-
"""
Joins two connections: what one receives, the other sends.

L{relayPair} makes the two halves, each an ordinary protocol.  The owner puts
one on each connection, in any order and at any time.

  - B{Backpressure.}  A half is the producer of the other's transport.  When that
    transport's buffer is over its limit, this half's transport stops reading, so
    the peer's own writes stop.  The two directions are independent: both may be
    stopped at once without either waiting for the other.
  - B{Memory.}  For each direction at most one transport's write buffer (paused
    above 64 KiB) and one read (64 KiB; 32 KiB more where TLS is between), so
    under 256 KiB for a direction, whatever the amount that flows.  The kernel's
    socket buffers come on top.
  - B{Ends.}  The end of one direction is forwarded where the other transport can
    half-close (L{canHalfClose <helix_revdial.revdial.carrier.canHalfClose>});
    where it cannot, the other connection is closed after what was written is
    flushed.  When both directions have ended, both connections are closed, after
    a flush.  A connection that breaks before its peer has ended breaks the other,
    so that a cut stream never looks like a whole one; after that, the other is
    closed with a flush.
  - B{Linger.}  From the first end on, a pair in which nothing moves for the linger
    limit is dropped.  What the kernel still sends moves too; and while it holds bytes
    for a reader who takes none, that is L{DELIVERY} times as long.  Before the first
    end, silence has no limit here.

Where both connections are plain sockets, and the owner gives it
L{SocketRelays <helix_revdial.revdial.sockets.SocketRelays>}, those move the bytes
once both halves are connected: the same rules, faster.  This is the one place
where that is chosen.

The relay holds no bytes of its own, but for what arrives while the other half is not
connected yet: one read, of a transport that goes on delivering after it was told to
pause; or, where the other half's carrier is there already (L{RelayProtocol.sendEarly}),
L{MAX_EARLY} bytes and one read, kept in case that carrier proves lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet import error
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.revdial.carrier import canHalfClose
from helix_revdial.revdial.socket_streams import streamOf
from helix_revdial.revdial.sockets import DELIVERY, SocketRelay, SocketRelays
from helix_revdial.revdial.unsent import unsentBytes

DONE = "done"
BROKEN = "broken"
LINGERED = "lingered"
ABANDONED = "abandoned"

MAX_EARLY = 64 * 1024
"""Bytes that are received for a half that is not connected, where they can be sent."""


@dataclass(frozen=True, slots=True)
class RelayEnd:
    """
    How a pair ended.

    @ivar why: C{"done"}: both connections ended in good order.  C{"broken"}: one
        broke.  C{"lingered"}: one side ended and nothing moved for the linger
        limit.  C{"abandoned"}: the other connection was never made.
    @ivar first: Which half ended first: C{"left"} or C{"right"}.
    @ivar fromLeft: Bytes that the left half received.
    @ivar fromRight: Bytes that the right half received.
    @ivar seconds: From the first connection to the end.
    @ivar failure: What the half that ended the pair heard; C{None} for C{"lingered"}
        and where the owner abandoned it.
    """

    why: str
    first: str
    fromLeft: int
    fromRight: int
    seconds: float
    failure: Failure | None


class _Pair:
    """What the two halves share: the linger timer, the times and the last word."""

    __slots__ = (
        "_joining",
        "_relay",
        "_silences",
        "_timer",
        "_unsent",
        "_waits",
        "began",
        "clock",
        "failure",
        "first",
        "isOver",
        "joined",
        "left",
        "linger",
        "onEnd",
        "right",
        "sockets",
        "taken",
        "why",
    )

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        linger: float,
        onEnd: Callable[[RelayEnd], None] | None,
        sockets: SocketRelays | None,
    ) -> None:
        self.clock = clock
        self.sockets = sockets
        self.taken = False
        self._relay: SocketRelay | None = None
        self._joining: IDelayedCall | None = None
        self._waits = False
        self.linger = linger
        self.onEnd = onEnd
        self.left: RelayProtocol
        self.right: RelayProtocol
        self.began: float | None = None
        self.joined = False
        self.why: str | None = None
        self.first: str | None = None
        self.failure: Failure | None = None
        self._timer: IDelayedCall | None = None
        # How often the linger limit has passed, and what the kernel had then.
        self._silences = 0
        self._unsent = 0
        self.isOver = False

    def connected(self) -> None:
        """One more half is connected; with the second, bytes flow."""
        if self.began is None:
            self.began = self.clock.seconds()
        if not (self.left.isOpen and self.right.isOpen):
            return
        if self.sockets is not None and self.sockets.available:
            # Whoever connected us may still have bytes in hand that came with the
            # upgrade: the sockets are taken when those have been delivered, which some
            # say, and others have done by the next turn.
            for half in (self.left, self.right):
                tell = getattr(half.transport, "whenDelivered", None)
                if tell is not None and tell(self._delivered):
                    self._waits = True
                    return
            self._joining = self.clock.callLater(0, self._join)
        else:
            self._join()

    def _delivered(self) -> None:
        if self._waits:
            self._join()

    def _join(self) -> None:
        self._joining = None
        self._waits = False
        if self.why is not None:
            return  # given up meanwhile
        self.joined = True
        if not self._takeOver():
            self.left.join()
            self.right.join()

    def joinNow(self) -> None:
        """
        A half is lost before the sockets were taken: what came by it is passed on
        in the portable way.
        """
        if self._joining is not None or self._waits:
            if self._joining is not None:
                self._joining.cancel()
                self._joining = None
            self._waits = False
            self.joined = True
            self.left.join()
            self.right.join()

    def _takeOver(self) -> bool:
        """Let the bytes be moved between the sockets, where that is possible."""
        left, right = self.left, self.right
        if self.sockets is None or not self.sockets.available or left.ended or right.ended:
            return False
        fromLeft = streamOf(left.transport)
        fromRight = None if fromLeft is None else streamOf(right.transport)
        if fromLeft is None or fromRight is None:
            return False
        self.taken = True
        self._relay = self.sockets.join(
            fromLeft,
            fromRight,
            linger=self.linger,
            onEnd=self._socketsEnded,
            toLeft=right.takeEarly(),
            toRight=left.takeEarly(),
        )
        return True

    def _socketsEnded(self, relay: SocketRelay) -> None:
        self.first = relay.first
        self.left.received += relay.fromLeft
        self.right.received += relay.fromRight
        self._relay = None
        why = {"done": DONE, "lingered": LINGERED}.get(relay.why or "", BROKEN)
        self.settle(why, None)

    def abortSockets(self) -> None:
        """A half is given up while others move its bytes."""
        if self._relay is not None:
            self._relay.abort()

    def moved(self) -> None:
        """A byte moved, or there is room for one again."""
        if self._timer is not None:
            self._silences = 0
            self._timer.reset(self.linger)

    def ending(self, half: RelayProtocol) -> None:
        """One direction has ended: from now on silence has a limit."""
        if self.first is None:
            self.first = half.name
        if self._timer is None and not (self.isOver or self.taken):
            self._timer = self.clock.callLater(self.linger, self._lingered)

    def _lingered(self) -> None:
        self._timer = None
        if self._isDelivering():
            self._timer = self.clock.callLater(self.linger, self._lingered)
            return
        self.settle(LINGERED, None)
        for half in (self.left, self.right):
            half.drop()

    def _isDelivering(self) -> bool:
        """Whether somebody takes, if slowly, what the kernel has for him; see L{unsentBytes}."""
        unsent = sum(unsentBytes(half.transport) for half in (self.left, self.right))
        before, self._unsent = self._unsent, unsent
        self._silences = 0 if unsent != before else self._silences + 1
        return unsent != before or (unsent > 0 and self._silences < DELIVERY)

    def settle(self, why: str, failure: Failure | None) -> None:
        """The first reason is the one that is told."""
        if self.why is None:
            self.why = why
            self.failure = failure

    def ended(self) -> None:
        """A half is gone; with the second, or without one to come, so is the pair."""
        if self.isOver or self.left.isOpen or self.right.isOpen:
            return
        self.isOver = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left, right = self.left, self.right
        # Whoever holds a half still may; but nothing leads round in a circle any more, so
        # that all of it goes without the garbage collector.
        onEnd, self.onEnd = self.onEnd, None
        del self.left, self.right
        left.dissolve()
        right.dissolve()
        if onEnd is None:
            return
        now = self.clock.seconds()
        end = RelayEnd(
            self.why or DONE,
            self.first or left.name,
            left.received,
            right.received,
            now - (now if self.began is None else self.began),
            self.failure,
        )
        try:
            onEnd(end)
        except Exception:
            self._log.failure("the end of a relay was not taken")


@implementer(IHalfCloseableProtocol, IPushProducer)
class RelayProtocol(Protocol):
    """
    One half; L{relayPair} makes two.

    @ivar name: C{"left"} or C{"right"}.
    @ivar received: Bytes that came from this half's peer.
    @ivar isOpen: Whether this half's connection is made and not lost.
    """

    transport: Any

    def __init__(self, pair: _Pair, name: str) -> None:
        self.name = name
        self.received = 0
        self.isOpen = False
        self.other: RelayProtocol
        self._pair = pair
        self._gone = False
        self._readEnded = False
        self._writeEnded = False
        self._early: list[bytes] | None = None
        self._earlyTo: Callable[[bytes], None] | None = None
        self._earlySent = 0

    # What this half's own connection is to send, before it is made.

    def sendEarly(self, write: Callable[[bytes], None]) -> None:
        """
        Give C{write} what the other half has received, and what it receives until
        this half is connected, L{MAX_EARLY} bytes at most: its carrier is there
        already.
        """
        if self._gone or self.isOpen or self.other._gone:
            return
        other = self.other
        other._earlyTo = write
        for data in list(other._early or ()):
            other._earlySent += len(data)
            write(data)
        if other.isOpen and not other._readEnded:
            receive = getattr(other.transport, "receiveNow", None)
            # What has come already can go with whatever is sent first.
            if receive is None or not receive():
                other.transport.resumeProducing()

    def keepEarly(self) -> None:
        """What was written is lost: it all goes out when this half is connected."""
        if not self._gone:
            self.other._earlyTo = None
            self.other._earlySent = 0

    def _sendEarly(self, write: Callable[[bytes], None], data: bytes) -> None:
        self._earlySent += len(data)
        write(data)
        if self._earlySent >= MAX_EARLY:
            self.transport.pauseProducing()

    def dissolve(self) -> None:
        """The pair is over: what connects now has come too late."""
        self._gone = True
        del self.other

    @property
    def ended(self) -> bool:
        """Whether this half's peer has ended its direction already."""
        return self._readEnded

    def takeEarly(self) -> bytes:
        """What came before the other half was connected, and was not sent already."""
        early, self._early = self._early, None
        return b"" if early is None else b"".join(early)[self._earlySent :]

    def connectionMade(self) -> None:
        if self._gone or self.other._gone:
            # The other side has come and gone, or was given up.
            self._gone = True
            self.transport.abortConnection()
            return
        self.isOpen = True
        if self._earlyTo is None and (not self.other.isOpen or self._pair.sockets is not None):
            self.transport.pauseProducing()
        if self.other._earlyTo is not None:
            # From here on what comes goes the usual way.
            self.other._earlyTo = None
            if self.other.isOpen:
                self.other.transport.pauseProducing()
        self._pair.connected()

    def join(self) -> None:
        """Both are connected: let bytes flow, first those that came early."""
        if not self.isOpen:
            return
        self.transport.registerProducer(self.other, True)
        early = self.takeEarly()
        if early:
            self.other.forward(early)
        if self._readEnded:
            self.other.forwardEnd()
        else:
            self.transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)
        self._pair.moved()
        if self._pair.joined:
            self.other.forward(data)
        else:
            if self._early is None:
                self._early = []
            self._early.append(data)
            if self._earlyTo is not None:
                self._sendEarly(self._earlyTo, data)

    def forward(self, data: bytes) -> None:
        """Send what the other half received."""
        if self.isOpen and not self._writeEnded:
            self.transport.write(data)

    def readConnectionLost(self) -> None:
        if self._readEnded or not self.isOpen:
            return
        self._readEnded = True
        self._pair.ending(self)
        if self._pair.joined:
            self.other.forwardEnd()

    def forwardEnd(self) -> None:
        """The other half's peer has ended: so does what we send."""
        if not self.isOpen or self._writeEnded:
            return
        self._writeEnded = True
        # Twisted neither sends a FIN nor closes TLS while a producer waits.
        self.transport.unregisterProducer()
        if canHalfClose(self.transport) and not self._readEnded:
            self.transport.loseWriteConnection()
        else:
            self.transport.loseConnection()
            if self._readEnded and not self._gone and self.other.isOpen:
                self.other.close()

    def writeConnectionLost(self) -> None:
        """Nothing follows from it: we ended that direction ourselves."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._pair.isOver:
            return
        self._pair.joinNow()
        wasOpen, self.isOpen = self.isOpen, False
        self._gone = True
        self._early = None
        pair, other = self._pair, self.other
        pair.ending(self)
        orderly = isinstance(reason.value, error.ConnectionDone)
        if not pair.joined or pair.why == LINGERED:
            pair.settle(ABANDONED, reason)
            other.drop()
        elif orderly or (self._readEnded and self._writeEnded):
            pair.settle(DONE, reason)
            other.close()
        elif self._readEnded:
            # All that this peer had to say is on its way to the other one; what
            # broke is only its ear.
            pair.settle(BROKEN, reason)
            other.close()
        else:
            pair.settle(BROKEN, reason)
            other.drop()
        if wasOpen or not pair.joined:
            pair.ended()

    def close(self) -> None:
        """End this half after what was written is flushed."""
        if self.isOpen and not self._pair.taken:
            self._writeEnded = True
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def drop(self) -> None:
        """End this half at once."""
        if self._pair.taken:
            self._pair.abortSockets()
        elif self.isOpen:
            self._writeEnded = True
            self.transport.abortConnection()

    def abandon(self) -> None:
        """
        Give the pair up: drop what is connected, and whatever connects later.

        For an owner whose other connection will not be made.
        """
        if self._pair.isOver:
            return
        self._pair.settle(ABANDONED, None)
        for half in (self, self.other):
            half._gone = True
            half.drop()
        self._pair.ended()

    # The producer of the other half's transport.

    def pauseProducing(self) -> None:
        if self.isOpen:
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self._pair.moved()
        if self.isOpen and not self._readEnded:
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The other transport is gone; its own C{connectionLost} says how."""


def relayPair(
    clock: IReactorTime,
    *,
    linger: float = 60.0,
    onEnd: Callable[[RelayEnd], None] | None = None,
    sockets: SocketRelays | None = None,
) -> tuple[RelayProtocol, RelayProtocol]:
    """
    Make a relay.

    @param clock: Times the linger limit.
    @param linger: Seconds of silence after the first end, before the pair is dropped.
    @param onEnd: Called once, when neither connection is left.
    @param sockets: Move the bytes where both connections are plain sockets.
    @return: The two halves.  A half whose C{connectionLost} is called before it is
        connected ends the pair too.
    """
    pair = _Pair(clock, linger, onEnd, sockets)
    pair.left = left = RelayProtocol(pair, "left")
    pair.right = right = RelayProtocol(pair, "right")
    left.other = right
    right.other = left
    return left, right


__all__ = ["RelayEnd", "RelayProtocol", "relayPair"]
