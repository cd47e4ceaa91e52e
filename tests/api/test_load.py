"""Limits over everything: reached, refused clearly, counted, and over when they are over."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.api.load import Load
from helix_revdial.config import LimitsSection, ServerConfig
from helix_revdial.http.factory import HTTPFactory
from helix_revdial.http.problem import Problem
from helix_revdial.revdial.descriptors import COUNT_EVERY, Descriptors
from helix_revdial.revdial.errors import TooManyPendingDials
from helix_revdial.revdial.overload import Overload, OverloadLimits
from tests.api.harness import Answer, Server, Wire, parse, request
from tests.api.test_tunnel import rawUpgrade
from tests.http.exchange import makeRequest

GONE = Failure(ConnectionDone())


class LimitedCase(SynchronousTestCase):
    def limited(self, **limits: Any) -> Server:
        """A server with these limits."""
        server = Server(ServerConfig(limits=LimitsSection(**limits)))
        self.counted: list[str] = []
        server.load._count = self.counted.append
        return server

    def register(self, server: Server, number: int, token: str) -> tuple[Any, Wire]:
        protocol, wire = server.connect()
        protocol.dataReceived(rawUpgrade(f"/api/v1/revdial?runnerid=wolf-{number}", token))
        return protocol, wire

    def busy(self, wire: Wire) -> Answer:
        answer = parse(wire.value())
        self.assertEqual((answer.status, answer.json()["code"]), (503, "busy"), answer.raw)
        self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)
        return answer


class HandshakeTests(LimitedCase):
    def test_tooManyAtOnce(self) -> None:
        """E1: one more is told when to come back, each later than the one before."""
        server = self.limited(handshakesPerSecond=0.5, handshakeBurst=3)
        token = server.runner()
        for number in range(3):
            self.assertIn(b" 101 ", self.register(server, number, token)[1].value()[:20])
        told = [
            int(self.busy(self.register(server, number, token)[1]).headers["retry-after"])
            for number in range(3, 6)
        ]
        self.assertEqual(told, [4, 6, 8])
        self.assertEqual(self.counted, ["handshakes"] * 3)
        self.assertEqual(server.connections.stats().activeConnections, 3)
        server.clock.advance(2)
        self.assertIn(b" 101 ", self.register(server, 6, token)[1].value()[:20])

    def test_anOldAgentWaits(self) -> None:
        """Its request is answered when its turn has come; one that hangs up leaves nothing."""
        server = self.limited(handshakesPerSecond=0.5, handshakeBurst=1)
        token = server.runner()
        self.register(server, 0, token)
        waiting, gone = [self.old(server, number, token) for number in (1, 2)]
        self.assertEqual(waiting[1].value(), b"")
        self.assertEqual(server.load.handshakes.waiting, 2)
        gone[0].connectionLost(GONE)
        self.assertEqual(server.load.handshakes.waiting, 1)
        server.clock.advance(2.01)
        self.assertTrue(waiting[1].value().startswith(b"HTTP/1.1 200 OK\r\n"))

    def old(self, server: Server, number: int, token: str) -> tuple[Any, Wire]:
        protocol, wire = server.connect()
        protocol.dataReceived(
            request(
                "GET",
                f"/api/v1/revdial?runnerid=wolf-{number}",
                token,
                headers={"Connection": "Upgrade"},
            )
        )
        return protocol, wire

    def test_strangersUseNothingUp(self) -> None:
        """Whoever has no token is refused before, and takes nobody's place."""
        server = self.limited(handshakesPerSecond=0.5, handshakeBurst=1)
        for _ in range(10):
            _, wire = self.register(server, 0, "hlx_nobody")
            self.assertEqual(parse(wire.value()).status, 401)
        _, wire = self.register(server, 0, server.runner())
        self.assertIn(b" 101 ", wire.value()[:20])


class TenantTests(LimitedCase):
    def test_tooManyTunnels(self) -> None:
        """E7: a tenant has so many, and its own end makes room."""
        server = self.limited(connectionsPerTenant=2)
        token = server.runner()
        first, _ = self.register(server, 0, token)
        self.register(server, 1, token)
        answer = self.busy(self.register(server, 2, token)[1])
        self.assertIn("connections_per_tenant", answer.detail)
        self.assertEqual(self.counted, ["connections_per_tenant"])
        first.connectionLost(GONE)
        self.assertEqual(server.load.tenants.held("default"), 1)
        self.assertIn(b" 101 ", self.register(server, 2, token)[1].value()[:20])


class DescriptorTests(LimitedCase):
    """E8: what is let go first when descriptors run out."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.open = 10
        self.factory = HTTPFactory(self.never, self.clock)
        self.counted = []
        self.load = Load(
            self.clock,
            LimitsSection(),
            factory=self.factory,
            count=self.counted.append,
            descriptors=Descriptors(
                self.clock, lambda: 0, limit=100, reserve=20, count=lambda: self.open
            ),
        )

    async def never(self, request: Any) -> Any:
        raise AssertionError("nobody asks here")

    def shed(self, path: str) -> bool:
        try:
            self.load.shed(makeRequest(target=path))
        except Problem as problem:
            self.assertEqual((problem.status, problem.code), (503, "busy"))
            self.assertIn((b"Connection", b"close"), problem.headers)
            return True
        return False

    def test_whatMattersStays(self) -> None:
        """Agents, health and administration are served to the last; the rest is not."""
        paths = {
            "/api/v1/revdial": False,
            "/healthz": False,
            "/readyz": False,
            "/api/v1/admin/revdial/status": False,
            "/api/v1/sessions": True,
            "/api/v1/external-agents/ses_1/screenshot": True,
        }
        for path in paths:
            self.assertFalse(self.shed(path), path)
        self.open = 80
        self.clock.advance(COUNT_EVERY)
        for path, shed in paths.items():
            self.assertEqual(self.shed(path), shed, path)
        self.assertEqual(self.counted, ["descriptors"] * 2)

    def test_streamsAreRefused(self) -> None:
        """A dial fails at once, and says why."""
        self.open = 80
        error = self.assertRaises(TooManyPendingDials, self.load.overload.check, 0)
        self.assertIn("descriptors", str(error))
        self.assertEqual(self.load.hit.counts, {"descriptors": 1})


class ReloadTests(LimitedCase):
    def test_otherLimits(self) -> None:
        """They hold for who comes next."""
        server = self.limited(connectionsPerTenant=1, handshakesPerSecond=0.1, handshakeBurst=1)
        token = server.runner()
        self.register(server, 0, token)
        server.load.setLimits(
            LimitsSection(connectionsPerTenant=2, handshakesPerSecond=1000, handshakeBurst=5)
        )
        server.clock.advance(0.1)
        self.assertIn(b" 101 ", self.register(server, 1, token)[1].value()[:20])


class StreamTests(LimitedCase):
    def test_dialsInAll(self) -> None:
        """As many as may be under way over all runners, and a clear word beyond."""
        server = self.limited()
        server.connections._overload = Overload(server.clock, OverloadLimits(dials=2))
        token = server.runner()
        for number in range(3):
            self.register(server, number, token)

        def dial(number: int) -> Any:
            endpoint = server.connections.endpoint(f"wolf-{number}")
            return endpoint.connect(Factory.forProtocol(Protocol))

        waiting = [dial(0), dial(1)]
        error = self.failureResultOf(dial(2), TooManyPendingDials).value
        self.assertEqual(error.limit, "dials")
        self.assertEqual(server.connections.dialsUnderWay, 2)
        waiting[0].cancel()
        self.failureResultOf(waiting[0])
        self.assertNoResult(dial(2))
        for each in waiting[1:]:
            each.addErrback(lambda _: None)


class WriteTests(LimitedCase):
    def test_nothingWaitsForAPeerThatDoesNotRead(self) -> None:
        """
        E6: a takeover writes to the holder of the name, who does not read; the newcomer's
        registration, and everybody else's, are done in the same turn.
        """
        server = self.limited()
        token = server.runner()
        _, holder = self.register(server, 0, token)
        assert holder.producer is not None
        holder.producer.pauseProducing()
        _, wire = self.register(server, 0, token)
        self.assertIn(b" 101 ", wire.value()[:20])
        self.assertIn(b'"keep-alive"', wire.value())
        _, other = self.register(server, 1, token)
        self.assertIn(b" 101 ", other.value()[:20])
        self.assertEqual(server.connections.stats().connections, ["wolf-0", "wolf-1"])
