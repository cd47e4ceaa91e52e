"""A body and its readers."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface.verify import verifyObject

from helix_revdial.http.body import Body, BodyUnavailable, NoSource
from helix_revdial.http.problem import PayloadTooLarge


class Source(NoSource):
    """Counts what a body asks of it."""

    wanted = 0
    taken = 0

    def bodyWanted(self) -> None:
        self.wanted += 1

    def bodyTaken(self) -> None:
        self.taken += 1


class Sink(Protocol):
    """Records a delivered body."""

    def __init__(self) -> None:
        self.data = b""
        self.reason: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008
        self.reason = reason


class BodyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.source = Source()
        self.body = Body(None, self.source, highWater=10)

    def test_read(self) -> None:
        """All of it, and the source is asked once."""
        reading = Deferred.fromCoroutine(self.body.read(6))
        self.body.append(b"abc")
        self.body.append(b"def")
        self.assertNoResult(reading)
        self.body.end()
        self.assertEqual(self.successResultOf(reading), b"abcdef")
        self.assertEqual(self.source.wanted, 1)

    def test_readTooLarge(self) -> None:
        """One byte too many is refused at once; an announced one before any is read."""
        reading = Deferred.fromCoroutine(self.body.read(2))
        self.body.append(b"abc")
        self.failureResultOf(reading, PayloadTooLarge)
        source = Source()
        announced = Body(3, source)
        self.failureResultOf(Deferred.fromCoroutine(announced.read(2)), PayloadTooLarge)
        self.assertEqual(source.wanted, 0)

    def test_full(self) -> None:
        """It says when it holds enough, and when a reader has made room."""
        self.body.append(b"x" * 9)
        self.assertFalse(self.body.full)
        self.body.append(b"x")
        self.assertTrue(self.body.full)
        pieces = self.body.pieces()
        piece = self.successResultOf(Deferred.fromCoroutine(pieces.__anext__()))
        self.assertEqual(piece, b"x" * 10)
        self.assertFalse(self.body.full)
        self.assertEqual(self.source.taken, 1)

    def test_oneReader(self) -> None:
        """The bytes are given out once."""
        reading = Deferred.fromCoroutine(self.body.read(6))
        self.failureResultOf(Deferred.fromCoroutine(self.body.read(6)), BodyUnavailable)
        self.body.end()
        self.assertEqual(self.successResultOf(reading), b"")

    def test_fails(self) -> None:
        """What came is given out, then why the rest does not come; D12: readers are woken."""
        self.body.append(b"abc")
        pieces = self.body.pieces()
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(pieces.__anext__())), b"abc")
        waiting = Deferred.fromCoroutine(pieces.__anext__())
        self.body.fail(ZeroDivisionError())
        self.failureResultOf(waiting, ZeroDivisionError)

    def test_discarded(self) -> None:
        """A discarded body holds nothing, and asks its source for nothing more."""
        self.body.append(b"x" * 20)
        self.body.discard()
        self.assertFalse(self.body.full)
        self.failureResultOf(Deferred.fromCoroutine(self.body.read(99)), BodyUnavailable)
        self.assertEqual(self.source.wanted, 0)

    def test_deliver(self) -> None:
        """A protocol gets the pieces, pauses them, and hears of the end."""
        sink = Sink()
        done = self.body.deliver(sink)
        transport = sink.transport
        assert IPushProducer.providedBy(transport)
        self.body.append(b"abc")
        self.assertEqual(sink.data, b"abc")
        transport.pauseProducing()
        self.body.append(b"def")
        self.assertEqual(sink.data, b"abc")
        transport.resumeProducing()
        self.assertEqual(sink.data, b"abcdef")
        self.assertNoResult(done)
        self.body.end()
        self.successResultOf(done)
        assert sink.reason is not None
        sink.reason.trap(ConnectionDone)

    def test_deliverFails(self) -> None:
        """The protocol hears why the body broke off."""
        sink = Sink()
        done = self.body.deliver(sink)
        self.body.fail(ZeroDivisionError())
        self.successResultOf(done)
        assert sink.reason is not None
        sink.reason.trap(ZeroDivisionError)

    def test_producer(self) -> None:
        """It can be the body of another request, with that one's backpressure."""
        producer = self.body.producer()
        verifyObject(IBodyProducer, producer)
        self.assertIs(producer.length, UNKNOWN_LENGTH)
        consumer = StringTransport()
        done = producer.startProducing(consumer)
        self.body.append(b"abc")
        producer.pauseProducing()
        self.body.append(b"def")
        self.assertEqual(consumer.value(), b"abc")
        producer.resumeProducing()
        self.body.end()
        self.assertEqual(consumer.value(), b"abcdef")
        self.successResultOf(done)
        self.assertEqual(Body(7, NoSource()).producer().length, 7)

    def test_producerStopped(self) -> None:
        """A stopped producer's Deferred never fires, and its body is let go."""
        producer = self.body.producer()
        done = producer.startProducing(StringTransport())
        producer.stopProducing()
        self.body.append(b"abc")
        self.assertNoResult(done)
