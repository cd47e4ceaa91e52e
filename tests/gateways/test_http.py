"""One held HTTP exchange through a tunnel: what it returns, and what each failure is."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.test.iosim import ConnectionCompleter
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.gateways.http import Answer, AnswerTooLarge, fetch
from helix_revdial.revdial.errors import (
    DialError,
    DialTimeout,
    NotConnected,
    TargetRefused,
    TargetTimeout,
    TunnelBroke,
)


class Service(Protocol):
    """Stands beside the agent: keeps what it was asked, answers as told."""

    def __init__(self) -> None:
        self.asked = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.asked += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason


class _Once(Factory):
    """Builds the one protocol that it was given."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: object) -> Protocol:
        return self._protocol


class FailingEndpoint:
    """A dial that fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def connect(self, factory: Factory) -> Deferred[Protocol]:
        failed: Deferred[Protocol] = Deferred()
        failed.errback(Failure(self.error))
        return failed


class FetchTests(SynchronousTestCase):
    """L{fetch} asks once, holds the answer, and tells failures apart."""

    def setUp(self) -> None:
        self.clock = MemoryReactorClock()
        self.service = Service()
        self.endpoint = TCP4ClientEndpoint(self.clock, "192.0.2.1", 1, timeout=3600)
        listening = TCP4ServerEndpoint(self.clock, 1).listen(_Once(self.service))
        self.successResultOf(listening)

    def ask(
        self,
        method: bytes = b"GET",
        body: bytes | None = None,
        maxBody: int = 1000,
        endpoint: object | None = None,
        dialTimedOut: Callable[[], DialError] = DialTimeout,
    ) -> Deferred[Answer]:
        return Deferred.fromCoroutine(
            fetch(
                self.clock,
                endpoint or self.endpoint,  # type: ignore[arg-type]
                method,
                b"/screenshot?format=png",
                deadline=10,
                maxBody=maxBody,
                headers=[(b"X-Trace", b"1")],
                body=body,
                dialTimedOut=dialTimedOut,
            )
        )

    def exchange(self, answer: bytes, close: bool = False, **kwargs: object) -> Deferred[Answer]:
        """Ask, connect, answer."""
        result = self.ask(**kwargs)  # type: ignore[arg-type]
        self.connectService()
        assert self.service.transport is not None
        self.service.transport.write(answer)
        if close:
            self.service.transport.loseConnection()
        self.pump.flush()
        return result

    def connectService(self) -> None:
        """Let the dial succeed, and pass on the request."""
        pump = ConnectionCompleter(self.clock).succeedOnce()
        assert pump is not None, "nobody dialled"
        self.pump = pump
        self.pump.flush()

    def test_answerIsWhole(self) -> None:
        """The status, the header fields and the body come back; the request was as asked."""
        answer = self.successResultOf(
            self.exchange(
                b"HTTP/1.1 200 OK\r\nContent-Type: Image/PNG; x=y\r\nContent-Length: 3\r\n\r\npng"
            )
        )
        self.assertEqual((answer.status, answer.body), (200, b"png"))
        self.assertEqual(answer.contentType(), "image/png")
        head, _, _ = self.service.asked.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        self.assertEqual(lines[0], b"GET /screenshot?format=png HTTP/1.1")
        self.assertIn(b"Host: localhost", lines)
        self.assertIn(b"X-Trace: 1", lines)
        self.assertIn(b"Connection: close", lines)
        self.assertIsNotNone(self.service.lost, "the data connection outlived its exchange")

    def test_bodyIsSent(self) -> None:
        """A request's body goes with its length."""
        result = self.exchange(
            b"HTTP/1.1 204 No Content\r\n\r\n", method=b"POST", body=b'{"type":"text"}'
        )
        self.assertEqual(self.successResultOf(result).status, 204)
        self.assertIn(b"Content-Length: 15", self.service.asked)
        self.assertTrue(self.service.asked.endswith(b'\r\n\r\n{"type":"text"}'))

    def test_answerDelimitedByTheEnd(self) -> None:
        """A server that ends its answer by closing (HTTP/1.0) is understood."""
        answer = self.successResultOf(
            self.exchange(b"HTTP/1.0 200 OK\r\nContent-Type: image/png\r\n\r\nbytes", close=True)
        )
        self.assertEqual(answer.body, b"bytes")

    def test_truncatedAnswerIsNoAnswer(self) -> None:
        """An answer that ends before its length is a broken tunnel, never a short picture."""
        result = self.exchange(
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this", close=True
        )
        self.failureResultOf(result, TunnelBroke)

    def test_closedWithoutAnAnswer(self) -> None:
        """A target that closes at once is a broken tunnel, in words."""
        failure = self.failureResultOf(self.exchange(b"", close=True), TunnelBroke)
        self.assertIn("the tunnel broke: ", str(failure.value))

    def test_answerOverTheLimit(self) -> None:
        """An answer over the cap is cut, and its connection is closed."""
        result = self.exchange(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001, maxBody=1000
        )
        self.failureResultOf(result, AnswerTooLarge)
        self.pump.flush()
        self.assertIsNotNone(self.service.lost)

    def test_answerAtTheLimit(self) -> None:
        """An answer of exactly the cap passes."""
        result = self.exchange(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000, maxBody=1000
        )
        self.assertEqual(len(self.successResultOf(result).body), 1000)

    def test_dialErrorsPassThrough(self) -> None:
        """Not connected and refused stay apart from a tunnel that broke."""
        for error in (NotConnected(), TargetRefused("127.0.0.1:9876: connection refused")):
            failure = self.failureResultOf(self.ask(endpoint=FailingEndpoint(error)), type(error))
            self.assertIs(failure.value, error)

    def test_deadlineCoversTheDial(self) -> None:
        """D14: a dial that takes too long ends with the error that the caller chose."""
        result = self.ask(dialTimedOut=lambda: DialTimeout("the agent did not dial back in time"))
        self.clock.advance(9.9)
        self.assertNoResult(result)
        self.clock.advance(0.2)
        failure = self.failureResultOf(result, DialTimeout)
        self.assertEqual(str(failure.value), "the agent did not dial back in time")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_deadlineCoversTheAnswer(self) -> None:
        """D14: a target that accepts and then says nothing is told from one that refuses."""
        result = self.ask()
        self.connectService()
        self.clock.advance(10.1)
        self.failureResultOf(result, TargetTimeout)
        self.pump.flush()
        self.assertIsNotNone(self.service.lost, "the connection outlived its deadline")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_deadlineCoversTheBody(self) -> None:
        """D14: so is one that stops in the middle of its answer."""
        result = self.exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        self.assertNoResult(result)
        self.clock.advance(10.1)
        self.failureResultOf(result, TargetTimeout)
        self.pump.flush()
        self.assertIsNotNone(self.service.lost)

    def test_cancelEndsTheExchange(self) -> None:
        """A caller that goes away takes its connection along."""
        result = self.exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        result.cancel()
        self.failureResultOf(result)
        self.pump.flush()
        self.assertIsNotNone(self.service.lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_fieldsCannotBeInjected(self) -> None:
        """A line break in a header value does not make a second field."""
        result = Deferred.fromCoroutine(
            fetch(
                self.clock,
                self.endpoint,
                b"GET",
                b"/",
                deadline=10,
                maxBody=1,
                headers=[(b"X", b"1\r\nHost: evil")],
                dialTimedOut=DialTimeout,
            )
        )
        self.connectService()
        self.assertNotIn(b"\r\nHost: evil", self.service.asked)
        result.addErrback(lambda _: None).cancel()
