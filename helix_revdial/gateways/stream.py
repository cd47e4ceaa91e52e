# -*- test-case-name: tests.api.test_stream_gateway -*-
"""
The stream gateway: a byte stream from a user's machine to a target.

A caller asks for an upgrade, WebSocket or raw.  The target is dialled first, within
the caller's deadline; only when it is connected the caller hears C{101}, and from
then on its connection and the stream are joined by the relay.  Until then it hears
of a failure as of any other request's, by status and word.

Who may is decided elsewhere; this module carries it out for each stream, and undoes
it: what was opened with a token ends with the token, and so does a dial that waits.

Invariants:

  - A caller has at most so many streams, dials that wait included; one that ends in
    whatever way is given back exactly once.
  - A caller that goes away takes its dial with it, and no stream is ever left with
    one end.
  - Nothing is kept of what is over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IProtocol, IReactorTime
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from helix_revdial.access.shares import Shares
from helix_revdial.http.request import Request
from helix_revdial.http.response import HandedOver
from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.data_websocket import dataServer
from helix_revdial.revdial.errors import TooManyPendingDials
from helix_revdial.revdial.features import EOF, FEATURES_HEADER, formatFeatures, parseFeatures
from helix_revdial.revdial.keepalive import DATA_WATCH, watchPath
from helix_revdial.revdial.offered import Expose
from helix_revdial.revdial.relay import RelayEnd, RelayProtocol, relayPair
from helix_revdial.revdial.sockets import SocketRelays
from helix_revdial.revdial.upgrade import rawServer


class Ended(Exception):
    """What the caller asked with has ended while its dial was under way."""


class _Way:
    """
    One stream of a caller, or the dial for it.

    @ivar caller: Whose share it is of.
    @ivar family: The token family that it was asked with.
    @ivar dialling: The dial, while it is under way.
    """

    def __init__(self, caller: str, family: str) -> None:
        self.caller = caller
        self.family = family
        self.dialling: Deferred[IProtocol] | None = None
        self.half: RelayProtocol
        self.isCut = False

    def cut(self) -> None:
        """End it, in whatever state it is."""
        self.isCut = True
        if self.dialling is not None:
            self.dialling.cancel()
        else:
            self.half.abandon()


class StreamGateway:
    """
    Opens streams for callers.
    """

    def __init__(
        self,
        clock: IReactorTime,
        connections: Connections,
        *,
        limit: int,
        sockets: SocketRelays | None = None,
        linger: float = 60.0,
        onLimit: Callable[[], None] = lambda: None,
    ) -> None:
        """
        @param connections: Leads to the runners.
        @param limit: Streams that one caller may have, those that are dialled included.
        @param sockets: Moves bytes between plain sockets.
        @param linger: Seconds of silence after the first end of a stream.
        @param onLimit: Told when a caller has reached its limit.
        """
        self._clock = clock
        self._connections = connections
        self._sockets = sockets
        self._linger = linger
        self._onLimit = onLimit
        self._shares = Shares(limit)
        self._ways: set[_Way] = set()

    def __len__(self) -> int:
        """Streams and dials under way."""
        return len(self._ways)

    def setLimit(self, limit: int) -> None:
        """From now on, another; who has more keeps them."""
        self._shares.limit = limit

    def end(self, family: str) -> None:
        """Cut everything that was opened with a token family."""
        for way in [way for way in self._ways if way.family == family]:
            way.cut()

    async def open(
        self,
        request: Request,
        *,
        webSocket: bool,
        caller: str,
        family: str,
        runner: str,
        target: str | None,
        deadline: float | None,
        allow: Callable[[Expose], bool],
        about: Mapping[str, str],
    ) -> HandedOver:
        """
        Dial, and give the request's connection to the stream.

        @param request: Asks for an upgrade, which can be answered.
        @param webSocket: Whether for WebSocket, else for raw bytes.
        @param caller: Who has the limit.
        @param family: The token family that ends what is opened here.
        @param target: C{None} for the agent's default.
        @param deadline: Seconds for the dial; C{None} for the most allowed.
        @param allow: Whether the caller may have a target that is for these.
        @param about: For the record of the stream.
        @raise DialError: There is no stream.
        @raise Ended: The token family ended meanwhile.
        @raise ConnectionGone: The caller has.
        """
        if self._shares.spent(caller):
            self._onLimit()
            raise TooManyPendingDials("you have as many streams as you may have", retryAfter=5.0)
        way = _Way(caller, family)
        left, right = relayPair(
            self._clock,
            linger=self._linger,
            onEnd=lambda end: self._over(way, end),
            sockets=self._sockets,
        )
        way.half = left
        self._shares.take(caller)
        self._ways.add(way)
        factory = Factory.forProtocol(lambda: right)
        factory.noisy = False  # two log lines for each stream say nothing
        endpoint = self._connections.endpoint(
            runner, target, timeout=deadline, about=about, allow=allow
        )
        try:
            # A caller that goes away ends the wait; a target that answers has won.
            request.endWithCaller()
            way.dialling = endpoint.connect(factory)
            try:
                await way.dialling
            finally:
                way.dialling = None
            if way.isCut:
                raise Ended
            return self._join(request, left, webSocket)
        except CancelledError:
            left.abandon()
            if way.isCut:
                raise Ended from None
            raise
        except Exception:
            left.abandon()
            raise

    def _join(self, request: Request, left: RelayProtocol, webSocket: bool) -> HandedOver:
        offers = request.headers.getAll(FEATURES_HEADER)
        eof = EOF in parseFeatures(offers)
        agreed = formatFeatures([EOF] if eof else [])
        fields = [(FEATURES_HEADER, agreed)] if offers else []
        request.purpose = "stream"

        def failed(failure: Failure) -> None:
            left.abandon()

        if webSocket:
            carrier = dataServer(
                left,
                key=request.headers.get(b"Sec-WebSocket-Key") or b"",
                eof=eof,
                responseHeaders=fields,
                clock=self._clock,
                onFailure=failed,
            )
        else:
            carrier = rawServer(left, responseHeaders=fields, clock=self._clock, onFailure=failed)
        handedOver = request.handOver(carrier)
        if left.transport is not None:
            # A stream has no heartbeat of its own, and may be idle for hours.
            watchPath(left.transport, DATA_WATCH)
        return handedOver

    def _over(self, way: _Way, end: RelayEnd) -> None:
        if way in self._ways:
            self._ways.remove(way)
            self._shares.release(way.caller)


__all__ = ["Ended", "StreamGateway"]
