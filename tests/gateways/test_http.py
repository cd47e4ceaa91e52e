"""One held HTTP exchange through a tunnel: what it returns, and what each failure is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.test.iosim import ConnectionCompleter
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.gateways.backends import Backends, Wanted
from helix_revdial.gateways.backends import Service as Beside
from helix_revdial.gateways.forwarding import BadAnswer
from helix_revdial.gateways.http import Answer, AnswerTooLarge, fetch
from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.errors import (
    DialError,
    DialTimeout,
    NotAllowed,
    NotConnected,
    TargetRefused,
    TargetTimeout,
    TunnelBroke,
)
from helix_revdial.revdial.offered import Expose
from tests.gateways.test_proxy import OK, Dials


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


WANTED = Beside("desktop", "wolf-1", None, lambda expose: True, {})


class Ways:
    """As much of L{Connections} as is used here: one way, by one registration."""

    def __init__(self, way: Any) -> None:
        self.way = way
        self.dials = 0

    def leadsTo(self, key: str, target: str | None) -> tuple[None, Expose]:
        # What it leads through has no number, and neither have the connections here.
        return None, "operator"

    def endpoint(self, key: str, target: str | None, **about: object) -> Any:
        self.dials += 1
        return self.way


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
        self.ways = Ways(TCP4ClientEndpoint(self.clock, "192.0.2.1", 1, timeout=3600))
        self.backends = Backends(self.clock, cast(Connections, self.ways), idleTimeout=15)
        listening = TCP4ServerEndpoint(self.clock, 1).listen(_Once(self.service))
        self.successResultOf(listening)

    def ask(
        self,
        method: bytes = b"GET",
        body: bytes | None = None,
        maxBody: int = 1000,
        dialTimedOut: Callable[[], DialError] = DialTimeout,
    ) -> Deferred[Answer]:
        return Deferred.fromCoroutine(
            fetch(
                self.backends,
                WANTED,
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
        self.assertEqual((answer.reused, answer.phases), (False, {}))
        self.assertIsNone(self.service.lost)
        self.clock.advance(15)
        self.pump.flush()
        self.assertIsNotNone(self.service.lost, "the connection waits for ever")
        self.assertEqual(self.clock.getDelayedCalls(), [])

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
        self.assertIn("closed the connection before it had answered", str(failure.value))

    def test_noAnswer(self) -> None:
        """What is no HTTP, or could be read in two ways, is told from a broken tunnel."""
        for answer in (
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ):
            self.setUp()
            self.failureResultOf(self.exchange(answer), BadAnswer)
            self.pump.flush()
            self.assertIsNotNone(self.service.lost, answer)

    def test_answerOverTheLimit(self) -> None:
        """An answer over the cap is cut, and its connection is closed."""
        result = self.exchange(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001, maxBody=1000
        )
        self.failureResultOf(result, AnswerTooLarge)
        self.pump.flush()
        self.assertIsNotNone(self.service.lost)

    def test_answerThatAnnouncesTooMuch(self) -> None:
        """One that says that it will be over the cap is not waited for."""
        result = self.exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", maxBody=1000)
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
            self.ways.way = FailingEndpoint(error)
            failure = self.failureResultOf(self.ask(), type(error))
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
        """A line break in a header value does not make a second field: nothing is sent."""
        result = Deferred.fromCoroutine(
            fetch(
                self.backends,
                WANTED,
                b"GET",
                b"/",
                deadline=10,
                maxBody=1,
                headers=[(b"X", b"1\r\nHost: evil")],
                dialTimedOut=DialTimeout,
            )
        )
        self.failureResultOf(result, ValueError)
        self.assertEqual(self.ways.dials, 0)


class AgainTests(SynchronousTestCase):
    """A connection that is in order serves the next exchange."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.dials = Dials()
        self.counted: Counter[str] = Counter()
        self.backends = Backends(
            self.clock,
            cast(Connections, self.dials),
            idleTimeout=15,
            count=lambda how: self.counted.update([how]),
        )

    def ask(self, method: bytes = b"GET", wanted: Wanted = WANTED) -> Deferred[Answer]:
        return Deferred.fromCoroutine(
            fetch(
                self.backends,
                wanted,
                method,
                b"/",
                deadline=10,
                maxBody=100,
                dialTimedOut=DialTimeout,
            )
        )

    def answer(self, asked: Deferred[Answer]) -> Answer:
        self.dials.streams[-1].protocol.dataReceived(OK)
        return self.successResultOf(asked)

    def test_aPictureASecond(self) -> None:
        """A hundred pictures, one a second, are one dial."""
        reused = []
        for _ in range(100):
            reused.append(self.answer(self.ask()).reused)
            self.clock.advance(1)
        self.assertEqual(len(self.dials.dialled), 1)
        self.assertEqual(reused, [False] + [True] * 99)
        self.assertEqual(self.counted, {"dialled": 1, "reused": 99})

    def test_atOnce(self) -> None:
        """Two at once are two connections, and both serve again."""
        first, second = self.ask(), self.ask()
        for asked, stream in zip((first, second), self.dials.streams, strict=True):
            stream.protocol.dataReceived(OK)
            self.successResultOf(asked)
        self.assertEqual(len(self.backends.idle), 2)
        self.answer(self.ask())
        self.assertEqual(len(self.dials.dialled), 2)

    def test_ended(self) -> None:
        """One that ended unnoticed is replaced by a new one, once."""
        self.answer(self.ask())
        asked = self.ask()
        self.dials.streams[-1].end()
        self.assertEqual(len(self.dials.dialled), 2)
        self.assertFalse(self.answer(asked).reused)
        self.assertEqual(self.counted["replaced"], 1)
        asked = self.ask()
        self.dials.streams[-1].end()
        self.dials.streams[-1].end()
        self.failureResultOf(asked, TunnelBroke)
        self.assertEqual(len(self.dials.dialled), 3)

    def test_lostInTheAnswer(self) -> None:
        """One that breaks off in the answer is not: the service has done what was asked."""
        self.answer(self.ask())
        asked = self.ask()
        self.dials.streams[-1].protocol.dataReceived(b"H")
        self.dials.streams[-1].end()
        self.failureResultOf(asked, TunnelBroke)
        self.assertEqual(len(self.dials.dialled), 1)

    def test_notRepeatable(self) -> None:
        """A POST is dialled for; what it leaves in order serves a GET."""
        self.answer(self.ask(b"POST"))
        self.answer(self.ask(b"POST"))
        self.assertEqual(len(self.dials.dialled), 2)
        self.answer(self.ask())
        self.assertEqual(len(self.dials.dialled), 2)

    def test_anotherRegistration(self) -> None:
        """A connection of a registration that is over is closed, not used."""
        self.answer(self.ask())
        self.dials.generation = 2
        self.assertFalse(self.answer(self.ask()).reused)
        self.assertTrue(self.dials.streams[0].disconnecting)

    def test_notAllowed(self) -> None:
        """F2: who may is asked for each, whatever connections there are."""
        self.answer(self.ask())
        wanted = replace(WANTED, allow=lambda expose: False)
        self.failureResultOf(self.ask(wanted=wanted), NotAllowed)

    def test_tooLate(self) -> None:
        """D14: an answer that does not come in time ends its connection; nothing is left."""
        self.answer(self.ask())
        asked = self.ask()
        self.clock.advance(10)
        self.failureResultOf(asked, TargetTimeout)
        self.assertTrue(self.dials.streams[0].aborted)
        self.assertEqual((len(self.backends.idle), self.clock.getDelayedCalls()), (0, []))
