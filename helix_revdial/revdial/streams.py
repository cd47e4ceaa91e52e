# -*- test-case-name: tests.revdial.test_streams -*-
"""
A stream: what lies between a carrier and the protocol that uses it.

A data connection's carrier (WebSocket frames or raw bytes) knows bytes only; a
caller's protocol knows its application only.  L{StreamProtocol} stands between
the two, on both ends: it builds the caller's protocol, hands it a
L{StreamTransport}, passes events on, and keeps the L{Stream} record (one id,
timed phases, bytes each way, why it ended).

Invariants:

  - The caller's protocol hears C{connectionLost} exactly once if it heard
    C{makeConnection}, and never otherwise.
  - An exception in the caller's code ends this stream and no other: it is
    logged, and the carrier is aborted.
  - A protocol that does not know half-close is told C{connectionLost} at the
    peer's end of stream, as Twisted's TCP transport does; what it had written
    is still flushed.

This module opens no socket and starts no timer; whether a stream's path is still there
is for the kernel to find out (L{helix_revdial.revdial.keepalive}).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, NoProtocol
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableProtocol,
    IProducer,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Attribute, implementer

from .errors import wordsOf
from .interfaces import ICarrierTransport
from .keepalive import DATA_WATCH, watchPath
from .socket_streams import SocketStream


class IStreamTransport(ICarrierTransport, IConsumer, IPushProducer):
    """What a protocol on top of a stream has for its transport."""

    stream: Stream | None = Attribute(
        "The L{Stream} record of a dialled stream; C{None} on the agent's side."
    )


@implementer(IAddress)
@dataclass(frozen=True, slots=True)
class RunnerAddress:
    """
    Where a dialled stream leads.

    @ivar runner: The runner's key.
    @ivar target: The name of the local service, or C{None} for the runner's default.
    """

    runner: str
    target: str | None = None


@implementer(IAddress)
@dataclass(frozen=True, slots=True)
class TargetAddress:
    """The name under which an agent offers a local service."""

    target: str


@dataclass(eq=False, slots=True)
class Stream:
    """
    The record of one dial and of the stream that it gave.

    @ivar id: The dial's id.
    @ivar runner: The runner's key.
    @ivar target: The target's name, or C{None} for the default.
    @ivar phases: Seconds from the start of the dial to: C{"asked"} (the agent
        was sent the request), C{"dialBack"} (its data connection was up),
        C{"firstByteOut"}, C{"firstByteIn"}, C{"endOut"}, C{"endIn"} (either
        direction ended in an orderly way), C{"ended"}.  C{"target"} is a
        duration instead: how long the agent says that its target took to accept.
    @ivar generation: The registration that answered, once one did.
    @ivar reason: Why the stream ended, in words; C{None} while it has not.
    @ivar about: On whose behalf it was dialled, as its caller said.
    @ivar lastCarrier: What carries or carried it; C{None} where it was never up.
    @ivar pooled: Whether that was parked before, so that there was no dial-back.
    """

    clock: IReactorTime = field(repr=False)
    id: str
    runner: str
    target: str | None
    started: float = field(init=False)
    phases: dict[str, float] = field(init=False, default_factory=dict)
    generation: int | None = field(init=False, default=None)
    reason: str | None = field(init=False, default=None)
    about: Mapping[str, str] | None = field(init=False, default=None)
    lastCarrier: str | None = field(init=False, default=None)
    pooled: bool = field(init=False, default=False)
    _carrier: ICarrierTransport | None = field(init=False, default=None)
    _bytesIn: int = field(init=False, default=0)
    _bytesOut: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.started = self.clock.seconds()

    @property
    def bytesIn(self) -> int:
        """Payload bytes that came from the agent."""
        return self._bytesIn if self._carrier is None else self._carrier.bytesReceived

    @property
    def bytesOut(self) -> int:
        """Payload bytes that were given to the carrier for the agent."""
        return self._bytesOut if self._carrier is None else self._carrier.bytesSent

    @property
    def carrier(self) -> str | None:
        """C{"websocket"} or C{"raw"} while the stream is up, else C{None}."""
        return None if self._carrier is None else self._carrier.carrier

    def mark(self, phase: str) -> None:
        """Note that C{phase} was reached now; the first time counts."""
        if phase not in self.phases:
            self.phases[phase] = self.clock.seconds() - self.started

    def carried(self, carrier: ICarrierTransport) -> None:
        """The data connection is up."""
        self._carrier = carrier
        self.lastCarrier = carrier.carrier
        self.mark("dialBack")

    def end(self, reason: str) -> None:
        """The stream, or the dial for it, is over."""
        if self.reason is not None:
            return
        self.reason = reason
        self.mark("ended")
        if self._carrier is not None:
            self._bytesIn = self._carrier.bytesReceived
            self._bytesOut = self._carrier.bytesSent
            self._carrier = None


@implementer(IStreamTransport)
class StreamTransport:
    """
    A carrier's transport as the caller's protocol sees it: the same, with the
    stream's record, and with the runner for a peer.

    @ivar stream: The record, or C{None} on the agent's side.
    @ivar disconnecting: Whether our side has closed; Twisted's own protocols
        (L{LineReceiver <twisted.protocols.basic.LineReceiver>} and what builds on
        it) look at it to stop in the middle of what they have received.
    """

    __slots__ = ("_carrier", "_peer", "_untouched", "disconnecting", "stream")

    def __init__(
        self, carrier: IStreamTransport, stream: Stream | None, peer: IAddress | None
    ) -> None:
        self._carrier = carrier
        self.disconnecting = False
        self.stream = stream
        self._peer = peer
        self._untouched = stream is not None

    @property
    def carrier(self) -> str:
        return self._carrier.carrier

    @property
    def halfClose(self) -> bool:
        return self._carrier.halfClose

    @property
    def responseHeaders(self) -> tuple[tuple[bytes, bytes], ...]:
        return self._carrier.responseHeaders

    @property
    def bytesReceived(self) -> int:
        return self._carrier.bytesReceived

    @property
    def bytesSent(self) -> int:
        return self._carrier.bytesSent

    def write(self, data: bytes) -> None:
        if self._untouched and data:
            self._touched()
        self._carrier.write(data)

    def _touched(self) -> None:
        self._untouched = False
        if self.stream is not None:
            self.stream.mark("firstByteOut")

    def socketStream(self) -> SocketStream | None:
        """The connection beneath, for a relay that moves its bytes itself."""
        give = getattr(self._carrier, "socketStream", None)
        found: SocketStream | None = None if give is None else give()
        if found is not None and self.stream is not None:
            found.firsts = self
        return found

    def whenDelivered(self, call: Callable[[], None]) -> bool:
        """
        Have C{call} made when whoever connected the stream has given it everything
        that he has in hand.

        @return: Whether it will be; if not, that may have happened already.
        """
        tell = getattr(self._carrier, "whenDelivered", None)
        return tell is not None and bool(tell(call))

    def firstSent(self) -> None:
        """See L{FirstBytes <helix_revdial.revdial.socket_streams.FirstBytes>}."""
        if self._untouched:
            self._touched()

    def firstReceived(self) -> None:
        """See L{FirstBytes <helix_revdial.revdial.socket_streams.FirstBytes>}."""
        if self.stream is not None:
            self.stream.mark("firstByteIn")

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        self.disconnecting = True
        self._carrier.loseConnection()

    def loseWriteConnection(self) -> None:
        if self.stream is not None:
            self.stream.mark("endOut")
        self._carrier.loseWriteConnection()

    def abortConnection(self) -> None:
        self.disconnecting = True
        self._carrier.abortConnection()

    def closeWith(self, code: int, reason: str) -> None:
        self.disconnecting = True
        self._carrier.closeWith(code, reason)

    def ping(self) -> Deferred[float] | None:
        return self._carrier.ping()

    def getPeer(self) -> IAddress:
        return self._carrier.getPeer() if self._peer is None else self._peer

    def getHost(self) -> IAddress:
        return self._carrier.getHost()

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        self._carrier.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        self._carrier.unregisterProducer()

    def pauseProducing(self) -> None:
        self._carrier.pauseProducing()

    def resumeProducing(self) -> None:
        self._carrier.resumeProducing()

    def stopProducing(self) -> None:
        self.disconnecting = True
        self._carrier.stopProducing()


class StreamOwner:
    """Whose stream it is: told what becomes of it."""

    __slots__ = ()

    def streamConnected(self, protocol: IProtocol) -> None:
        """The protocol on the stream has its transport."""

    def streamFailed(self, failure: Failure) -> None:
        """That protocol could not be built or connected; the carrier is aborted."""
        StreamProtocol._log.failure("A stream's protocol could not be connected.", failure)

    def streamEnded(self, stream: StreamProtocol, reason: Failure) -> None:
        """The carrier is gone; called once, last."""


_NOBODY = StreamOwner()


@implementer(IHalfCloseableProtocol)
class StreamProtocol(Protocol):
    """
    The protocol that a carrier carries: it builds the caller's protocol when the
    carrier is up, and passes everything on.

    @ivar protocol: The caller's protocol, once built.
    """

    _log = Logger()

    def __init__(
        self,
        factory: IProtocolFactory,
        address: IAddress,
        *,
        stream: Stream | None = None,
        owner: StreamOwner = _NOBODY,
    ) -> None:
        """
        @param factory: Builds the caller's protocol.
        @param address: What C{buildProtocol} is told; for a dialled stream also
            what the transport says its peer is.
        @param stream: The record to keep; with one, this is the dialling side.
        @param owner: Told what becomes of the stream.
        """
        self.protocol: IProtocol | None = None
        self._factory = factory
        self._address = address
        self._stream = stream
        self._owner = owner
        self._silent = stream is not None
        self._ending: str | None = None

    def connectionMade(self) -> None:
        carrier: Any = self.transport
        # A stream has no heartbeat of its own, and may be idle for hours.
        if not getattr(carrier, "isWatched", False):
            watchPath(carrier, DATA_WATCH)
        if self._stream is not None:
            self._stream.carried(carrier)
        try:
            protocol = self._factory.buildProtocol(self._address)
            if protocol is None:
                raise NoProtocol()
        except Exception:
            self._fail(Failure())
            return
        self.protocol = protocol
        peer = None if self._stream is None else self._address
        try:
            protocol.makeConnection(StreamTransport(carrier, self._stream, peer))
        except Exception:
            self._fail(Failure())
            return
        self._owner.streamConnected(protocol)

    def dataReceived(self, data: bytes) -> None:
        protocol = self.protocol
        if protocol is None:
            return
        if self._silent:
            self._silent = False
            if self._stream is not None:
                self._stream.mark("firstByteIn")
        try:
            protocol.dataReceived(data)
        except Exception:
            self._broken("dataReceived")

    def readConnectionLost(self) -> None:
        if self._stream is not None:
            self._stream.mark("endIn")
        protocol = self.protocol
        if protocol is None:
            return
        carrier = cast(IStreamTransport, self.transport)
        halfCloseable = IHalfCloseableProtocol(protocol, None)
        if halfCloseable is not None:
            try:
                halfCloseable.readConnectionLost()
            except Exception:
                self._broken("readConnectionLost")
            return
        # A producer would keep loseConnection waiting for its last byte, and its
        # protocol is about to learn that nobody reads.
        carrier.unregisterProducer()
        carrier.loseConnection()
        self._tellLost(Failure(ConnectionDone("the peer ended the stream")))

    def writeConnectionLost(self) -> None:
        if self.protocol is None:
            return
        halfCloseable = IHalfCloseableProtocol(self.protocol, None)
        if halfCloseable is not None:
            try:
                halfCloseable.writeConnectionLost()
            except Exception:
                self._broken("writeConnectionLost")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._stream is not None:
            self._stream.end(self._ending or _describe(reason))
        self._tellLost(reason)
        owner, self._owner = self._owner, _NOBODY
        owner.streamEnded(self, reason)

    def cut(self, why: str) -> None:
        """End the stream at once, with C{why} on its record."""
        self._ending = self._ending or why
        if self.transport is not None:
            cast(IStreamTransport, self.transport).abortConnection()

    def _tellLost(self, reason: Failure) -> None:
        protocol, self.protocol = self.protocol, None
        if protocol is None:
            return
        try:
            protocol.connectionLost(reason)
        except Exception:
            self._log.failure("A protocol on a stream failed in connectionLost.")

    def _broken(self, where: str) -> None:
        self._log.failure("A protocol on a stream failed in {where}.", where=where)
        self.cut(f"the protocol failed in {where}")

    def _fail(self, failure: Failure) -> None:
        self.protocol = None
        self._owner.streamFailed(failure)
        self.cut("the protocol could not be connected")


class Prepared(Factory):
    """A factory for the one protocol that is there already."""

    noisy = False

    def __init__(self, prepared: Any) -> None:
        self._prepared: Protocol = prepared

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        return self._prepared


def _describe(reason: Failure) -> str:
    if isinstance(reason.value, ConnectionDone):
        return "closed"
    return wordsOf(reason)
