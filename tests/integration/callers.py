"""A caller's end of a stream, for tests over sockets."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer


@implementer(IHalfCloseableProtocol)
class Caller(Protocol):
    """
    A caller's end of a stream.

    @ivar data: All that came.
    @ivar ended: Fires when the other direction has ended.
    """

    def __init__(self) -> None:
        self.data = b""
        self.ended: Deferred[None] = Deferred()
        self.enough: tuple[int, Deferred[None]] | None = None

    @property
    def wire(self) -> Any:
        return self.transport

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        if self.enough is not None and len(self.data) >= self.enough[0]:
            (_, enough), self.enough = self.enough, None
            enough.callback(None)

    def whenReceived(self, count: int) -> Deferred[None]:
        """Fires when C{count} bytes have come."""
        enough: Deferred[None] = Deferred()
        self.enough = (count, enough)
        self.dataReceived(b"")
        return enough

    def readConnectionLost(self) -> None:
        if not self.ended.called:
            self.ended.callback(None)

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.readConnectionLost()
