# -*- test-case-name: tests.http.test_connection -*-
"""
A server connection beneath HTTP: its place, its deadlines, its output and its end.

L{ConnectionLife} owns the transport from the moment it is accepted until it is closed
or handed over, and what has nothing to do with requests: whose connection it is
counted as, when the peer has stopped taking our bytes, and how to close so that the
peer still reads the last of them.  It reads nothing; L{HTTPConnection
<helix_revdial.http.connection.HTTPConnection>} does.

Invariants:

  - A connection that closes is in L{Phase.CLOSING}: what comes is dropped, a deadline
    ends it, and the transport's producer slot is free.
  - Its place among the strangers is given back once.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, cast

from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IPushProducer
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from helix_revdial.http.deadline import Deadline
from helix_revdial.http.limits import addressKey
from helix_revdial.http.unsent import unsentBytes

if TYPE_CHECKING:
    from helix_revdial.http.factory import HTTPFactory


class Phase(enum.Enum):
    """What a connection is doing."""

    READING = "waiting for a head"
    SERVING = "a request is being answered"
    DRAINING = "the answer is out, the rest of the request's body is not in"
    CLOSING = "closed by us; what comes is dropped"
    HANDED_OVER = "another protocol's"
    LOST = "gone"


@implementer(IPushProducer)
class ConnectionLife(Protocol):
    """
    Holds one transport.  See the module's docstring.

    @ivar identifies: Whether the peer's TLS certificate, where there is one, has
        been verified and says who asks.
    @ivar countedAs: The address as whose connection this one is counted.
    """

    # There may be tens of thousands, most of them somebody else's by then.
    __slots__ = (
        "_addressChecked",
        "_admittedAs",
        "_deadline",
        "_drained",
        "_inputEnded",
        "_limits",
        "_producing",
        "_readsPaused",
        "_secure",
        "_stall",
        "_turn",
        "_writesPaused",
        "connected",
        "countedAs",
        "factory",
        "identifies",
        "phase",
        "transport",
    )

    factory: HTTPFactory
    transport: Any

    def __init__(self, factory: HTTPFactory) -> None:
        self.factory = factory
        self.transport = None
        self.connected = 0
        self.identifies = False
        self.phase = Phase.READING
        self.countedAs: str | None = None
        self._limits = factory.limits
        self._deadline = Deadline(factory.clock)
        """Of the head, of idleness, of closing."""
        self._stall = Deadline(factory.clock)
        """Of a peer that does not take our bytes."""
        self._turn = Deadline(factory.clock)
        """The next turn of a connection with many pipelined requests."""
        self._readsPaused = False
        self._inputEnded = False
        self._writesPaused = False
        self._drained: Deferred[None] | None = None
        self._producing = False
        self._admittedAs: str | None = None
        self._addressChecked = False
        self._secure = False

    # What the reader does

    def _dropInput(self) -> None:
        """The connection closes: forget what was read and not used."""

    def _advance(self) -> None:
        """The peer takes our bytes again: there may be something to do."""

    # Whose it is

    def _peer(self) -> IAddress | None:
        return cast("IAddress | None", self.transport.getPeer())

    def _peerCertificate(self) -> bytes | None:
        if not self.identifies or not self._secure:
            return None
        certificate = self.transport.getPeerCertificate()
        if certificate is None:
            return None
        encoded: bytes = certificate.to_cryptography().public_bytes(Encoding.DER)
        return encoded

    def _releaseAdmission(self) -> None:
        address, self._admittedAs = self._admittedAs, None
        if address is not None:
            self.factory.admission.release(address)

    def _countByRealAddress(self) -> bool:
        """
        Behind a PROXY header the peer's own address shows only once bytes arrive.

        @return: Whether there is a place for it.
        """
        if self._admittedAs is None or self._addressChecked:
            return True
        self._addressChecked = True
        address = addressKey(self._peer())
        if address == self._admittedAs:
            return True
        admission = self.factory.admission
        self._releaseAdmission()
        if self.countedAs is not None:
            admission.leave(self.countedAs)
            self.countedAs = None
        if not admission.enter(address):
            return False
        self.countedAs = address
        if not admission.admit(address):
            return False
        self._admittedAs = address
        return True

    # Output's backpressure (the transport's IPushProducer)

    def pauseProducing(self) -> None:
        """The transport has enough: the peer is not taking it."""
        self._writesPaused = True
        self._awaitTaking(self._stall)

    def resumeProducing(self) -> None:
        """The transport has written everything."""
        self._writesPaused = False
        self._stall.clear()
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.callback(None)
        if self.phase is Phase.READING:
            self._advance()

    def stopProducing(self) -> None:
        """The transport is gone; connectionLost follows."""

    def _awaitTaking(self, deadline: Deadline) -> None:
        """Cut the peer off if it takes nothing of what is there for it."""
        unsent = unsentBytes(self.transport)

        def look() -> None:
            if unsentBytes(self.transport) == unsent:
                self._abort()
            else:
                # The transport has not heard of it yet: see unsentBytes.
                self._awaitTaking(deadline)

        deadline.set(self._limits.stallTimeout, look)

    def _writable(self) -> Deferred[None]:
        """Fires when the transport takes more."""
        if not self._writesPaused:
            return succeed(None)
        self._drained = Deferred()
        return self._drained

    def _freeProducerSlot(self) -> None:
        if self._producing:
            self._producing = False
            self.transport.unregisterProducer()

    # Closing

    def _close(self) -> None:
        """Flush and close."""
        self._beginClosing()
        self._awaitTaking(self._deadline)
        self.transport.loseConnection()

    def _lingeringClose(self) -> None:
        """
        Flush and close, although the peer may be sending still.

        Closing a TCP socket with unread input resets it, and the reset overtakes
        our answer (RFC 9112, 9.6): so end our direction, and drop what comes until
        the peer ends its own or the time is up.  TLS has its own exchange for that.
        The time runs from here, not from writeConnectionLost, which a wrapper
        between the socket and us (PROXY) does not pass on.
        """
        transport = self.transport
        if self._inputEnded or self._secure or not hasattr(transport, "loseWriteConnection"):
            self._close()
            return
        self._beginClosing()
        self._deadline.set(self._limits.lingerTimeout, self._endLinger)
        transport.loseWriteConnection()

    def _endLinger(self) -> None:
        self._awaitTaking(self._deadline)
        self.transport.loseConnection()

    def _beginClosing(self) -> None:
        self.phase = Phase.CLOSING
        for deadline in (self._stall, self._turn):
            deadline.clear()
        self._dropInput()
        transport = self.transport
        self._freeProducerSlot()
        if self._readsPaused and not self._inputEnded:
            self._readsPaused = False
            transport.resumeProducing()

    def _abort(self) -> None:
        """Drop the connection: the peer sees that it is not a clean end."""
        if self.phase is not Phase.LOST:
            if self.phase is not Phase.HANDED_OVER:
                self._beginClosing()
            self.transport.abortConnection()

    def _breakOff(self) -> None:
        """Drop the connection after what its socket takes now: the peer has what came."""
        write = getattr(self.transport, "doWrite", None)
        if write is not None:
            write()
        self._abort()

    def abort(self) -> None:
        """Close at once."""
        self._abort()


__all__ = ["ConnectionLife", "Phase"]
