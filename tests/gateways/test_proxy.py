"""The reverse proxy in memory: a caller's bytes on one side, a service's on the other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.gateways.forwarding import BadAnswer, Caller
from helix_revdial.gateways.idle import PER_PLACE
from helix_revdial.gateways.proxy import Ended, Errand, HTTPProxy, ProxyLimits
from helix_revdial.http.problem import Problem
from helix_revdial.http.request import Request
from helix_revdial.http.response import HandedOver, Response
from helix_revdial.revdial.connections import Connections
from helix_revdial.revdial.errors import DialError, NotConnected, TargetRefused
from helix_revdial.revdial.streams import Stream as Record
from tests.http.exchange import Exchange, SocketTransport

GET = b"GET /p/a HTTP/1.1\r\nHost: cp.example\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = (
    b"GET /p/ws HTTP/1.1\r\nHost: cp.example\r\nConnection: keep-alive, Upgrade\r\n"
    b"Upgrade: WebSocket\r\nSec-WebSocket-Key: x\r\n\r\n"
)
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


class Stream(SocketTransport):
    """The service's end of a dialled stream."""

    def __init__(self, generation: int) -> None:
        super().__init__()
        self.stream = Record(Clock(), "dial", "wolf-1", None)
        self.stream.generation = generation
        self.connected = True

    def loseConnection(self) -> None:
        super().loseConnection()
        if self.producer is None:
            self.end()

    def abortConnection(self) -> None:
        super().abortConnection()
        self.end(Failure(ConnectionLost()))

    def end(self, reason: Failure | None = None) -> None:
        """The stream is gone."""
        if self.connected:
            self.connected = False
            self.protocol.connectionLost(reason or Failure(ConnectionDone()))


class Dials:
    """As much of L{Connections} as the proxy sees."""

    def __init__(self) -> None:
        self.generation: int | None = 1
        self.expose: Any = "owner"
        self.dialled: list[tuple[str, str | None, float | None]] = []
        self.streams: list[Stream] = []
        self.waiting: list[tuple[Any, Deferred[Protocol]]] = []
        self.held = False
        self.error: Exception | None = None

    def status(self, key: str) -> str | None:
        return "connected" if self.generation else None

    def leadsTo(self, key: str, target: str | None) -> tuple[int, Any] | None:
        return None if self.generation is None else (self.generation, self.expose)

    def endpoint(
        self, key: str, target: str | None, *, timeout: Any, about: Any, allow: Any, patient: bool
    ) -> Any:
        self.dialled.append((key, target, timeout))
        return self

    def connect(self, factory: Any) -> Deferred[Protocol]:
        result: Deferred[Protocol] = Deferred()
        if self.error is not None:
            result.errback(Failure(self.error))
            return result
        self.waiting.append((factory, result))
        if not self.held:
            self.pickUp()
        return result

    def pickUp(self) -> None:
        factory, result = self.waiting.pop()
        stream = Stream(self.generation or 0)
        stream.protocol = factory.buildProtocol(None)
        self.streams.append(stream)
        stream.protocol.makeConnection(stream)
        result.callback(stream.protocol)  # type: ignore[arg-type]


class ProxyTestCase(SynchronousTestCase):
    """A caller, the proxy and a service."""

    limits = ProxyLimits(perCaller=3, perRunner=4)

    def setUp(self) -> None:
        self.clock = Clock()
        self.dials = Dials()
        self.limited = 0
        self.proxy = HTTPProxy(
            self.clock,
            cast(Connections, self.dials),
            self.limits,
            onLimit=self.hitLimit,
        )
        self.changes: dict[str, Any] = {}
        self.callers: list[Exchange] = []

    def tearDown(self) -> None:
        """Callers that are still there go away."""
        for caller in self.callers:
            caller.lose()
        self.assertEqual(len(self.proxy), 0)

    def hitLimit(self) -> None:
        self.limited += 1

    async def dispatch(self, request: Request) -> Response | HandedOver:
        errand = {
            "caller": "t/ann",
            "family": "fam",
            "runner": "wolf-1",
            "target": None,
            "path": request.rawTarget.removeprefix(b"/p"),
            "allow": lambda expose: True,
            "about": {},
            "who": Caller(request.clientHost, request.secure),
            **self.changes,
        }
        try:
            return await self.proxy.forward(request, Errand(**errand))
        except DialError as error:
            raise Problem(error.status, str(error), code=error.word) from None
        except BadAnswer as error:
            raise Problem(502, str(error), code="bad-answer") from None
        except Ended:
            raise Problem(401, "ended") from None

    def call(self, data: bytes = GET) -> Exchange:
        """A caller's connection, and what it sends."""
        exchange = Exchange(self.dispatch, clock=self.clock)
        exchange.transport.protocol = exchange.protocol
        self.callers.append(exchange)
        exchange.send(data)
        return exchange

    @property
    def stream(self) -> Stream:
        return self.dials.streams[-1]

    @property
    def asked(self) -> bytes:
        """What the service has received."""
        value: bytes = self.stream.value()
        return value

    def reply(self, data: bytes) -> None:
        """The service sends."""
        self.stream.protocol.dataReceived(data)

    def finish(self) -> None:
        """The service ends its direction in good order."""
        self.stream.protocol.readConnectionLost()  # type: ignore[attr-defined]

    def nothingLeft(self) -> None:
        """No exchange, no timer and no connection is left when the idle time is over."""
        self.assertEqual(len(self.proxy), 0)
        self.proxy.stop()
        self.assertEqual(len(self.proxy.backends.idle), 0)
        for stream in self.dials.streams:
            self.assertTrue(stream.disconnecting or stream.aborted or not stream.connected)


class ForwardTests(ProxyTestCase):
    """Requests and answers cross whole, in the framing that they came in."""

    def test_requestAndAnswer(self) -> None:
        """The service gets the request, the caller the answer, and its connection lives on."""
        caller = self.call()
        line, *lines = self.asked.split(b"\r\n")
        self.assertEqual(line, b"GET /a HTTP/1.1")
        self.assertIn(b"Host: cp.example", lines)
        self.assertIn(b"X-Forwarded-For: 192.0.2.1", lines)
        self.assertTrue(self.asked.endswith(b"\r\n\r\n"))
        self.assertEqual(caller.written, b"")
        self.reply(OK)
        [(status, headers, body)] = caller.answers()
        self.assertEqual((status, body), (200, b"ok"))
        self.assertEqual(headers[b"content-length"], b"2")
        self.assertNotIn(b"transfer-encoding", headers)
        self.assertFalse(caller.closed)
        self.nothingLeft()

    def test_lengthOfABodyIsKept(self) -> None:
        """A body of known length goes with its length, piece by piece."""
        caller = self.call(b"PUT /p/a HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
        self.assertIn(b"\r\nContent-Length: 6\r\n", self.asked)
        self.assertTrue(self.asked.endswith(b"\r\n\r\nabc"), "a piece was held back")
        caller.send(b"def")
        self.assertTrue(self.asked.endswith(b"\r\n\r\nabcdef"))
        self.reply(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual(caller.statuses(), [201])

    def test_emptyBodyIsKept(self) -> None:
        """C{Content-Length: 0} is said to the service too."""
        self.call(b"POST /p/a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        self.assertIn(b"\r\nContent-Length: 0\r\n", self.asked)

    def test_chunksStayChunks(self) -> None:
        """A body without a length crosses in chunks, both ways."""
        caller = self.call(
            b"POST /p/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        )
        self.assertIn(b"\r\nTransfer-Encoding: chunked\r\n", self.asked)
        self.assertTrue(self.asked.endswith(b"3\r\nabc\r\n"))
        caller.send(b"0\r\n\r\n")
        self.assertTrue(self.asked.endswith(b"3\r\nabc\r\n0\r\n\r\n"))
        self.reply(CHUNKED + b"2\r\nhi\r\n")
        self.assertTrue(caller.written.endswith(b"\r\n\r\n2\r\nhi\r\n"))
        self.reply(b"0\r\nX-Trailer: 1\r\n\r\n")
        [(status, _, body)] = caller.answers()
        self.assertEqual((status, body), (200, b"hi"))
        self.assertNotIn(b"X-Trailer", caller.written, "trailers do not cross")

    def test_eventsPassAtOnce(self) -> None:
        """D15: each event of an event stream is with the caller when it is sent."""
        caller = self.call()
        self.reply(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        self.assertIn(b"\r\nContent-Type: text/event-stream\r\n", caller.written)
        for number in range(3):
            event = b"data: %d\n\n" % number
            self.reply(b"%x\r\n%s\r\n" % (len(event), event))
            self.assertTrue(caller.written.endswith(event + b"\r\n"), caller.written)

    def test_noDeadlineForWhatFlows(self) -> None:
        """D18: once an answer has begun, silence has no limit."""
        caller = self.call()
        self.reply(CHUNKED)
        self.clock.advance(86_400)
        self.reply(b"2\r\nhi\r\n0\r\n\r\n")
        self.assertEqual([body for _, _, body in caller.answers()], [b"hi"])

    def test_answersWithoutBodies(self) -> None:
        """HEAD, 204 and 304: header fields, nothing after them, and the connection lives."""
        caller = self.call(b"HEAD /p/a HTTP/1.1\r\nHost: a\r\n\r\n")
        self.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
        self.assertIn(b"Content-Length: 5000", caller.written)
        caller.send(GET)
        self.reply(b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 7\r\n\r\n")
        caller.send(GET)
        self.reply(b"HTTP/1.1 204 No Content\r\n\r\n")
        statuses = caller.statuses(b"HEAD", b"GET", b"GET")
        self.assertEqual(statuses, [200, 304, 204])
        self.assertEqual(len(self.dials.streams), 1, "they left the connection in order")

    def test_answerThatEndsWithItsConnection(self) -> None:
        """HTTP/1.0: the end of the stream is the end of the body, for us it is a chunk's."""
        caller = self.call()
        self.reply(b"HTTP/1.0 200 OK\r\n\r\nhello")
        self.finish()
        self.assertEqual([body for _, _, body in caller.answers()], [b"hello"])
        self.assertFalse(caller.closed)

    def test_fieldsOfTheOrigin(self) -> None:
        """Date and Server are the service's, once; the request's id is ours."""
        caller = self.call()
        self.reply(
            b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
            b"X-Request-Id: theirs\r\nContent-Length: 0\r\n\r\n"
        )
        self.assertEqual(caller.written.lower().count(b"\r\nserver: "), 1)
        self.assertEqual(caller.written.lower().count(b"\r\ndate: "), 1)
        self.assertIn(b"Server: nginx", caller.written)
        self.assertNotIn(b"theirs", caller.written)

    def test_informationalAnswers(self) -> None:
        """What comes before the answer (103) does not cross, and does no harm."""
        caller = self.call()
        self.reply(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK)
        self.assertEqual(caller.statuses(), [200])
        self.assertNotIn(b"103", caller.written)

    def test_bothWaysAtOnce(self) -> None:
        """An answer may begin before the request has ended."""
        caller = self.call(
            b"POST /p/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
        )
        self.reply(CHUNKED + b"1\r\nA\r\n")
        self.assertTrue(caller.written.endswith(b"1\r\nA\r\n"))
        caller.send(b"1\r\nb\r\n")
        self.assertTrue(self.asked.endswith(b"1\r\nb\r\n"))
        caller.send(b"0\r\n\r\n")
        self.reply(b"0\r\n\r\n")
        self.assertEqual(caller.statuses(), [200])
        self.assertFalse(caller.closed)
        self.nothingLeft()


class ContinueTests(ProxyTestCase):
    """C{Expect: 100-continue} is the service's to answer."""

    HEAD = b"PUT /p/a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"

    def test_continue(self) -> None:
        """The caller is asked for its body when the service asks for it."""
        caller = self.call(self.HEAD)
        self.assertIn(b"\r\nExpect: 100-continue\r\n", self.asked)
        self.assertEqual(caller.written, b"")
        self.reply(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.assertEqual(caller.written, b"HTTP/1.1 100 Continue\r\n\r\n")
        caller.send(b"abc")
        self.assertTrue(self.asked.endswith(b"\r\n\r\nabc"))
        self.reply(OK)
        self.assertIn(b"200 OK", caller.written)
        self.nothingLeft()

    def test_refused(self) -> None:
        """A service that refuses gets no body, and the caller is never asked for it."""
        caller = self.call(self.HEAD)
        self.reply(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual(caller.statuses(), [413])
        self.assertNotIn(b"100 Continue", caller.written)
        self.nothingLeft()
        self.assertEqual([call for call in self.clock.getDelayedCalls() if call.getTime() < 2], [])

    def test_serviceThatSaysNothing(self) -> None:
        """A service that does not know it gets the body after a second (RFC 9110, 10.1.1)."""
        caller = self.call(self.HEAD)
        self.clock.advance(1.0)
        self.assertEqual(caller.written, b"HTTP/1.1 100 Continue\r\n\r\n")
        caller.send(b"abc")
        self.assertTrue(self.asked.endswith(b"\r\n\r\nabc"))


class PressureTests(ProxyTestCase):
    """Neither side holds more than a buffer."""

    def test_slowCaller(self) -> None:
        """A caller that does not read stops the stream; when it reads, bytes flow again."""
        caller = self.call()
        self.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        caller.protocol.pauseProducing()
        sent = len(b"x" * 65536)
        for _ in range(3):
            if self.stream.paused:
                break
            self.reply(b"x" * 65536)
        self.assertTrue(self.stream.paused, "the service was not told to stop")
        before = len(caller.written)
        caller.protocol.resumeProducing()
        self.assertFalse(self.stream.paused)
        self.assertGreaterEqual(len(caller.written) - before, sent)

    def test_slowService(self) -> None:
        """A service that does not read stops the caller."""
        caller = self.call(b"PUT /p/a HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        cast(Any, self.stream.producer).pauseProducing()
        for _ in range(4):
            if caller.transport.paused:
                break
            caller.send(b"x" * 65536)
        self.assertTrue(caller.transport.paused, "the caller was not told to stop")
        before = len(self.asked)
        cast(Any, self.stream.producer).resumeProducing()
        self.assertGreater(len(self.asked), before)
        self.assertFalse(caller.transport.paused)

    def test_limits(self) -> None:
        """A caller has so many exchanges at once, a runner so many; then 503, and again."""
        callers = [self.call() for _ in range(3)]
        self.assertEqual(self.call().statuses(), [503])
        self.changes = {"caller": "t/bob"}
        self.call()
        self.assertEqual(self.call().statuses(), [503], "of the runner")
        self.assertEqual(self.limited, 2)
        for caller in callers:
            caller.lose()
        self.assertEqual(len(self.proxy), 1)
        self.call()
        self.assertEqual(len(self.proxy), 2)


class EndTests(ProxyTestCase):
    """Whatever ends an exchange ends it on both sides, and never looks like a clean end."""

    def test_dialErrors(self) -> None:
        """A dial that fails is the caller's answer."""
        for error, status in ((NotConnected(), 503), (TargetRefused(), 502)):
            self.dials.error = error
            self.assertEqual(self.call().statuses(), [status])
        self.nothingLeft()

    def test_brokenBody(self) -> None:
        """An answer that breaks off aborts the caller's connection, in each framing."""
        for head in (OK[:-2] + b"o", CHUNKED + b"5\r\nab", b"HTTP/1.0 200 OK\r\n\r\nab"):
            caller = self.call()
            self.reply(head)
            self.assertFalse(caller.closed)
            self.stream.end(Failure(ConnectionLost()))
            self.assertTrue(caller.transport.aborted, head)
        self.nothingLeft()

    def test_truncatedBody(self) -> None:
        """A body that is shorter than was said is broken, however orderly the end."""
        caller = self.call()
        self.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        self.finish()
        self.assertTrue(caller.transport.aborted)
        self.nothingLeft()

    def test_closedWithoutAnAnswer(self) -> None:
        """A service that says nothing and closes is a 502."""
        for clean in (True, False):
            caller = self.call()
            if clean:
                self.finish()
            else:
                self.stream.end(Failure(ConnectionLost()))
            self.assertEqual(caller.statuses(), [502])

    def test_ambiguousAnswers(self) -> None:
        """What could be read in two ways, or is no HTTP, is a 502 and never passed on."""
        for answer in (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 204 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX-A: a\x01b\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX A: b\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 999 OK\r\nContent-Length: 0\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
            b"x" * 70_000,
        ):
            caller = self.call()
            self.reply(answer)
            self.assertEqual(caller.statuses(), [502], answer[:80])
            self.assertIn(b"bad-answer", caller.written)
        self.nothingLeft()

    def test_malformedChunk(self) -> None:
        """A body that stops being one aborts the caller."""
        caller = self.call()
        self.reply(CHUNKED)
        self.reply(b"nonsense\r\n")
        self.assertTrue(caller.transport.aborted)
        self.nothingLeft()

    def test_callerGoes(self) -> None:
        """A caller that goes away takes the stream along: dialling, waiting, reading, sending."""
        self.dials.held = True
        caller = self.call()
        caller.lose()
        self.assertEqual(len(self.proxy), 0)
        self.dials.waiting.clear()
        self.dials.held = False
        for answer in (b"", CHUNKED + b"2\r\nhi\r\n"):
            caller = self.call()
            self.reply(answer)
            caller.lose(clean=False)
            self.assertTrue(self.stream.aborted)
        caller = self.call(b"PUT /p/a HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        caller.lose()
        self.assertTrue(self.stream.aborted)
        self.nothingLeft()

    def test_callerThatEndsItsDirectionDuringEvents(self) -> None:
        """A closed socket looks like one that has no more to say: a long answer ends with it."""
        caller = self.call()
        self.reply(CHUNKED)
        caller.protocol.readConnectionLost()
        self.assertTrue(caller.transport.aborted)
        caller.lose()
        self.nothingLeft()

    def test_badBody(self) -> None:
        """A request's body that is no good breaks the service's off and is the caller's 400."""
        caller = self.call(
            b"POST /p/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"
        )
        self.assertEqual(caller.statuses(), [400])
        self.assertTrue(self.stream.aborted)
        self.nothingLeft()

    def test_earlyAnswer(self) -> None:
        """A service may refuse a body before it is whole; its connection is not used again."""
        caller = self.call(b"PUT /p/a HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        self.reply(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual(caller.statuses(), [413])
        self.assertTrue(self.stream.aborted)
        self.nothingLeft()

    def test_deadline(self) -> None:
        """D14: the caller's deadline bounds the dial and the wait for the answer."""
        self.changes = {"wait": 5.0}
        self.dials.held = True
        caller = self.call()
        self.assertEqual(self.dials.dialled, [("wolf-1", None, 5.0)])
        self.clock.advance(5)
        self.assertEqual(caller.statuses(), [504])
        self.assertIn(b'"timed-out"', caller.written)
        self.dials.waiting.clear()
        self.dials.held = False
        caller = self.call()
        self.clock.advance(5)
        self.assertIn(b'"target-timed-out"', caller.written)
        self.nothingLeft()

    def test_usualDeadline(self) -> None:
        """Who says nothing waits for five minutes from the end of the request."""
        caller = self.call(b"PUT /p/a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n")
        self.clock.advance(1000)
        caller.send(b"abc")
        self.clock.advance(299)
        self.assertEqual(caller.written, b"")
        self.clock.advance(1)
        self.assertEqual(caller.statuses(), [504])

    def test_revoked(self) -> None:
        """F3: what was asked with a token ends with it: dials, answers, upgraded streams."""
        self.dials.held = True
        dialling = self.call()
        self.dials.held = False
        answering = self.call()
        self.reply(CHUNKED)
        self.proxy.end("another")
        self.assertEqual(len(self.proxy), 2)
        self.proxy.end("fam")
        self.assertEqual(dialling.statuses(), [401])
        self.assertTrue(answering.transport.aborted)
        answering.lose()
        upgraded = self.call(UPGRADE)
        self.reply(SWITCH)
        self.proxy.end("fam")
        self.assertTrue(upgraded.transport.aborted and self.stream.aborted)


class AgainTests(ProxyTestCase):
    """Connections are used again where that cannot be told from a new one."""

    def test_again(self) -> None:
        """A second request goes by the first one's connection."""
        for _ in range(3):
            caller = self.call()
            self.reply(OK)
            self.assertEqual(caller.statuses(), [200])
        self.assertEqual(len(self.dials.dialled), 1)
        self.clock.advance(15)
        self.assertEqual(len(self.proxy.backends.idle), 0)
        self.assertTrue(self.stream.disconnecting)

    def test_notForAnother(self) -> None:
        """D16: another target, runner, caller or registration gets a connection of its own."""
        changes: list[dict[str, Any]] = [
            {"target": "other"},
            {"runner": "wolf-2"},
            {"caller": "t/bob"},
        ]
        self.call()
        self.reply(OK)
        for number, change in enumerate(changes, 2):
            self.changes = change
            self.call()
            self.reply(OK)
            self.assertEqual(len(self.dials.dialled), number, change)
        self.changes = {}
        self.dials.generation = 2
        self.call()
        self.assertEqual(len(self.dials.dialled), 5)
        self.assertTrue(self.dials.streams[0].disconnecting, "it leads to who was there before")

    def test_closedWithTheRegistration(self) -> None:
        """Idle connections close as their runner registers anew, or is awaited no more."""
        for event in ("registered", "gone"):
            self.call()
            self.reply(OK)
            self.changes = {"runner": "wolf-2"}
            self.call()
            self.reply(OK)
            self.changes = {}
            first, other = self.dials.streams[-2:]
            if event == "registered":
                again: Any = SimpleNamespace(key="wolf-1", generation=self.dials.generation)
                self.proxy.backends.registered(again, None)
                self.assertFalse(first.disconnecting, "it is of the present registration")
                again.generation = 2
                self.proxy.backends.registered(again, "connected")
            else:
                self.proxy.backends.gone("wolf-1", 1)
            self.assertEqual((first.disconnecting, other.disconnecting), (True, False), event)
            self.proxy.backends.gone("wolf-2", 1)
            self.assertEqual(len(self.proxy.backends.idle), 0)

    def test_notKeptOfARegistrationOfBefore(self) -> None:
        """What was in use as its runner registered anew does not wait for another request."""
        self.call()
        self.dials.generation = 2
        self.reply(OK)
        self.assertEqual(len(self.proxy.backends.idle), 0)
        self.assertTrue(self.stream.disconnecting)

    def test_notKeptOfARunnerThatHasLeft(self) -> None:
        """G1: an agent that drains does not wait for a connection that nobody can use again."""
        self.call()
        self.dials.generation = None
        self.reply(OK)
        self.assertEqual(len(self.proxy.backends.idle), 0)
        self.assertTrue(self.stream.disconnecting)

    def test_anotherHost(self) -> None:
        """D16: another Host on one connection is told to the service, whichever stream it is."""
        caller = self.call()
        self.reply(OK)
        caller.send(GET.replace(b"cp.example", b"other.example"))
        self.assertIn(b"Host: other.example", self.asked)

    def test_asksEachTime(self) -> None:
        """F2: who may is asked for a connection that is used again."""
        self.call()
        self.reply(OK)
        self.changes = {"allow": lambda expose: expose != "internal"}
        self.dials.expose = "internal"
        self.assertEqual(self.call().statuses(), [403])

    def test_notInOrder(self) -> None:
        """What is closed, says so, or says more than was asked, is not used again."""
        for answer in (
            OK.replace(b"\r\n", b"\r\nConnection: close\r\n", 1),
            OK.replace(b"1.1", b"1.0"),
            OK + b"HTTP/1.1 200 OK\r\n",
        ):
            self.call()
            self.reply(answer)
            self.assertEqual(len(self.proxy.backends.idle), 0, answer)
        self.call()
        self.reply(OK)
        self.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        self.assertEqual(len(self.proxy.backends.idle), 0)
        self.call()
        self.assertNotIn(b"poison", self.call().written)
        self.assertEqual(len(self.proxy), 2)

    def test_closedWhileIdle(self) -> None:
        """A connection that the service closes is forgotten."""
        self.call()
        self.reply(OK)
        self.finish()
        self.assertEqual(len(self.proxy.backends.idle), 0)
        self.call()
        self.assertEqual(len(self.dials.dialled), 2)

    def test_staleIsTriedAgainOnce(self) -> None:
        """A connection that dies as it is used again is replaced, once."""
        self.call()
        self.reply(OK)
        caller = self.call()
        self.finish()
        self.assertEqual(len(self.dials.dialled), 2)
        self.reply(OK)
        self.assertEqual(caller.statuses(), [200])
        caller = self.call()
        self.stream.end(Failure(ConnectionLost()))
        self.finish()
        self.assertEqual(caller.statuses(), [502])
        self.assertEqual(len(self.dials.dialled), 3)

    def test_notTriedAgainOnceAnswered(self) -> None:
        """A connection that dies after a byte of the answer is not replaced."""
        self.call()
        self.reply(OK)
        caller = self.call()
        self.reply(b"HTTP/1.1 2")
        self.finish()
        self.assertEqual(caller.statuses(), [502])
        self.assertEqual(len(self.dials.dialled), 1)

    def test_whatCannotBeRepeated(self) -> None:
        """A POST, a body and an upgrade never go by a connection that may be dead."""
        for asked in (
            b"POST /p/a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            b"PUT /p/a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
            UPGRADE,
        ):
            before = len(self.dials.dialled)
            self.call(asked)
            self.reply(OK)
            self.assertEqual(len(self.dials.dialled), before + 1, asked)

    def test_bounded(self) -> None:
        """No more than so many wait at one place."""
        self.proxy.setLimits(ProxyLimits(perCaller=100, perRunner=100))
        for _ in range(PER_PLACE + 3):
            self.call()
        for stream in list(self.dials.streams):
            stream.protocol.dataReceived(OK)
        self.assertEqual(len(self.proxy.backends.idle), PER_PLACE)
        self.nothingLeft()


class UpgradeTests(ProxyTestCase):
    """Upgrades leave HTTP, and no byte is lost."""

    def test_upgrade(self) -> None:
        """D17: in any letter case, beside other words, the upgrade crosses and bytes flow."""
        caller = self.call(UPGRADE + b"early")
        self.assertIn(b"\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n", self.asked)
        self.assertNotIn(b"early", self.asked)
        self.stream.clear()
        self.reply(SWITCH + b"first")
        head, _, rest = caller.written.partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 101 "), head)
        self.assertIn(b"\r\nUpgrade: websocket", head)
        self.assertEqual((rest, self.asked), (b"first", b"early"))
        caller.send(b" up")
        self.reply(b" down")
        self.assertEqual(self.asked, b"early up")
        self.assertTrue(caller.written.endswith(b"first down"))
        self.clock.advance(86_400)
        self.assertEqual(len(self.proxy), 1, "D18: it has no deadline")
        caller.protocol.readConnectionLost()
        self.assertTrue(self.stream.writeClosed, "half-close crosses")
        self.finish()
        caller.lose()
        self.stream.end()
        self.nothingLeft()

    def test_refusedUpgrade(self) -> None:
        """A service that does not switch answers as always."""
        caller = self.call(UPGRADE)
        self.reply(OK)
        self.assertEqual(caller.statuses(), [200])
        self.assertFalse(caller.closed)

    def test_switchNobodyAskedFor(self) -> None:
        """A 101 crosses only where the caller asked, and only to what it asked for."""
        caller = self.call()
        self.reply(SWITCH)
        self.assertEqual(caller.statuses(), [502])
        caller = self.call(UPGRADE)
        self.reply(SWITCH.replace(b"websocket", b"telnet"))
        self.assertEqual(caller.statuses(), [502])
        for stream in self.dials.streams:
            self.assertTrue(stream.aborted)

    def test_upgradeWithABody(self) -> None:
        """A request with a body is not upgraded: the service is not asked to."""
        self.call(UPGRADE.replace(b"Host", b"Content-Length: 1\r\nHost") + b"x")
        self.assertNotIn(b"Upgrade", self.asked)

    def test_clearTextHTTP2(self) -> None:
        """An upgrade to h2c is left out: requests would go where nobody sees them."""
        self.call(
            UPGRADE.replace(b"WebSocket", b"h2c").replace(
                b"Upgrade\r", b"Upgrade, HTTP2-Settings\r"
            )
        )
        self.assertNotIn(b"\r\nUpgrade:", self.asked)

    def test_callerGoneBeforeTheSwitch(self) -> None:
        """A caller that is gone leaves no half of a relay."""
        caller = self.call(UPGRADE)
        caller.lose()
        self.assertTrue(self.stream.aborted)
        self.nothingLeft()


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """C{data} cut at those places."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if a < b]


class SplitTests(ProxyTestCase):
    """Nothing depends on how the bytes come."""

    CUTS = st.lists(st.integers(0, 10_000), max_size=12)

    def fresh(self) -> None:
        self.tearDown()
        self.setUp()

    @settings(deadline=None, max_examples=60)
    @given(CUTS, CUTS)
    def test_chunkedBothWays(self, up: list[int], down: list[int]) -> None:
        """Bodies are the same bytes at every split, one request after another."""
        self.fresh()
        body = bytes(range(256)) * 3
        request = (
            b"POST /p/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"300\r\n" + body + b"\r\n0\r\n\r\n"
        )
        answer = CHUNKED + b"2fe\r\n" + body[:766] + b"\r\n2\r\n" + body[766:] + b"\r\n0\r\n\r\n"
        caller = self.call(b"")
        for _ in range(2):
            for piece in split(request, up):
                caller.send(piece)
            server = parseRequest(self.asked)
            self.assertEqual(server, body)
            for piece in split(answer, down):
                self.reply(piece)
        self.assertEqual([found for _, _, found in caller.answers(b"POST", b"POST")], [body] * 2)
        self.nothingLeft()

    @settings(deadline=None, max_examples=60)
    @given(CUTS, CUTS)
    def test_upgradeAtEverySplit(self, up: list[int], down: list[int]) -> None:
        """What comes with either head, or right after it, arrives whole."""
        self.fresh()
        caller = self.call(b"")
        for piece in split(UPGRADE + b"from the caller", up):
            caller.send(piece)
        self.stream.clear()
        for piece in split(SWITCH + b"from the service", down):
            self.reply(piece)
        self.assertEqual(self.asked, b"from the caller")
        self.assertEqual(caller.written.partition(b"\r\n\r\n")[2], b"from the service")

    @settings(deadline=None, max_examples=60)
    @given(CUTS, st.integers(0, 200), st.booleans())
    def test_cutAnywhere(self, cuts: list[int], keep: int, orderly: bool) -> None:
        """An answer that is cut anywhere is a 502 or an aborted connection, never whole."""
        self.fresh()
        answer = CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"
        caller = self.call()
        for piece in split(answer[: min(keep, len(answer) - 1)], cuts):
            self.reply(piece)
        if orderly:
            self.finish()
        else:
            self.stream.end(Failure(ConnectionLost()))
        if not caller.transport.aborted:
            self.assertEqual(caller.statuses(), [502])
        self.nothingLeft()


def parseRequest(data: bytes) -> bytes:
    """The body of the last request in C{data}, by its chunks."""
    _, _, rest = data.rpartition(b"HTTP/1.1\r\n")
    _, _, rest = rest.partition(b"\r\n\r\n")
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return body
        body, rest = body + rest[:length], rest[length + 2 :]
