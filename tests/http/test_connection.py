"""Requests and answers on one connection."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionAborted
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.http.connection import HTTPConnection
from helix_revdial.http.limits import HTTPLimits
from helix_revdial.http.problem import Problem
from helix_revdial.http.request import Request
from helix_revdial.http.response import BrokenOff, Response
from tests.http.exchange import Exchange

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"


def post(body: bytes, *fields: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = [b"POST /p HTTP/1.1", b"Host: a", b"Content-Length: %d" % size, *fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def echo(request: Request) -> Response:
    return Response(200, [], await request.body.read(100) or request.path.encode())


async def ignore(request: Request) -> Response:
    return Response(200, [], b"no thanks")


class KeepAliveTests(SynchronousTestCase):
    def test_oneAfterAnother(self) -> None:
        """Requests of a connection are answered in order; it stays open."""
        exchange = Exchange(echo)
        exchange.send(GET)
        exchange.send(post(b"body"))
        self.assertEqual([body for _, _, body in exchange.answers()], [b"/a", b"body"])
        self.assertFalse(exchange.closed)

    def test_pipelinedAtEverySplit(self) -> None:
        """Pipelined requests with bodies of both framings, split anywhere."""
        chunked = (
            b"POST /p HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: t\r\n\r\n"
        )
        data = GET + post(b"one") + chunked + GET
        for position in range(len(data)):
            exchange = Exchange(echo)
            exchange.send(data[:position])
            exchange.send(data[position:])
            bodies = [body for _, _, body in exchange.answers()]
            self.assertEqual(bodies, [b"/a", b"one", b"abcde", b"/a"], position)

    def test_answersInOrder(self) -> None:
        """A request waits for the answer to the one before it."""
        first: Deferred[None] = Deferred()
        seen: list[str] = []

        async def dispatch(request: Request) -> Response:
            seen.append(request.path)
            if request.path == "/a":
                await first
            return Response(200, [], request.path.encode())

        exchange = Exchange(dispatch)
        exchange.send(GET + GET.replace(b"/a", b"/b"))
        self.assertEqual(seen, ["/a"])
        first.callback(None)
        self.assertEqual([body for _, _, body in exchange.answers()], [b"/a", b"/b"])

    def test_manyPipelinedTakeTurns(self) -> None:
        """One peer's flood of small requests leaves the reactor between portions."""
        exchange = Exchange(echo)
        exchange.send(GET * 100)
        served = len(exchange.answers())
        self.assertLess(served, 30)
        for _ in range(10):
            exchange.clock.advance(0)
        self.assertEqual(len(exchange.answers()), 100)

    def test_connectionClose(self) -> None:
        """Connection: close is honoured from either side, and HTTP/1.0 has no more."""

        async def closing(request: Request) -> Response:
            return Response(200, [(b"Connection", b"close")], b"x")

        for exchange, data in (
            (Exchange(echo), b"GET / HTTP/1.1\r\nHost: a\r\nConnection: foo, Close\r\n\r\n"),
            (Exchange(echo), b"GET / HTTP/1.0\r\n\r\n"),
            (Exchange(closing), GET),
        ):
            exchange.send(data + GET)
            self.assertEqual(len(exchange.answers()), 1)
            self.assertEqual(exchange.answers()[0][1][b"connection"], b"close")
            self.assertTrue(exchange.transport.disconnecting)
            self.assertIsNone(exchange.transport.producer)

    def test_halfClose(self) -> None:
        """D1: a client that ends its direction after the request still gets the answer."""
        ready: Deferred[None] = Deferred()

        async def slow(request: Request) -> Response:
            await ready
            return Response(200, [], b"late")

        exchange = Exchange(slow)
        exchange.send(GET)
        exchange.protocol.readConnectionLost()
        self.assertFalse(exchange.closed)
        ready.callback(None)
        self.assertEqual(exchange.answers()[0][2], b"late")
        self.assertTrue(exchange.transport.disconnecting)

    def hangUp(self, *, early: bool) -> tuple[Exchange, list[str]]:
        """A caller that goes away, before or after the request says what that means."""
        started: Deferred[None] = Deferred()
        ends: list[str] = []

        async def waiting(request: Request) -> Response:
            await started
            request.endWithCaller()
            try:
                await Deferred()
            except CancelledError:
                ends.append("cancelled")
                raise
            return Response(200, [], b"")

        exchange = Exchange(waiting)
        exchange.send(GET)
        if not early:
            started.callback(None)
            self.assertEqual(ends, [])
        exchange.protocol.readConnectionLost()
        if early:
            self.assertFalse(exchange.transport.aborted)
            started.callback(None)
        return exchange, ends

    def test_hangUp(self) -> None:
        """
        A request that ends with its caller is cancelled when the caller ends its
        direction, as one does that has gone away, whichever comes first.
        """
        for early in (False, True):
            exchange, ends = self.hangUp(early=early)
            self.assertTrue(exchange.transport.aborted, f"early: {early}")
            exchange.protocol.connectionLost(Failure(ConnectionAborted()))
            self.assertEqual(ends, ["cancelled"], f"early: {early}")
            self.assertEqual(exchange.answers(), [])

    async def unending(self, request: Request) -> Response:
        """An answer that begins and then waits, for a request that says what follows."""
        request.endWithCaller(whole=request.path == "/whole")

        async def pieces() -> AsyncGenerator[bytes, None]:
            yield b"first"
            await Deferred()

        return Response(200, [], pieces())

    def test_hangUpDuringTheAnswer(self) -> None:
        """Once the answer has begun, the end counts only where it was said to: to the last byte."""
        for path, aborted in ((b"/half", False), (b"/whole", True)):
            exchange = Exchange(self.unending)
            exchange.send(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            self.assertTrue(exchange.written.endswith(b"first\r\n"))
            exchange.protocol.readConnectionLost()
            self.assertEqual(exchange.transport.aborted, aborted, path)
            exchange.lose()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_sourceThatBreaks(self) -> None:
        """A body whose source breaks ends the connection, without a fault in the log."""

        async def breaking(request: Request) -> Response:
            async def pieces() -> AsyncGenerator[bytes, None]:
                yield b"half"
                raise BrokenOff

            return Response(200, [], pieces())

        exchange = Exchange(breaking)
        exchange.send(GET)
        self.assertTrue(exchange.transport.aborted)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_fieldsOfTheOrigin(self) -> None:
        """An answer that is passed on keeps the Date and Server that it has."""

        async def passed(request: Request) -> Response:
            return Response(200, [(b"date", b"then"), (b"SERVER", b"theirs")], b"")

        exchange = Exchange(passed)
        exchange.send(GET)
        headers = exchange.answers()[0][1]
        self.assertEqual((headers[b"date"], headers[b"server"]), (b"then", b"theirs"))
        self.assertEqual(exchange.written.lower().count(b"\r\ndate: "), 1)

    def test_headers(self) -> None:
        """Date, Server, a request id and the length are there."""
        exchange = Exchange(echo)
        exchange.send(GET)
        headers = exchange.answers()[0][1]
        self.assertRegex(headers[b"date"].decode(), r"^\w{3}, \d\d \w{3} \d{4} .* GMT$")
        self.assertEqual(headers[b"server"], b"helix_revdial")
        self.assertEqual(headers[b"content-length"], b"2")
        self.assertEqual(len(headers[b"x-request-id"]), 32)

    def test_requestId(self) -> None:
        """A well-formed X-Request-Id is echoed, any other replaced."""
        for given, echoed in (
            (b"abc-1", True),
            (b"x" * 64, True),
            (b"x" * 65, False),
            (b"a b", False),
        ):
            exchange = Exchange(echo)
            exchange.send(GET[:-2] + b"X-Request-Id: " + given + b"\r\n\r\n")
            found = exchange.answers()[0][1][b"x-request-id"]
            self.assertEqual(found == given, echoed, given)


class FailureTests(SynchronousTestCase):
    def test_problem(self) -> None:
        """A Problem is the answer; the connection goes on."""

        async def dispatch(request: Request) -> Response:
            raise Problem(503, "Sandbox not connected: no connection", code="not-connected")

        exchange = Exchange(dispatch)
        exchange.send(GET + GET)
        status, headers, body = exchange.answers()[0]
        self.assertEqual(status, 503)
        self.assertEqual(headers[b"content-type"], b"application/problem+json")
        self.assertIn(b'"detail":"Sandbox not connected: no connection"', body)
        self.assertIn(b'"code":"not-connected"', body)
        self.assertIn(headers[b"x-request-id"], body)
        self.assertEqual(exchange.statuses(), [503, 503])

    def test_exception(self) -> None:
        """Anything else is a 500 that says nothing but the id to look for; logged."""

        async def dispatch(request: Request) -> Response:
            raise ZeroDivisionError("secret")

        exchange = Exchange(dispatch)
        exchange.send(GET + GET)
        self.assertEqual(exchange.statuses(), [500, 500])
        self.assertNotIn(b"secret", exchange.written)
        self.assertFalse(exchange.closed)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_impossibleHeader(self) -> None:
        """An answer that would split the response is a 500 instead."""

        async def dispatch(request: Request) -> Response:
            return Response(200, [(b"X", b"a\r\nSet-Cookie: b")], b"")

        exchange = Exchange(dispatch)
        exchange.send(GET)
        self.assertEqual(exchange.statuses(), [500])
        self.assertEqual(len(self.flushLoggedErrors()), 1)

    def test_lostWhileServing(self) -> None:
        """C1: the dispatch of a lost connection is cancelled; nothing is left."""
        seen: list[str] = []

        async def dispatch(request: Request) -> Response:
            try:
                await Deferred()
            except CancelledError:
                seen.append("cancelled")
                raise
            return Response(200)

        exchange = Exchange(dispatch)
        exchange.send(GET)
        exchange.lose()
        self.assertEqual(seen, ["cancelled"])
        self.assertEqual(exchange.clock.getDelayedCalls(), [])
        self.assertEqual(exchange.factory.connections, 0)
        self.assertEqual(exchange.factory.admission.total, 0)


class RequestBodyTests(SynchronousTestCase):
    def test_expectContinue(self) -> None:
        """100 Continue is sent when the body is read, not before, and once."""
        start: Deferred[None] = Deferred()

        async def dispatch(request: Request) -> Response:
            await start
            return Response(200, [], await request.body.read(10))

        exchange = Exchange(dispatch)
        exchange.send(post(b"", b"Expect: 100-continue", length=3))
        self.assertEqual(exchange.written, b"")
        start.callback(None)
        self.assertEqual(exchange.written, b"HTTP/1.1 100 Continue\r\n\r\n")
        exchange.send(b"abc" + GET)
        self.assertEqual(exchange.written.count(b"100 Continue"), 1)
        self.assertEqual(exchange.answers()[0][2], b"abc")
        self.assertFalse(exchange.closed)

    def test_expectContinueButTooLarge(self) -> None:
        """413 comes before the body, without 100 Continue; then the connection closes."""
        exchange = Exchange(echo)
        exchange.send(post(b"", b"Expect: 100-continue", length=101))
        self.assertEqual(exchange.statuses(), [413])
        self.assertEqual(exchange.answers()[0][1][b"connection"], b"close")
        self.assertNotIn(b"100 Continue", exchange.written)
        self.assertTrue(exchange.closed)

    def test_tooLargeInChunks(self) -> None:
        """A chunked body is counted."""
        exchange = Exchange(echo)
        head = b"POST /p HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        exchange.send(head + b"64\r\n" + b"x" * 100 + b"\r\n")
        self.assertEqual(exchange.written, b"")
        exchange.send(b"1\r\nx\r\n")
        self.assertEqual(exchange.statuses(), [413])

    def test_malformedChunks(self) -> None:
        """A body that breaks its framing is a 400 for its reader, and the end."""
        head = b"POST /p HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        for body in (
            b"xyz\r\n",
            b"3\r\nabcd",
            b"3\nabc\r\n",
            b"0\r\n\n",
            b"0\r\nbad field\r\n\r\n",
        ):
            exchange = Exchange(echo)
            exchange.send(head + body + GET)
            self.assertEqual(exchange.statuses(), [400], body)
            self.assertTrue(exchange.closed)

    def test_unreadIsDrained(self) -> None:
        """A small body nobody read is dropped, and the next request is answered."""
        exchange = Exchange(ignore)
        data = post(b"x" * 5000)
        exchange.send(data[:1000])
        self.assertEqual(exchange.statuses(), [200])
        exchange.send(data[1000:] + GET)
        self.assertEqual(exchange.statuses(), [200, 200])
        self.assertFalse(exchange.closed)

    def test_unreadAndLarge(self) -> None:
        """A large body nobody read is not taken: the answer says close."""
        exchange = Exchange(ignore)
        exchange.send(post(b"x" * 1000, length=1_000_000))
        self.assertEqual(exchange.statuses(), [200])
        self.assertEqual(exchange.answers()[0][1][b"connection"], b"close")
        self.assertTrue(exchange.closed)

    def test_unreadAndEndless(self) -> None:
        """An endless body in chunks is dropped to a bound, then the connection closes."""
        exchange = Exchange(ignore, limits=HTTPLimits(drainBytes=5000))
        exchange.send(b"POST /p HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.assertEqual(exchange.statuses(), [200])
        for _ in range(4):
            exchange.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
        self.assertFalse(exchange.closed)
        exchange.send(b"400\r\n" + b"x" * 1024 + b"\r\n")
        self.assertTrue(exchange.closed)

    def test_backpressure(self) -> None:
        """D4: while nobody reads at most a buffer is taken, then the peer is paused."""
        turns: list[Deferred[None]] = []
        got: list[int] = []

        async def slow(request: Request) -> Response:
            async for piece in request.body.pieces():
                got.append(len(piece))
                turns.append(Deferred())
                await turns[-1]
            return Response(200, [], b"%d" % sum(got))

        exchange = Exchange(slow, limits=HTTPLimits(bodyBuffer=10_000))
        exchange.send(post(b"", length=30_000))
        exchange.send(b"x" * 5000)
        self.assertFalse(exchange.transport.paused)
        exchange.send(b"x" * 15_000)
        self.assertTrue(exchange.transport.paused)
        turns[0].callback(None)
        self.assertFalse(exchange.transport.paused)
        exchange.send(b"x" * 10_000)
        while len(exchange.written) == 0:
            turns[-1].callback(None)
        self.assertEqual(exchange.answers()[0][2], b"30000")

    def test_oneByteASecond(self) -> None:
        """E4: a body that drips in holds nobody for long: 408, closed."""
        exchange = Exchange(echo)
        exchange.send(post(b"", length=90))
        seconds = 0
        while not exchange.closed:
            exchange.clock.advance(1)
            exchange.send(b"x")
            seconds += 1
            self.assertLess(seconds, 60)
        self.assertEqual(exchange.statuses(), [408])

    def test_allowSlow(self) -> None:
        """A live stream may be as slow as it likes."""

        async def patient(request: Request) -> Response:
            request.body.allowSlow()
            return Response(200, [], await request.body.read(1000))

        exchange = Exchange(patient)
        exchange.send(post(b"", length=90))
        for _ in range(90):
            exchange.clock.advance(10)
            exchange.send(b"x")
        self.assertEqual(exchange.answers()[0][2], b"x" * 90)

    def test_slowReaderIsNotTheSendersFault(self) -> None:
        """The pace is measured while we take bytes, not while the sender is held back."""
        turn: Deferred[None] = Deferred()

        async def slow(request: Request) -> Response:
            async for _ in request.body.pieces():
                await turn
            return Response(200)

        exchange = Exchange(slow, limits=HTTPLimits(bodyBuffer=100))
        exchange.send(post(b"", length=3000))
        exchange.send(b"x" * 10)
        exchange.send(b"x" * 1000)
        exchange.clock.advance(1000)
        self.assertFalse(exchange.closed)
        turn.callback(None)
        exchange.send(b"x" * 1990)
        self.assertEqual(exchange.statuses(), [200])

    def test_endsWithinTheBody(self) -> None:
        """A connection that ends within a body is a 400 for its reader."""
        exchange = Exchange(echo)
        exchange.send(post(b"x", length=3))
        exchange.protocol.readConnectionLost()
        self.assertEqual(exchange.statuses(), [400])
        self.assertTrue(exchange.closed)


class AnswerTests(SynchronousTestCase):
    def streaming(self, *pieces: bytes, fail: bool = False, headers: bool = False) -> Exchange:
        self.pulled: list[int] = []
        self.ended = False

        async def body() -> AsyncIterator[bytes]:
            try:
                for number, piece in enumerate(pieces):
                    self.pulled.append(number)
                    yield piece
                if fail:
                    raise ZeroDivisionError
            finally:
                self.ended = True

        async def dispatch(request: Request) -> Response:
            size = b"%d" % sum(map(len, pieces))
            return Response(200, [(b"Content-Length", size)] if headers else [], body())

        return Exchange(dispatch)

    def test_chunks(self) -> None:
        """An iterable without a length goes out in chunks; the connection lives on."""
        exchange = self.streaming(b"ab", b"", b"cd")
        exchange.send(GET + GET)
        self.assertEqual([body for _, _, body in exchange.answers()], [b"abcd", b"abcd"])
        self.assertEqual(exchange.answers()[0][1][b"transfer-encoding"], b"chunked")
        self.assertFalse(exchange.closed)

    def test_length(self) -> None:
        """An iterable with a length goes out as it is."""
        exchange = self.streaming(b"ab", b"cd", headers=True)
        exchange.send(GET)
        self.assertTrue(exchange.written.endswith(b"\r\n\r\nabcd"))

    def test_http10(self) -> None:
        """HTTP/1.0 gets bytes to the connection's end."""
        exchange = self.streaming(b"ab", b"cd")
        exchange.send(b"GET / HTTP/1.0\r\n\r\n")
        self.assertTrue(exchange.written.endswith(b"\r\n\r\nabcd"))
        self.assertNotIn(b"chunked", exchange.written)
        self.assertTrue(exchange.transport.disconnecting)

    def test_noBody(self) -> None:
        """HEAD, 204 and 304 have none, whatever the operation made; it is closed."""
        exchange = self.streaming(b"ab")
        exchange.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        self.assertTrue(exchange.written.endswith(b"\r\n\r\n"))
        self.assertEqual(self.pulled, [])
        for status in (204, 304):

            async def dispatch(request: Request, status: int = status) -> Response:
                return Response(status, [], b"surprise")

            other = Exchange(dispatch)
            other.send(GET + GET)
            self.assertEqual(other.statuses(), [status, status])
            self.assertNotIn(b"surprise", other.written)

    def test_headHasTheLength(self) -> None:
        """HEAD tells what GET would."""
        exchange = Exchange(ignore)
        exchange.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
        (_, head, nothing), (_, get, body) = exchange.answers(b"HEAD", b"GET")
        self.assertEqual(head[b"content-length"], get[b"content-length"])
        self.assertEqual((nothing, body), (b"", b"no thanks"))

    def test_breaksInTheMiddle(self) -> None:
        """D3: an answer that cannot be finished is aborted, never ended cleanly."""
        for headers in (True, False):
            exchange = self.streaming(b"ab", fail=True, headers=headers)
            exchange.send(GET)
            self.assertTrue(exchange.transport.aborted)
            self.assertFalse(exchange.written.endswith(b"0\r\n\r\n"))
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_shorterThanItsLength(self) -> None:
        """An iterable that ends before its length is aborted, too."""

        async def body() -> AsyncIterator[bytes]:
            yield b"ab"

        async def dispatch(request: Request) -> Response:
            return Response(200, [(b"Content-Length", b"3")], body())

        exchange = Exchange(dispatch)
        exchange.send(GET)
        self.assertTrue(exchange.transport.aborted)
        self.flushLoggedErrors()

    def test_backpressure(self) -> None:
        """D4: the next piece is asked for when the peer has taken the one before."""
        exchange = self.streaming(b"a", b"b", b"c")
        write = exchange.transport.writeSequence

        def writeSequence(data: list[bytes]) -> None:
            write(data)
            exchange.protocol.pauseProducing()

        self.patch(exchange.transport, "writeSequence", writeSequence)
        exchange.send(GET)
        self.assertEqual(self.pulled, [])
        exchange.protocol.resumeProducing()
        self.assertEqual(self.pulled, [0])
        exchange.protocol.resumeProducing()
        self.assertEqual(self.pulled, [0, 1])

    def test_largeBytesInPieces(self) -> None:
        """Bytes go out piece by piece, so that a slow peer's progress shows."""

        async def dispatch(request: Request) -> Response:
            return Response(200, [], b"x" * 300_000)

        exchange = Exchange(dispatch)
        write = exchange.transport.writeSequence

        def writeSequence(data: list[bytes]) -> None:
            write(data)
            exchange.protocol.pauseProducing()

        self.patch(exchange.transport, "writeSequence", writeSequence)
        exchange.send(GET)
        self.assertLess(len(exchange.written), 70_000)
        for _ in range(5):
            exchange.clock.advance(50)
            exchange.protocol.resumeProducing()
        self.assertEqual(len(exchange.answers()[0][2]), 300_000)
        self.assertFalse(exchange.closed)

    def test_stalledReader(self) -> None:
        """A peer that takes nothing for a minute is cut off; the iterable is closed."""
        exchange = self.streaming(b"a", b"b")
        write = exchange.transport.writeSequence

        def writeSequence(data: list[bytes]) -> None:
            write(data)
            exchange.protocol.pauseProducing()

        self.patch(exchange.transport, "writeSequence", writeSequence)
        exchange.send(GET)
        exchange.protocol.resumeProducing()
        exchange.clock.advance(59)
        self.assertFalse(exchange.closed)
        exchange.clock.advance(1)
        self.assertTrue(exchange.transport.aborted)
        exchange.lose(clean=False)
        self.assertTrue(self.ended)
        self.assertEqual(exchange.clock.getDelayedCalls(), [])

    def test_slowlyTaken(self) -> None:
        """
        What the kernel still sends counts as taken: it says nothing to the transport until
        a good part of its buffer is free, which may be a megabyte.
        """
        for ends in (False, True):
            kernel, peer = socket.socketpair()
            self.addCleanup(kernel.close)
            self.addCleanup(peer.close)
            for _ in range(3):
                kernel.send(b"waits in the kernel")
            exchange = self.streaming(b"a", b"b")
            transport, protocol = exchange.transport, exchange.protocol
            write = transport.writeSequence

            def writeSequence(
                data: list[bytes],
                write: Callable[[list[bytes]], None] = write,
                protocol: HTTPConnection = protocol,
            ) -> None:
                write(data)
                protocol.pauseProducing()

            transport.fileno = kernel.fileno  # type: ignore[attr-defined]
            self.patch(transport, "writeSequence", writeSequence)
            self.patch(transport, "loseConnection", lambda: None)
            exchange.send(GET)
            if ends:
                # What was written last is waited for, and then the connection closes.
                protocol._close()
            for _ in range(3):
                exchange.clock.advance(59)
                peer.recv(19)
                exchange.clock.advance(1)
                self.assertFalse(transport.aborted, ends)
            exchange.clock.advance(60)
            self.assertTrue(transport.aborted, ends)
            exchange.lose(clean=False)
            self.assertEqual(exchange.clock.getDelayedCalls(), [])

    def test_eventStreamEndsWithItsConnection(self) -> None:
        """An answer that waits for events is cancelled with its connection."""
        ended: list[bool] = []

        async def events() -> AsyncIterator[bytes]:
            try:
                yield b"data: 1\n\n"
                await Deferred()
            finally:
                ended.append(True)

        async def dispatch(request: Request) -> Response:
            return Response(200, [(b"Content-Type", b"text/event-stream")], events())

        exchange = Exchange(dispatch)
        exchange.send(GET)
        self.assertIn(b"data: 1\n\n", exchange.written)
        exchange.clock.advance(10_000)
        self.assertFalse(exchange.closed)
        exchange.lose(clean=False)
        self.assertEqual(ended, [True])
