"""What strangers may have of us: deadlines, caps, and stopping."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.logger import Logger, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.http.factory import HTTPFactory
from helix_revdial.http.limits import Admission, HTTPLimits, addressKey
from helix_revdial.http.request import Request
from helix_revdial.http.response import HandedOver, Response
from tests.http.exchange import Exchange, SocketTransport

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"


async def answer(request: Request) -> Response:
    if request.path == "/login":
        request.authenticated()
        request.authenticated()
    return Response(200, [], b"x")


class DeadlineTests(SynchronousTestCase):
    """E4: whoever is slow on purpose loses the connection, and costs others nothing."""

    def test_silence(self) -> None:
        """A connection that sends nothing is closed after ten seconds, without a word."""
        exchange = Exchange(answer)
        exchange.clock.advance(9.9)
        self.assertFalse(exchange.closed)
        exchange.clock.advance(0.1)
        self.assertTrue(exchange.closed)
        self.assertEqual(exchange.written, b"")

    def test_oneByteASecond(self) -> None:
        """A head that drips in is cut off ten seconds after the connection, with 408."""
        exchange = Exchange(answer)
        other = Exchange(factory=exchange.factory, clock=exchange.clock)
        for second in range(10):
            self.assertFalse(exchange.closed, second)
            exchange.send(b"GET / HTTP/1.1"[second : second + 1])
            other.send(GET)
            exchange.clock.advance(1)
        self.assertEqual(exchange.statuses(), [408])
        self.assertTrue(exchange.closed)
        self.assertEqual(other.statuses(), [200] * 10)

    def test_laterHeads(self) -> None:
        """A later head has ten seconds from its first byte."""
        exchange = Exchange(answer)
        exchange.send(GET)
        exchange.clock.advance(60)
        exchange.send(b"G")
        exchange.clock.advance(9)
        exchange.send(b"E")
        self.assertFalse(exchange.closed)
        exchange.clock.advance(1)
        self.assertEqual(exchange.statuses(), [200, 408])

    def test_idle(self) -> None:
        """Between requests a connection may idle for 75 seconds."""
        exchange = Exchange(answer)
        exchange.send(GET)
        exchange.clock.advance(74)
        exchange.send(GET)
        exchange.clock.advance(74)
        self.assertFalse(exchange.closed)
        exchange.clock.advance(1)
        self.assertTrue(exchange.closed)
        self.assertEqual(exchange.statuses(), [200, 200])

    def test_idleStrangersUnderPressure(self) -> None:
        """When places for strangers run short, idle ones keep theirs for less long."""
        limits = HTTPLimits(maxUnauthenticated=2)
        exchange = Exchange(answer, limits=limits)
        other = Exchange(factory=exchange.factory, clock=exchange.clock)
        exchange.send(GET)
        other.send(GET.replace(b"/a", b"/login"))
        exchange.clock.advance(10)
        self.assertTrue(exchange.closed)
        self.assertFalse(other.closed)

    def test_dispatchHasNone(self) -> None:
        """D18: while a dispatch works, no deadline of HTTP's runs."""

        async def never(request: Request) -> Response:
            await Deferred()
            return Response()

        exchange = Exchange(never)
        exchange.send(GET)
        self.assertEqual(exchange.clock.getDelayedCalls(), [])

    def test_closingEnds(self) -> None:
        """
        A peer that neither ends its direction nor takes our bytes after we closed is cut
        off: shortly after our bytes are out, or in a minute.
        """
        exchange = Exchange(answer)
        exchange.send(b"junk\r\n\r\n")
        self.assertTrue(exchange.transport.writeClosed)
        exchange.send(b"more junk" * 1000)
        self.assertFalse(exchange.transport.disconnecting)
        exchange.clock.advance(2)
        self.assertTrue(exchange.transport.disconnecting)
        exchange.clock.advance(60)
        self.assertTrue(exchange.transport.aborted)
        self.assertEqual(len(exchange.answers()), 1)
        other = Exchange(answer)
        other.send(b"junk\r\n\r\n")
        other.protocol.readConnectionLost()
        self.assertTrue(other.transport.disconnecting)


class AdmissionTests(SynchronousTestCase):
    """E5: caps on peers that have not authenticated."""

    def test_perAddress(self) -> None:
        """Above the cap of its address a peer gets 503 at once; other addresses do not."""
        limits = HTTPLimits(maxUnauthenticatedPerAddress=2)
        first = Exchange(answer, limits=limits)
        factory = first.factory
        Exchange(factory=factory)
        third = Exchange(factory=factory)
        status, headers, _ = third.answers()[0]
        self.assertEqual((status, headers[b"retry-after"]), (503, b"1"))
        self.assertTrue(third.closed)
        elsewhere = Exchange(factory=factory, address="192.0.2.2")
        self.assertEqual(elsewhere.written, b"")
        first.lose()
        again = Exchange(factory=factory)
        again.send(GET)
        self.assertEqual(again.statuses(), [200])

    def test_total(self) -> None:
        """Above the cap of all addresses anybody gets 503."""
        limits = HTTPLimits(maxUnauthenticated=2)
        factory = Exchange(answer, limits=limits, address="192.0.2.1").factory
        Exchange(factory=factory, address="192.0.2.2")
        third = Exchange(factory=factory, address="192.0.2.3")
        self.assertEqual(third.statuses(), [503])

    def test_connectionsOfAnAddress(self) -> None:
        """Authenticated or not, one address has so many connections, each until its end."""

        async def dispatch(request: Request) -> Response:
            request.authenticated()
            return Response(200, [], b"x")

        first = Exchange(dispatch, limits=HTTPLimits(maxConnectionsPerAddress=2))
        factory = first.factory
        second = Exchange(factory=factory, clock=first.clock)
        for exchange in (first, second):
            exchange.send(GET)
        third = Exchange(factory=factory, clock=first.clock)
        self.assertEqual(third.statuses(), [503])
        self.assertEqual(factory.admission.refused["connections_per_address"], 1)
        first.lose()
        fourth = Exchange(factory=factory, clock=first.clock)
        fourth.send(GET)
        self.assertEqual(fourth.statuses(), [200])

    def test_newLimits(self) -> None:
        """Other caps hold for who comes after; who has a place keeps it."""
        first = Exchange(answer, limits=HTTPLimits(maxUnauthenticatedPerAddress=1))
        factory = first.factory
        self.assertEqual(Exchange(factory=factory).statuses(), [503])
        factory.setLimits(HTTPLimits(maxUnauthenticatedPerAddress=2, headTimeout=1))
        second = Exchange(factory=factory)
        self.assertEqual(second.written, b"")
        self.assertEqual(Exchange(factory=factory).statuses(), [503])
        factory.setLimits(HTTPLimits(maxUnauthenticated=1))
        for each in (first, second):
            each.send(GET)
            self.assertEqual(each.statuses(), [200])

    def test_authenticated(self) -> None:
        """Who has authenticated takes no place any more, whatever follows."""
        limits = HTTPLimits(maxUnauthenticated=1)
        first = Exchange(answer, limits=limits)
        first.send(GET.replace(b"/a", b"/login"))
        second = Exchange(factory=first.factory)
        second.send(GET)
        self.assertEqual(second.statuses(), [200])
        first.lose()
        second.lose()
        self.assertEqual(first.factory.admission.total, 0)
        self.assertEqual(first.factory.connections, 0)

    def test_turnedAwayAreBounded(self) -> None:
        """Even those being turned away are counted: above a bound they are dropped unheard."""
        limits = HTTPLimits(maxUnauthenticated=2)
        factory = Exchange(answer, limits=limits).factory
        for _ in range(3):
            Exchange(factory=factory)
        self.assertIsNone(factory.buildProtocol(None))

    def test_maxConnections(self) -> None:
        """A factory has so many connections, authenticated, handed over or not."""

        async def dispatch(request: Request) -> HandedOver:
            request.authenticated()
            return request.handOver(Protocol())

        first = Exchange(dispatch, limits=HTTPLimits(maxConnections=1))
        first.send(GET)
        second = Exchange(factory=first.factory)
        self.assertEqual(second.statuses(), [503])
        first.lose()
        third = Exchange(factory=first.factory)
        self.assertEqual(third.written, b"")

    def test_behindAProxy(self) -> None:
        """An address that shows only with the first bytes (PROXY header) is what counts."""
        limits = HTTPLimits(maxUnauthenticatedPerAddress=2)
        factory = HTTPFactory(answer, Clock(), limits)
        exchanges = []
        for number in range(3):
            transport = SocketTransport(peerAddress=IPv4Address("TCP", f"10.0.0.{number}", 1))
            exchange = Exchange(factory=factory, transport=transport)
            transport.peerAddr = IPv4Address("TCP", "198.51.100.7", 1)
            exchange.send(GET)
            exchanges.append(exchange)
        self.assertEqual([each.statuses()[0] for each in exchanges], [200, 200, 503])
        for exchange in exchanges:
            exchange.lose()
        self.assertEqual(factory.admission.total, 0)

    def test_addresses(self) -> None:
        """One IPv6 /64 is one address; unix sockets have none."""
        one = addressKey(IPv6Address("TCP", "2001:db8::1", 1))
        two = addressKey(IPv6Address("TCP", "2001:db8::ffff:1", 1))
        other = addressKey(IPv6Address("TCP", "2001:db8:0:1::1", 1))
        self.assertEqual(one, two)
        self.assertNotEqual(one, other)
        mapped = addressKey(IPv6Address("TCP", "::ffff:192.0.2.1", 1))
        self.assertEqual(mapped, addressKey(IPv4Address("TCP", "192.0.2.1", 1)))
        self.assertEqual(addressKey(UNIXAddress("/run/x")), "")
        self.assertEqual(
            addressKey(IPv6Address("TCP", "fe80::1%eth0", 1)),
            addressKey(IPv6Address("TCP", "fe80::2", 1)),
        )

    def test_nothingIsLeft(self) -> None:
        """The table of addresses shrinks with its connections."""
        admission = Admission(HTTPLimits())
        for _ in range(2):
            self.assertTrue(admission.admit("a"))
        admission.release("a")
        admission.release("a")
        self.assertEqual((admission.total, admission._perAddress), (0, {}))


class StopTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.finish: Deferred[None] = Deferred()

    async def slow(self, request: Request) -> Response:
        if request.path == "/a":
            await self.finish
        return Response(200, [], b"done")

    def test_graceful(self) -> None:
        """Idle connections close, running requests finish, then stop fires."""
        busy = Exchange(self.slow)
        idle = Exchange(factory=busy.factory, clock=busy.clock)
        busy.send(GET)
        stopped = busy.factory.stop(30)
        self.assertTrue(idle.closed)
        self.assertFalse(busy.closed)
        self.assertIsNone(busy.factory.buildProtocol(None))
        idle.lose()
        self.finish.callback(None)
        self.assertEqual(busy.answers()[0][1][b"connection"], b"close")
        self.assertNoResult(stopped)
        busy.lose()
        self.successResultOf(stopped)
        self.assertEqual(busy.clock.getDelayedCalls(), [])
        self.successResultOf(busy.factory.stop(30))

    def test_deadline(self) -> None:
        """G2: what still runs at the deadline is cut off."""
        busy = Exchange(self.slow)
        busy.send(GET)
        stopped = busy.factory.stop(30)
        busy.clock.advance(30)
        self.assertTrue(busy.transport.aborted)
        busy.lose(clean=False)
        self.successResultOf(stopped)

    def test_handedOverIsNotWaitedFor(self) -> None:
        """Connections with a successor are that one's business."""

        async def dispatch(request: Request) -> HandedOver:
            return request.handOver(Protocol())

        exchange = Exchange(dispatch)
        exchange.send(GET)
        self.successResultOf(exchange.factory.stop(30))
        self.assertFalse(exchange.closed)


class AccessLogTests(SynchronousTestCase):
    def test_oneLine(self) -> None:
        """F1: one line per request, with its path but never its query or its fields."""
        events: list[dict[str, object]] = []
        clock = Clock()

        async def dispatch(request: Request) -> Response:
            clock.advance(0.25)
            return Response(204)

        log = Logger(observer=events.append)  # type: ignore[arg-type]
        factory = HTTPFactory(dispatch, clock, log=log)
        exchange = Exchange(factory=factory, clock=clock)
        exchange.send(
            b"GET /api/v1/revdial?revdial.req=hush HTTP/1.1\r\nHost: a\r\nX-Request-Id: r1\r\n"
            b"Authorization: Bearer hush\r\n\r\n"
        )
        exchange.send(b"junk hush\r\n")
        self.assertEqual(
            formatEvent(events[0]),
            "192.0.2.1 GET /api/v1/revdial 204 250 ms r1",
        )
        self.assertEqual(len(events), 2)
        self.assertIn("refused 400", formatEvent(events[1]))
        self.assertNotIn("hush", repr(events))

    def test_aborted(self) -> None:
        """A request whose connection was lost is logged, once."""
        events: list[dict[str, object]] = []

        async def never(request: Request) -> Response:
            await Deferred()
            return Response()

        log = Logger(observer=events.append)  # type: ignore[arg-type]
        exchange = Exchange(factory=HTTPFactory(never, Clock(), log=log))
        exchange.send(GET)
        exchange.lose()
        self.assertEqual([event["status"] for event in events], ["aborted"])
