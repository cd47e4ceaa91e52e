"""Streams of events over real sockets: many clients, one of which does not read."""

from __future__ import annotations

import re
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from helix_revdial.http.event_frames import eventFrame
from helix_revdial.http.events import EventStream, EventStreams
from helix_revdial.http.factory import HTTPFactory
from helix_revdial.http.request import Request
from helix_revdial.http.response import Response
from tests.http.test_events import unchunked

reactor: Any = _reactor
REQUEST = b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n"
CLIENTS = 50
EVENTS = 60
FRAME = 20_000


class Reader(Protocol):
    """A client, which may be stopped dead."""

    def __init__(self, stuck: bool) -> None:
        self.received = b""
        self.stuck = stuck
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(REQUEST)
        if self.stuck:
            transport.pauseProducing()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class EventStreamTests(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.streams = EventStreams(reactor, lambda: "now", heartbeat=0.1, queueBytes=200_000)
        self.opened: list[EventStream] = []

        async def dispatch(request: Request) -> Response:
            stream = self.streams.open(request)
            self.opened.append(stream)
            return stream.response()

        self.factory = HTTPFactory(dispatch, reactor)
        self.port = reactor.listenTCP(0, self.factory, interface="127.0.0.1")

    async def until(self, condition: Any) -> None:
        while not condition():
            await deferLater(reactor, 0.01)

    async def test_oneStoppedDead(self) -> None:
        """
        All get every event once and in order, and heartbeats; the one that reads nothing is cut
        off when its queue is full.  When the server stops the others end cleanly.
        """
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        readers: list[Reader] = await gatherResults(
            [connectProtocol(endpoint, Reader(number == 0)) for number in range(CLIENTS)]
        )
        await self.until(lambda: len(self.streams) == CLIENTS)
        for number in range(EVENTS):
            frame = eventFrame("x" * FRAME, id=str(number))
            for stream in self.opened:
                stream.push(frame)
            self.assertLessEqual(max(stream.queued for stream in self.opened), 200_000)
            await self.until(
                lambda: (
                    all(not one.queued for one in self.opened)
                    or self.streams.overflows
                    or sum(bool(one.queued) for one in self.opened) <= 1
                )
            )
        # The sockets of the one may hold more than a few events.
        more = 0
        while not self.streams.overflows and more < 1000:
            stuck = max(self.opened, key=lambda one: one.queued)
            stuck.push(eventFrame("y" * FRAME, event="more"))
            more += 1
            await deferLater(reactor, 0)
        self.assertEqual(self.streams.overflows, 1)
        self.assertEqual(len(self.streams), CLIENTS - 1)
        await self.until(lambda: all(b": hb now" in one.received for one in readers[1:]))
        self.streams.stop()
        self.port.stopListening()
        await self.factory.stop(30)
        for reader in readers:
            if reader.stuck:
                reader.transport.resumeProducing()  # type: ignore[union-attr]
        await gatherResults([reader.lost for reader in readers])
        for reader in readers[1:]:
            self.assertTrue(reader.received.endswith(b"0\r\n\r\n"))
            found = re.findall(rb"^id: (\d+)$", unchunked(reader.received), re.MULTILINE)
            self.assertEqual([int(number) for number in found], list(range(EVENTS)))
