"""Requests, header fields and problems by themselves; and any order of events."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.http.problem import Problem
from helix_revdial.http.request import Headers, Request, parseQuery
from helix_revdial.http.response import HandedOver, Response
from tests.http.exchange import Exchange, makeRequest


class HeadersTests(SynchronousTestCase):
    def test_letterCase(self) -> None:
        """Names have none, for get, getAll, tokens and in; raw keeps what was sent."""
        headers = Headers([(b"X-A", b"1"), (b"x-a", b" B ,c"), (b"Y", b"")])
        self.assertEqual(headers.get(b"X-a"), b"1")
        self.assertEqual(headers.getAll(b"x-A"), [b"1", b" B ,c"])
        self.assertEqual(headers.tokens(b"x-a"), [b"1", b"b", b"c"])
        self.assertIn(b"Y", headers)
        self.assertNotIn(b"Z", headers)
        self.assertEqual(list(headers), [(b"x-a", b"1"), (b"x-a", b" B ,c"), (b"y", b"")])
        self.assertEqual(headers.raw[0], (b"X-A", b"1"))

    def test_reprHidesValues(self) -> None:
        """F1: neither fields nor requests show values in a log."""
        request = makeRequest(target="/a?token=hush", headers=[(b"Authorization", b"hush")])
        self.assertNotIn("hush", repr(request) + repr(request.headers))


class QueryTests(SynchronousTestCase):
    def test_pairs(self) -> None:
        """Order, repetition, plus signs, empty values, bytes that are no UTF-8."""
        self.assertEqual(
            parseQuery(b"b=1&a=x+y%26&&b=&c&d=%ff"),
            [("b", "1"), ("a", "x y&"), ("b", ""), ("c", ""), ("d", "\ufffd")],
        )


class ProblemTests(SynchronousTestCase):
    def test_document(self) -> None:
        """RFC 9457's members, ours, and nothing that is empty."""
        problem = Problem(404, "No such session.", headers=[(b"Retry-After", b"1")])
        answer = problem.response("r1")
        assert isinstance(answer.body, bytes)
        self.assertEqual(
            msgspec.json.decode(answer.body),
            {
                "type": "https://docs.example.com/errors/not-found",
                "title": "Not Found",
                "status": 404,
                "detail": "No such session.",
                "requestId": "r1",
            },
        )
        self.assertEqual(
            answer.headers,
            [(b"Content-Type", b"application/problem+json"), (b"Retry-After", b"1")],
        )


EVENTS = st.one_of(
    st.sampled_from(
        [
            b"GET /now HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /up HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n1234",
            b"POST /now HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"5\r\nabcde\r\n",
            b"0\r\n\r\n",
            b"5678",
            b"GET /now HT",
        ]
    ),
    st.sampled_from(["pause", "resume", "fire", "end", "stop"]),
    st.floats(0.1, 30),
)


class AnyOrderTests(SynchronousTestCase):
    """Whatever happens in whatever order, nothing raises and nothing is left over."""

    @settings(deadline=None, max_examples=200)
    @given(st.lists(EVENTS, max_size=12))
    def test_anyOrder(self, events: list[bytes | str | float]) -> None:
        """F10, C12: after the connection is lost no timer, place or count remains."""
        waiting: list[Deferred[None]] = []

        async def dispatch(request: Request) -> Response | HandedOver:
            if request.path == "/wait":
                waiting.append(Deferred())
                await waiting[-1]
            elif request.path == "/read":
                return Response(200, [], await request.body.read(100))
            elif request.path == "/up":
                return request.handOver(Protocol())
            return Response(200, [], b"x" * 10)

        exchange = Exchange(dispatch)
        protocol = exchange.protocol
        ended = False
        for event in events:
            if isinstance(event, bytes):
                if not ended and not exchange.transport.paused:
                    exchange.send(event)
            elif isinstance(event, float):
                exchange.clock.advance(event)
            elif event == "pause" and exchange.transport.producer is protocol:
                protocol.pauseProducing()
            elif event == "resume" and exchange.transport.producer is protocol:
                protocol.resumeProducing()
            elif event == "fire" and waiting and not waiting[-1].called:
                waiting[-1].callback(None)
            elif event == "end":
                ended = True
                protocol.readConnectionLost()
            elif event == "stop":
                exchange.factory.stop(1)
        handedOver = exchange.factory.connections and protocol.phase.name == "HANDED_OVER"
        for _ in range(20):
            exchange.clock.advance(30)
        busy = protocol.phase.name == "SERVING"
        self.assertTrue(exchange.closed or handedOver or busy, protocol.phase)
        exchange.lose(clean=False)
        self.assertEqual(exchange.clock.getDelayedCalls(), [])
        self.assertEqual(exchange.factory.connections, 0)
        self.assertEqual(exchange.factory.admission.total, 0)
        self.assertEqual(self.flushLoggedErrors(), [])
