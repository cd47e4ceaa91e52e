"""
Two ends of a connection in memory, that behave as Twisted's TCP does.

Each end has a write buffer with a producer, can be paused, half-closed, closed
with a flush, and aborted.  Bytes move only when a test says so (L{Wire.move}),
as many as it says, so that every interleaving can be had.
"""

from __future__ import annotations

from typing import Any

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import succeed
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    IPushProducer,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.revdial.data_websocket import dataServer


@implementer(ITransport, IConsumer, IPushProducer)
class WireEnd:
    """One end: the transport of one protocol."""

    bufferSize = 65536
    halfClosing = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.protocol: Any = None
        self.peer: WireEnd
        self.out = bytearray()
        self.highWater = 0
        self.connected = True
        self.disconnecting = False
        self.writeDisconnecting = False
        self.writeDisconnected = False
        self.finSeen = False
        self.reading = True
        self.producer: Any = None
        self.streaming = False
        self.producerPaused = False

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 4321)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.2", 80)

    def write(self, data: bytes) -> None:
        assert type(data) is bytes, type(data)
        if not self.connected or self.writeDisconnected or not data:
            return
        self.out += data
        self.highWater = max(self.highWater, len(self.out))
        if self.producer is not None and self.streaming and len(self.out) > self.bufferSize:
            self.producerPaused = True
            self.producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self.producer is not None:
            raise RuntimeError("a producer is registered")
        if not self.connected:
            producer.stopProducing()
            return
        self.producer = producer
        self.streaming = streaming
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self.producer = None

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        if self.connected and not self.disconnecting:
            self.reading = True

    def stopProducing(self) -> None:
        self.loseConnection()

    def loseConnection(self) -> None:
        if self.connected and not self.disconnecting:
            self.reading = False
            if self.writeDisconnected:
                self.lose(Failure(error.ConnectionDone()))
            else:
                self.disconnecting = True

    def loseWriteConnection(self) -> None:
        if self.halfClosing:
            self.writeDisconnecting = True

    def abortConnection(self) -> None:
        if self.connected and not self.disconnecting:
            self.reading = False
        if self.connected:
            self.out.clear()
            peer = self.peer
            self.lose(Failure(error.ConnectionAborted()))
            if peer.connected:
                peer.lose(Failure(error.ConnectionLost()))

    def lose(self, reason: Failure) -> None:
        """The connection is gone for this end."""
        if not self.connected:
            return
        self.connected = False
        self.reading = False
        if self.producer is not None:
            producer, self.producer = self.producer, None
            producer.stopProducing()
        self.protocol.connectionLost(reason)

    def drained(self) -> bool:
        """What Twisted's doWrite does with an empty buffer; whether anything happened."""
        if self.out or not self.connected:
            return False
        if self.producer is not None and (not self.streaming or self.producerPaused):
            self.producerPaused = False
            self.producer.resumeProducing()
            return True
        if self.disconnecting:
            self.lose(Failure(error.ConnectionDone()))
            return True
        if self.writeDisconnecting and not self.writeDisconnected:
            self.writeDisconnected = True
            listener = IHalfCloseableProtocol(self.protocol, None)
            if listener is not None:
                listener.writeConnectionLost()
            return True
        return False

    def receiveEnd(self) -> bool:
        """Hear the peer's FIN, once everything before it has been read."""
        peer = self.peer
        over = peer.writeDisconnected or not peer.connected
        if not self.connected or self.finSeen or peer.out or not over or not self.reading:
            return False
        self.finSeen = True
        self.reading = False
        listener = IHalfCloseableProtocol(self.protocol, None)
        if listener is not None:
            listener.readConnectionLost()
        else:
            self.lose(Failure(error.ConnectionDone()))
        return True


class Wire:
    """
    A connection between two protocols.

    @ivar left: The transport of the first protocol.
    @ivar right: The transport of the second.
    """

    def __init__(self, left: Any, right: Any, *, halfClosing: bool = True) -> None:
        self.left = WireEnd("left")
        self.right = WireEnd("right")
        self.left.peer = self.right
        self.right.peer = self.left
        for end, protocol in ((self.left, left), (self.right, right)):
            end.protocol = protocol
            end.halfClosing = halfClosing

    def connect(self) -> Wire:
        """Connect both protocols, the left first."""
        self.left.protocol.makeConnection(self.left)
        self.right.protocol.makeConnection(self.right)
        return self

    def move(self, end: WireEnd, size: int = 65536) -> bool:
        """
        Let one end send up to C{size} bytes, if the other reads.

        @return: Whether anything happened.
        """
        if end.out and end.peer.connected and end.peer.reading:
            data = bytes(end.out[:size])
            del end.out[: len(data)]
            end.peer.protocol.dataReceived(data)
            end.drained()
            return True
        if end.out and (not end.peer.connected):
            end.out.clear()
            end.lose(Failure(error.ConnectionLost()))
            return True
        return end.drained() or end.peer.receiveEnd()

    def settle(self, size: int = 65536, clock: Any = None, limit: int = 100000) -> None:
        """Move bytes both ways until nothing moves any more."""
        for _ in range(limit):
            if clock is not None:
                clock.advance(0)
            moved = self.move(self.left, size)
            moved = self.move(self.right, size) or moved
            if not moved:
                return
        raise AssertionError("bytes move for ever")


class Recorder(Protocol):
    """
    Keeps what it hears.

    @ivar received: All bytes.
    @ivar heard: C{"made"}, C{"end"} and C{"lost"}, in order, with C{"data"} once for
        each run of bytes.
    @ivar reason: Why the connection was lost.
    """

    def __init__(self) -> None:
        self.received = bytearray()
        self.heard: list[str] = []
        self.reason: Any = None
        self.onData: Any = None

    @property
    def wire(self) -> Any:
        """The transport, untyped."""
        return self.transport

    def connectionMade(self) -> None:
        self.heard.append("made")

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self.heard[-1] != "data":
            self.heard.append("data")
        if self.onData is not None:
            self.onData(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        assert self.reason is None, "told twice"
        self.heard.append("lost")
        self.reason = reason.value


@implementer(IHalfCloseableProtocol)
class HalfRecorder(Recorder):
    """The same, and it can go on when the peer has ended."""

    def readConnectionLost(self) -> None:
        self.heard.append("end")

    def writeConnectionLost(self) -> None:
        """Not of interest."""


@implementer(IStreamClientEndpoint)
class WireEndpoint:
    """
    A client endpoint whose server is C{buildServer()}, over a L{Wire} in memory.

    @ivar wires: The connections made so far; the client is on the left.
    """

    def __init__(self, buildServer: Any, *, halfClosing: bool = True) -> None:
        self.buildServer = buildServer
        self.halfClosing = halfClosing
        self.wires: list[Wire] = []

    def connect(self, protocolFactory: Any) -> Any:
        client = protocolFactory.buildProtocol(None)
        wire = Wire(client, self.buildServer(), halfClosing=self.halfClosing)
        self.wires.append(wire)
        wire.connect()
        return succeed(client)


@implementer(IHalfCloseableProtocol)
class HeadThen(Protocol):
    """
    Stands for our HTTP layer: takes a request's head, then hands the connection to
    a successor, with the head replayed or not, and with all that follows.
    """

    def __init__(self, build: Any, *, replayHead: bool) -> None:
        self.build = build
        self.replayHead = replayHead
        self.buffer = b""
        self.head = b""
        self.successor: Any = None

    def dataReceived(self, data: bytes) -> None:
        if self.successor is not None:
            self.successor.dataReceived(data)
            return
        self.buffer += data
        head, mark, rest = self.buffer.partition(b"\r\n\r\n")
        if not mark:
            return
        self.head = head + mark
        self.successor = self.build()
        self.successor.makeConnection(self.transport)
        first = (self.head if self.replayHead else b"") + rest
        if first:
            self.successor.dataReceived(first)

    def readConnectionLost(self) -> None:
        if self.successor is None:
            self.transport.loseConnection()  # type: ignore[union-attr]
        else:
            IHalfCloseableProtocol(self.successor).readConnectionLost()

    def writeConnectionLost(self) -> None:
        """Not of interest."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.successor is not None:
            self.successor.connectionLost(reason)


def dataHead(protocol: Any, **options: Any) -> HeadThen:
    """Takes a request's head, then is the accepting end of a stream over WebSocket."""

    def build() -> Any:
        key = head.head.lower().split(b"sec-websocket-key: ")[1].split(b"\r\n")[0]
        at = head.head.lower().index(key)
        return dataServer(protocol, key=head.head[at : at + len(key)], **options)

    head = HeadThen(build, replayHead=False)
    return head
