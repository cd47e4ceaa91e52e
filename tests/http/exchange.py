"""
HTTP connections in memory, for the tests of this room and of those above it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import h11
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from helix_revdial.http.body import Body
from helix_revdial.http.connection import HTTPConnection
from helix_revdial.http.factory import HTTPFactory
from helix_revdial.http.head import parseTarget
from helix_revdial.http.limits import HTTPLimits
from helix_revdial.http.request import ConnectionGone, Headers, Request
from helix_revdial.http.response import HandedOver, Response

Dispatch = Callable[[Request], Awaitable[Response | HandedOver]]


class SocketTransport(StringTransport):
    """A transport that remembers what a socket would be asked to do."""

    paused = False
    aborted = False
    writeClosed = False
    protocol: IProtocol

    def pauseProducing(self) -> None:
        super().pauseProducing()
        self.paused = True

    def resumeProducing(self) -> None:
        super().resumeProducing()
        self.paused = False

    def loseWriteConnection(self) -> None:
        self.writeClosed = True

    def abortConnection(self) -> None:
        self.aborted = True

    def unregisterProducer(self) -> None:
        # Real transports do not mind when there is none.
        if self.producer is not None:
            super().unregisterProducer()


class Exchange:
    """One connection to a factory, seen from the peer."""

    def __init__(
        self,
        dispatch: Dispatch | None = None,
        *,
        limits: HTTPLimits | None = None,
        clock: Clock | None = None,
        factory: HTTPFactory | None = None,
        address: str = "192.0.2.1",
        transport: SocketTransport | None = None,
    ) -> None:
        self.clock = clock if clock is not None else Clock()
        if factory is None:
            assert dispatch is not None
            factory = HTTPFactory(dispatch, self.clock, limits)
        self.factory = factory
        self.transport = transport or SocketTransport(
            peerAddress=IPv4Address("TCP", address, 40000),
            hostAddress=IPv4Address("TCP", "192.0.2.9", 80),
        )
        protocol = factory.buildProtocol(None)
        assert protocol is not None
        self.protocol: HTTPConnection = protocol
        self.protocol.makeConnection(self.transport)

    def send(self, data: bytes) -> bytes:
        """Send bytes; returns all that was answered so far."""
        self.protocol.dataReceived(data)
        return self.written

    @property
    def written(self) -> bytes:
        """All that was answered so far."""
        written: bytes = self.transport.value()
        return written

    @property
    def closed(self) -> bool:
        """Whether we ended the connection, at least our direction of it."""
        transport = self.transport
        return transport.disconnecting or transport.writeClosed or transport.aborted

    def lose(self, clean: bool = True) -> None:
        """The connection ends."""
        self.protocol.connectionLost(Failure(ConnectionDone() if clean else ConnectionLost()))

    def answers(self, *methods: bytes) -> list[tuple[int, dict[bytes, bytes], bytes]]:
        """The answers written so far; C{methods} are those of the requests (GET if none)."""
        return parseAnswers(self.written, *methods)

    def statuses(self, *methods: bytes) -> list[int]:
        """The statuses of the answers."""
        return [status for status, _, _ in self.answers(*methods)]


def parseAnswers(data: bytes, *methods: bytes) -> list[tuple[int, dict[bytes, bytes], bytes]]:
    """Read answers as h11's client does, one after another; a cut-off one raises."""
    found = []
    asked = list(methods)
    while data:
        client = h11.Connection(h11.CLIENT)
        method = asked.pop(0) if asked else b"GET"
        client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(data)
        client.receive_data(b"")
        body = b""
        while True:
            event = client.next_event()
            if isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                assert isinstance(event, h11.InformationalResponse), event
        found.append((head.status_code, dict(head.headers), body))
        data = client.trailing_data[0]
    return found


class Owner:
    """Stands for the connection of a request that came by none."""

    def __init__(self) -> None:
        self.isAuthenticated = False
        self.isAborted = False

    def authenticated(self) -> None:
        self.isAuthenticated = True

    def whenLost(self, call: Callable[[], None]) -> None:
        """This connection is never lost."""

    def endWithCaller(self, *, whole: bool = False) -> None:
        """Nor does its caller go away."""

    def abort(self) -> None:
        self.isAborted = True

    def handOver(self, request: Request, build: Any, replayHead: bool) -> None:
        raise ConnectionGone


def makeRequest(
    method: str = "GET",
    target: str = "/",
    *,
    headers: Iterable[tuple[bytes, bytes]] = (),
    body: bytes = b"",
    owner: Owner | None = None,
) -> Request:
    """A request as a dispatch gets it, without a connection."""
    raw = target.encode("ascii")
    parsed = parseTarget(method.encode("ascii"), raw)
    return Request(
        method=method,
        rawTarget=raw,
        path=parsed.path,
        rawQuery=parsed.rawQuery,
        headers=Headers([(b"Host", b"cp.example"), *headers]),
        httpVersion=b"1.1",
        body=Body.of(body),
        peer=IPv4Address("TCP", "192.0.2.1", 40000),
        secure=False,
        requestId="req-1",
        owner=owner or Owner(),
    )
