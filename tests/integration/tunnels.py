"""
A whole tunnel on real sockets: a server's port, an agent, and local services.

The port is our HTTP server with the one URL of the protocol behind it, and no
access control; C{form} says what kind of server it plays.
"""

from __future__ import annotations

import itertools
import json
from typing import Any, cast

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IListeningPort, IProtocol, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from helix_revdial.http.factory import HTTPFactory
from helix_revdial.http.problem import Problem
from helix_revdial.http.request import Request
from helix_revdial.http.response import HandedOver
from helix_revdial.revdial.client import ControlSession, ServerPath, ServerURL
from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.data_websocket import DataWebSocketEndpoint, dataServer
from helix_revdial.revdial.errors import DialError
from helix_revdial.revdial.exchange import CarrierURL, endpointFor
from helix_revdial.revdial.features import (
    ALL,
    EOF,
    FEATURES_HEADER,
    RAW,
    TIMING_HEADER,
    formatFeatures,
)
from helix_revdial.revdial.framed import FramedConnection
from helix_revdial.revdial.interfaces import ITarget
from helix_revdial.revdial.listener import Listener
from helix_revdial.revdial.parked import PoolLimits
from helix_revdial.revdial.requests import Classified, RequestKind, classify
from helix_revdial.revdial.switching import switchHead
from helix_revdial.revdial.upgrade import hijackServer, rawServer
from helix_revdial.revdial.websocket import webSocketServer

reactor: Any = _reactor

FORMS = ("raw", "websocket", "old")
"""
C{raw}: our server.  C{websocket}: ours behind something that refuses raw
upgrades.  C{old}: a server without features, which takes a control connection
by the hijack and data connections by WebSocket.
"""


class Server:
    """
    A server's port.

    @ivar connections: What it dials through.
    @ivar port: Where it listens.
    """

    def __init__(self, form: str = "raw", **options: Any) -> None:
        numbers = itertools.count(1)

        async def generation() -> int:
            return next(numbers)

        self.form = form
        # Who counts what dial-backs leave behind has nothing parked.
        options.setdefault("pool", PoolLimits(most=0))
        self.connections = Connections(reactor, generation, wallClock=reactor.seconds, **options)
        self.factory = HTTPFactory(self._dispatch, reactor)
        self.port: IListeningPort = reactor.listenTCP(0, self.factory, interface="127.0.0.1")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{cast(Any, self.port.getHost()).port}"

    async def stop(self) -> None:
        """Close everything."""
        await self.connections.stop()
        stopped = self.port.stopListening()
        if stopped is not None:
            await stopped
        await self.factory.stop(1.0)
        # Whatever a test did: when its server is gone, nothing is left of it.
        left = {name: size for name, size in self.connections.sizes().items() if size}
        if left:
            raise AssertionError(f"the connections still hold {left}")

    async def _dispatch(self, request: Request) -> HandedOver:
        asked = classify(request.method, list(request.headers), request.query)
        features = asked.features if self.form != "old" else frozenset[str]()
        if self.form == "websocket" and asked.kind in (
            RequestKind.CONTROL_RAW,
            RequestKind.DATA_RAW,
        ):
            raise Problem(426, "Upgrade to websocket.")
        if asked.kind is RequestKind.UPGRADE_REQUIRED:
            raise Problem(426, "Ask for an upgrade.")
        try:
            if asked.kind in (RequestKind.DATA_RAW, RequestKind.DATA_WEBSOCKET):
                parked = self._park(request, asked)
                if parked is not None:
                    return request.handOver(parked)
                pickUp = self.connections.pickUp(
                    "family:a",
                    ticket=asked.ticket,
                    dialer=asked.dialer,
                    request=asked.request,
                    timing=request.headers.get(TIMING_HEADER),
                )
                return self._carry(request, asked.kind, pickUp.protocol, pickUp.features, False)
            registration = await self.connections.register(
                asked.runnerId or "",
                "family:a",
                "family:a",
                features=features,
                offered=asked.offered and self.form != "old",
                peer=request.clientHost,
            )
        except DialError as error:
            raise Problem(error.status, str(error)) from None
        return self._carry(request, asked.kind, registration.protocol, features, self.form == "old")

    def _park(self, request: Request, asked: Classified) -> FramedConnection | None:
        if asked.ticket is None:
            return None
        isWebSocket = asked.kind is RequestKind.DATA_WEBSOCKET
        key = request.headers.get(b"Sec-WebSocket-Key") if isWebSocket else None
        return self.connections.park(
            "family:a", asked.ticket, webSocket=isWebSocket, head=lambda _: switchHead(key, [])
        )

    def _carry(
        self,
        request: Request,
        kind: RequestKind,
        protocol: IProtocol,
        features: frozenset[str],
        hijack: bool,
    ) -> HandedOver:
        headers = [(FEATURES_HEADER, formatFeatures(features))] if features else []
        if kind is RequestKind.CONTROL_HIJACK or (hijack and kind is RequestKind.CONTROL_RAW):
            return request.handOver(hijackServer(protocol, clock=reactor))
        if kind in (RequestKind.CONTROL_RAW, RequestKind.DATA_RAW):
            return request.handOver(rawServer(protocol, responseHeaders=headers, clock=reactor))
        if kind is RequestKind.DATA_WEBSOCKET:
            key = request.headers.get(b"Sec-WebSocket-Key") or b""
            return request.handOver(
                dataServer(
                    protocol,
                    key=key,
                    eof=EOF in features,
                    responseHeaders=headers,
                    clock=reactor,
                )
            )
        return request.handOver(
            webSocketServer(protocol, eof=False, responseHeaders=headers, clock=reactor),
            replayHead=True,
        )


class Agent:
    """
    An agent with targets; it connects again when it is told to.

    @ivar listener: What answers.
    @ivar session: The control connection.
    """

    session: ControlSession

    def __init__(
        self, server: Server, targets: dict[str, ITarget], key: str = "wolf-1", **options: Any
    ) -> None:
        features = ALL - {RAW} if server.form == "websocket" else ALL
        self.path = ServerPath(
            reactor, ServerURL.parse(server.url), lambda: "token", key=key, features=features
        )
        self.listener = Listener(reactor, self.path, targets, parking=self.path, **options)

    async def connect(self) -> Agent:
        self.session = await self.path.connectControl(self.listener)
        return self

    async def stop(self) -> None:
        await self.listener.stop()


class AgentOf2025(Protocol):
    """
    An agent of November 2025, as the recordings of the Go program show it: it asks
    by the hijack form, loses every byte that comes in one segment with the
    answer's head, reads whole lines, and dials back over WebSocket.

    @ivar swallowed: What came with the head, and was lost.
    @ivar lines: The control lines.
    """

    def __init__(self, server: Server, target: type[Protocol]) -> None:
        self.swallowed: bytes | None = None
        self.lines: list[dict[str, str]] = []
        self._server = server
        self._target = target
        self._buffer = b""
        self._head = b""

    def connectionMade(self) -> None:
        cast(Any, self.transport).write(
            b"GET /api/v1/revdial?runnerid=wolf-1 HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"User-Agent: Go-http-client/1.1\r\nAuthorization: Bearer test-token\r\n"
            b"Connection: Upgrade\r\n\r\n"
        )

    def dataReceived(self, data: bytes) -> None:
        if self.swallowed is None:
            self._head += data
            head, end, rest = self._head.partition(b"\r\n\r\n")
            if end:
                assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
                self.swallowed = rest
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self.lines.append(json.loads(line))
            if self.lines[-1]["command"] == "conn-ready":
                self._dialBack(self.lines[-1]["connPath"])

    def _dialBack(self, connPath: str) -> None:
        port = cast(Any, self._server.port.getHost()).port
        url = CarrierURL(
            "127.0.0.1", port, False, connPath.replace("/revdial", "/api/v1/revdial", 1)
        )
        DataWebSocketEndpoint(
            reactor,
            endpointFor(reactor, "127.0.0.1", port, False),
            url,
            [(b"Authorization", b"Bearer test-token")],
            eof=False,
        ).connect(quiet(self._target))


class Echo(Protocol):
    """Sends back what comes; ends when the peer does."""

    def dataReceived(self, data: bytes) -> None:
        cast(Any, self.transport).write(data)


class Banner(Protocol):
    """Speaks first, as ssh does."""

    banner = b"SSH-2.0-helix\r\n"

    def connectionMade(self) -> None:
        cast(Any, self.transport).write(self.banner)


class Collector(Protocol):
    """Collects what comes, to a length or to the end."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended: Deferred[BaseException] = Deferred()
        self._wanted: list[tuple[int, Deferred[bytes]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        for length, waiting in list(self._wanted):
            if len(self.received) >= length:
                self._wanted.remove((length, waiting))
                waiting.callback(bytes(self.received))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        waiting, self._wanted = self._wanted, []
        for _, one in waiting:
            one.errback(reason)
        self.ended.callback(reason.value or ConnectionDone())

    def read(self, length: int) -> Deferred[bytes]:
        """Fires when C{length} bytes have come."""
        waiting: Deferred[bytes] = Deferred()
        if len(self.received) >= length:
            waiting.callback(bytes(self.received))
        else:
            self._wanted.append((length, waiting))
        return waiting

    def write(self, data: bytes) -> None:
        cast(Any, self.transport).write(data)


def quiet(protocol: type[Protocol]) -> IProtocolFactory:
    """A factory that does not log its starts."""
    factory = Factory.forProtocol(protocol)
    factory.noisy = False
    return factory


def collector() -> IProtocolFactory:
    """Builds L{Collector}s."""
    return quiet(Collector)


def listen(protocol: type[Protocol]) -> tuple[IListeningPort, str]:
    """A local TCP service: its port, and its address as an agent names it."""
    port: IListeningPort = reactor.listenTCP(0, quiet(protocol), interface="127.0.0.1")
    return port, f"127.0.0.1:{cast(Any, port.getHost()).port}"


async def until(condition: Any, what: str, limit: float = 10.0) -> None:
    """Wait for a condition that other processes of the test bring about."""
    end = reactor.seconds() + limit
    while not condition():
        if reactor.seconds() > end:
            raise AssertionError(f"after {limit} s still not: {what}")
        await deferLater(reactor, 0.01)
