"""
A carrier in memory, for the protocols that sit on one.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.revdial.interfaces import ICarrierTransport
from helix_revdial.revdial.messages import Message, MessageReader


@implementer(ICarrierTransport, IConsumer, IPushProducer)
class MemoryCarrier(StringTransport):
    """
    Collects what is written.  C{loseConnection} and C{closeWith} end it at once
    unless C{stuck}: then only an abort does, as with a peer that does not read.

    @ivar closedWith: The code and reason of C{closeWith}.
    @ivar aborted: Whether it ended by an abort.
    @ivar ended: Whether it ended.
    @ivar pings: The pings that were asked for and not answered.
    """

    def __init__(
        self,
        carrier: str = "raw",
        *,
        halfClose: bool = True,
        responseHeaders: tuple[tuple[bytes, bytes], ...] = (),
        canPing: bool = False,
        stuck: bool = False,
    ) -> None:
        super().__init__()
        self.carrier = carrier
        self.halfClose = halfClose
        self.responseHeaders = responseHeaders
        self.bytesReceived = 0
        self.bytesSent = 0
        self.canPing = canPing
        self.stuck = stuck
        self.protocol: Any = None
        self.closedWith: tuple[int, str] | None = None
        self.aborted = False
        self.ended = False
        self.writeEnded = False
        self.pings: list[Deferred[float]] = []

    def connect(self, protocol: Any) -> MemoryCarrier:
        """Carry C{protocol}."""
        self.protocol = protocol
        protocol.makeConnection(self)
        return self

    def deliver(self, data: bytes) -> None:
        """Bytes of the peer."""
        self.bytesReceived += len(data)
        self.protocol.dataReceived(data)

    def messages(self) -> list[Message]:
        """The control messages written since the last call."""
        written = self.value()
        self.clear()
        return list(MessageReader().feed(written))

    def lose(self, error: Exception | None = None) -> None:
        """The connection ends."""
        if not self.ended:
            self.ended = True
            pings, self.pings = self.pings, []
            for ping in pings:
                ping.errback(Failure(ConnectionDone()))
            self.protocol.connectionLost(Failure(ConnectionDone() if error is None else error))

    def write(self, data: bytes) -> None:
        if not self.ended:
            self.bytesSent += len(data)
            super().write(data)

    def closeWith(self, code: int, reason: str) -> None:
        self.closedWith = (code, reason)
        self.loseConnection()

    def loseConnection(self) -> None:
        assert self.producer is None, "a registered producer keeps a TLS connection open"
        if not self.stuck:
            self.lose()

    def loseWriteConnection(self) -> None:
        self.writeEnded = True

    def abortConnection(self) -> None:
        if not self.ended:
            self.aborted = True
            self.lose(ConnectionAborted())

    def unregisterProducer(self) -> None:
        self.producer = None

    def ping(self) -> Deferred[float] | None:
        if not self.canPing:
            return None
        pong: Deferred[float] = Deferred()
        self.pings.append(pong)
        return pong
