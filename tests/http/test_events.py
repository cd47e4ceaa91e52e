"""Tests for L{helix_revdial.http.events}, through a conforming parser."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.http.event_frames import eventFrame
from helix_revdial.http.events import EventStream, EventStreams
from helix_revdial.http.request import Request
from helix_revdial.http.response import Response
from tests.http.event_source import EventSource
from tests.http.exchange import Exchange

REQUEST = b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n"


class Streaming(SynchronousTestCase):
    """One server, its event streams, and clients."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.overflowed = 0
        self.streams = EventStreams(
            self.clock, lambda: f"t{self.clock.seconds():g}", onOverflow=self.countOverflow
        )
        self.opened: list[EventStream] = []
        self.ends = 0
        self.first: AsyncIterator[bytes] | None = None
        self.form: str = "comment"
        self.holder: str | None = None

    def countOverflow(self) -> None:
        self.overflowed += 1

    def ended(self) -> None:
        self.ends += 1

    async def dispatch(self, request: Request) -> Response:
        stream = self.streams.open(
            request,
            first=self.first,
            holder=self.holder,
            form="event" if self.form == "event" else "comment",
            onClose=self.ended,
        )
        self.opened.append(stream)
        return stream.response()

    def client(self) -> tuple[EventStream, Exchange]:
        exchange = Exchange(self.dispatch, clock=self.clock)
        exchange.send(REQUEST)
        return self.opened[-1], exchange

    def read(self, exchange: Exchange) -> EventSource:
        """What the client has read so far of its chunked answer."""
        source = EventSource()
        source.feed(unchunked(exchange.written))
        return source


def unchunked(answer: bytes) -> bytes:
    _, _, rest = answer.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body += rest[:length]
        rest = rest[length + 2 :]
    return body


class HeadTests(Streaming):
    def test_head(self) -> None:
        """Nobody on the way keeps, holds back or compresses the answer; it begins at once."""
        _, exchange = self.client()
        head = exchange.written.partition(b"\r\n\r\n")[0].lower()
        for field in (
            b"content-type: text/event-stream",
            b"cache-control: no-store",
            b"x-accel-buffering: no",
        ):
            self.assertIn(field, head)
        self.assertNotIn(b"content-encoding", head)
        self.assertEqual(self.read(exchange).retry, 3000)


class PushTests(Streaming):
    def test_atOnce(self) -> None:
        """What is pushed is on its way when C{push} returns, in order."""
        stream, exchange = self.client()
        for number in range(3):
            self.assertTrue(stream.push(eventFrame(str(number), id=str(number))))
            self.assertEqual(
                [event.data for event in self.read(exchange).events],
                [str(each) for each in range(number + 1)],
            )

    def test_slowClient(self) -> None:
        """What a client does not take waits, and goes on in order when it does."""
        stream, exchange = self.client()
        exchange.protocol.pauseProducing()
        for number in range(100):
            self.assertTrue(stream.push(eventFrame("x" * 5000, id=str(number))))
        self.assertGreater(stream.queued, 400_000)
        exchange.protocol.resumeProducing()
        self.assertEqual(
            [event.id for event in self.read(exchange).events], [str(n) for n in range(100)]
        )
        self.assertEqual((stream.queued, self.streams.buffered), (0, 0))

    def test_overflow(self) -> None:
        """A client for which more than the limit would wait is closed; no other is."""
        stuck, exchange = self.client()
        other, otherExchange = self.client()
        exchange.protocol.pauseProducing()
        frame = eventFrame("x" * 10_000)
        pushed = 0
        while stuck.push(frame):
            self.assertTrue(other.push(frame))
            pushed += 1
            self.assertLessEqual(stuck.queued, 1024 * 1024)
        self.assertGreaterEqual(pushed * len(frame), 1024 * 1024 - 2 * len(frame))
        self.assertTrue(exchange.transport.aborted)
        self.assertTrue(stuck.closed)
        self.assertFalse(stuck.push(frame))
        self.assertFalse(otherExchange.closed)
        self.assertEqual(len(self.read(otherExchange).events), pushed)
        self.assertEqual((self.overflowed, self.streams.overflows, self.ends), (1, 1, 1))
        self.assertEqual(len(self.streams), 1)

    def test_manyWaitForOne(self) -> None:
        """Frames that wait are shared: a thousand stuck clients hold one copy."""
        frame = eventFrame("x" * 100_000)
        for _ in range(5):
            stream, exchange = self.client()
            exchange.protocol.pauseProducing()
            stream.push(frame)
            stream.push(frame)
        self.assertTrue(all(stream._queue[-1] is frame for stream in self.opened if stream._queue))

    def test_more(self) -> None:
        """What is pushed with more to come goes when it is flushed, once, in one piece."""
        stream, exchange = self.client()
        for number in range(3):
            stream.push(eventFrame(str(number)), more=True)
        self.assertEqual(self.read(exchange).events, [])
        stream.flush()
        self.assertEqual([one.data for one in self.read(exchange).events], ["0", "1", "2"])
        waiting = stream._waiting
        for _ in range(3):
            stream.flush()
        self.assertIs(stream._waiting, waiting, "a reader was woken for nothing")
        self.assertTrue(stream.idle)


class FirstTests(Streaming):
    """Frames that come before those that are pushed."""

    def test_order(self) -> None:
        """What is pushed while the first are still read comes after them."""
        gate: Deferred[None] = Deferred()

        async def first() -> AsyncIterator[bytes]:
            yield eventFrame("1")
            await gate
            yield eventFrame("2")

        self.first = first()
        stream, exchange = self.client()
        stream.push(eventFrame("3"))
        self.assertEqual([event.data for event in self.read(exchange).events], ["1"])
        gate.callback(None)
        self.assertEqual([event.data for event in self.read(exchange).events], ["1", "2", "3"])

    def test_asTheClientTakesThem(self) -> None:
        """The next is asked for when the client has taken what went before."""
        asked = []

        async def first() -> AsyncIterator[bytes]:
            for number in range(3):
                asked.append(number)
                if number == 1:
                    exchange.protocol.pauseProducing()
                yield eventFrame(str(number))

        self.first = first()
        exchange = Exchange(self.dispatch, clock=self.clock)
        exchange.send(REQUEST)
        self.assertEqual(asked, [0, 1])
        exchange.protocol.resumeProducing()
        self.assertEqual(asked, [0, 1, 2])

    def test_broken(self) -> None:
        """Where they cannot be read the client sees no clean end; the log says why."""

        async def first() -> AsyncIterator[bytes]:
            yield eventFrame("1")
            raise RuntimeError("lost")

        self.first = first()
        stream, exchange = self.client()
        self.assertTrue(exchange.transport.aborted)
        self.assertEqual((stream.closed, self.ends, len(self.streams)), (True, 1, 0))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_lostMeanwhile(self) -> None:
        """A client that goes while they are read ends the reading."""
        cleaned = []

        async def first() -> AsyncIterator[bytes]:
            try:
                await Deferred()
                yield b""
            finally:
                cleaned.append(True)

        self.first = first()
        stream, exchange = self.client()
        exchange.lose()
        self.assertEqual((cleaned, stream.closed, self.ends), ([True], True, 1))


class HeartbeatTests(Streaming):
    def test_comments(self) -> None:
        """An idle client gets a comment each interval, and no event."""
        _, exchange = self.client()
        for _ in range(3):
            self.clock.advance(15)
        source = self.read(exchange)
        self.assertEqual((source.comments, source.events), (["hb t15", "hb t30", "hb t45"], []))

    def test_asEvents(self) -> None:
        """Who asks for it gets events, without an id: the place to resume from stays."""
        self.form = "event"
        stream, exchange = self.client()
        stream.push(eventFrame("x", id="7"))
        self.clock.advance(15)
        source = self.read(exchange)
        beat = source.events[-1]
        self.assertEqual((beat.type, beat.id, source.comments), ("heartbeat", "7", []))
        self.assertEqual(json.loads(beat.data), {"type": "heartbeat", "ts": "t15"})

    def test_fast(self) -> None:
        """They can come ten times a second, and not more often."""
        self.streams.setLimits(heartbeat=0.01, queueBytes=1000)
        _, exchange = self.client()
        for _ in range(20):
            self.clock.advance(0.05)
        self.assertIn(len(self.read(exchange).comments), (9, 10))

    def test_oneTimer(self) -> None:
        """A thousand idle clients have one timer, however they came and go."""
        exchanges = []
        for _ in range(1000):
            exchanges.append(self.client()[1])
            self.clock.advance(0.001)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        for exchange in exchanges[:999]:
            exchange.lose()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        exchanges[999].lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_allAtOnce(self) -> None:
        """Many that are due at once do not keep others from their turn."""
        exchanges = [self.client()[1] for _ in range(1200)]
        beaten = []

        def other() -> None:
            beaten.append(sum(bool(self.read(exchange).comments) for exchange in exchanges))

        self.clock.callLater(15, other)
        self.clock.advance(15)
        self.assertEqual(beaten, [500])
        self.assertTrue(all(len(self.read(exchange).comments) == 1 for exchange in exchanges))

    def test_notForTheStuck(self) -> None:
        """Who takes nothing gets no heartbeats to take, too."""
        stream, exchange = self.client()
        exchange.protocol.pauseProducing()
        stream.push(eventFrame("x"))
        stream.push(eventFrame("y"))
        queued = stream.queued
        self.clock.advance(30)
        self.assertEqual(stream.queued, queued)


class EndTests(Streaming):
    def end(self, how: Callable[[EventStream, Exchange], object]) -> tuple[EventStream, Exchange]:
        stream, exchange = self.client()
        how(stream, exchange)
        self.assertEqual((stream.closed, self.ends, len(self.streams)), (True, 1, 0))
        self.assertEqual(self.streams._wheels, {})
        self.assertFalse(stream.push(b"x"))
        return stream, exchange

    def test_finish(self) -> None:
        """A stream that is finished ends cleanly, and its connection goes on."""
        _, exchange = self.end(lambda stream, exchange: stream.finish())
        self.assertTrue(exchange.written.endswith(b"0\r\n\r\n"))
        self.assertFalse(exchange.closed)
        exchange.send(REQUEST)
        self.assertEqual(len(self.streams), 1)

    def test_finishAfterWhatWaits(self) -> None:
        """The end comes after what waits."""
        stream, exchange = self.client()
        exchange.protocol.pauseProducing()
        stream.push(eventFrame("1"))
        stream.finish()
        self.assertFalse(stream.push(eventFrame("2")))
        self.assertFalse(stream.closed)
        exchange.protocol.resumeProducing()
        self.assertEqual([event.data for event in self.read(exchange).events], ["1"])
        self.assertTrue(stream.closed)

    def test_lost(self) -> None:
        """A client that goes away ends it."""
        self.end(lambda stream, exchange: exchange.lose(clean=False))

    def test_halfClosed(self) -> None:
        """A client that ends its direction will not come to read: its stream ends too."""

        def halfClose(stream: EventStream, exchange: Exchange) -> None:
            exchange.protocol.readConnectionLost()
            self.assertTrue(exchange.transport.aborted)
            exchange.lose()

        self.end(halfClose)

    def test_abort(self) -> None:
        """An aborted stream is seen to be cut off."""
        _, exchange = self.end(lambda stream, exchange: stream.abort())
        self.assertTrue(exchange.transport.aborted)
        self.assertFalse(exchange.written.endswith(b"0\r\n\r\n"))

    def test_credential(self) -> None:
        """What was asked with a credential ends with it, and nothing else does."""
        self.holder = "fam_2"
        self.client()
        self.holder = "fam_1"
        self.client()
        self.streams.end("fam_1")
        self.streams.end("fam_1")
        self.streams.end("fam_3")
        self.assertEqual([stream.closed for stream in self.opened], [False, True])
        self.opened[0].finish()
        self.assertEqual(self.streams._held, {})

    def test_stop(self) -> None:
        """
        A server that stops ends all of them cleanly, tells them when to come back, not all at
        once, and is not kept by them.
        """
        exchanges = [self.client()[1] for _ in range(4)]
        self.streams.stop()
        self.assertEqual(len(self.streams), 0)
        self.assertTrue(all(each.written.endswith(b"0\r\n\r\n") for each in exchanges))
        times = [self.read(exchange).retry for exchange in exchanges]
        self.assertEqual(times, [1000, 2250, 3500, 4750])
        _, late = self.client()
        self.assertTrue(late.written.endswith(b"0\r\n\r\n"))

    def test_headRequest(self) -> None:
        """HEAD gets the fields only, and leaves nothing behind."""
        exchange = Exchange(self.dispatch, clock=self.clock)
        exchange.send(REQUEST.replace(b"GET", b"HEAD"))
        self.assertTrue(exchange.written.endswith(b"\r\n\r\n"))
        self.assertEqual((len(self.streams), self.ends), (0, 1))

    def test_onCloseFails(self) -> None:
        """Who fails to hear of the end keeps nobody else from it."""

        def fail() -> None:
            raise RuntimeError("no")

        stream, exchange = self.client()
        stream._onClose = fail
        exchange.lose()
        self.assertEqual(len(self.streams), 0)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
