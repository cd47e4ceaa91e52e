"""Tests for L{helix_revdial.revdial.views}."""

from __future__ import annotations

from twisted.internet.interfaces import IProtocol

from helix_revdial.revdial.errors import (
    NotAllowed,
)
from helix_revdial.revdial.features import ECHO, TARGETS, TICKETS
from tests.revdial.callers import ConnectionsCase


class ViewTests(ConnectionsCase):
    def test_stats(self) -> None:
        """The four counts of the admin status."""
        self.agent(key="wolf-2")
        self.agent(key="wolf-1")
        self.agent(key="wolf-3").carrier.lose()
        self.dial("wolf-1").addErrback(lambda _: None)
        stats = self.connections.stats()
        self.assertEqual(
            (stats.activeConnections, stats.gracePeriodEntries, stats.pendingDialsTotal),
            (2, 1, 1),
        )
        self.assertEqual(stats.connections, ["wolf-1", "wolf-2"])

    def test_detail(self) -> None:
        """All of one connection, with the bytes of open and ended streams."""
        agent = self.agent(features=frozenset({ECHO, TICKETS, TARGETS}))
        self.clock.advance(0.5)
        agent.echo()
        carriers = []
        for _ in range(2):
            connecting = self.dial()
            [ready] = agent.read()
            carriers.append(agent.carry(ready))
            protocol: IProtocol = self.successResultOf(connecting)
            carriers[-1].deliver(b"12345")
            protocol.transport.write(b"123")  # type: ignore[attr-defined]
        carriers[0].lose()
        self.dial().addErrback(lambda _: None)
        self.clock.advance(2)
        detail = self.connections.detail("wolf-1")
        assert detail is not None
        self.assertEqual(detail.carrier, "raw")
        self.assertEqual(detail.remoteAddress, "192.0.2.1:5")
        self.assertEqual(detail.connectedSince, 1_000_000.0)
        self.assertEqual(detail.lastHeard, 2.0)
        self.assertEqual(detail.roundTrip, 0.5)
        self.assertEqual((detail.openStreams, detail.pendingDials), (1, 1))
        self.assertEqual((detail.bytesIn, detail.bytesOut), (10, 6))
        self.assertEqual(self.connections.details(), [detail])
        self.assertIsNone(self.connections.detail("wolf-2"))

    def test_noSecretInTheAudit(self) -> None:
        """F1: the audit log has no ticket and no id of a dial that works."""
        agent = self.agent()
        self.dial().addErrback(lambda _: None)
        [ready] = agent.read()
        self.assertRaises(NotAllowed, agent.pickUp, ready, "family:b")
        assert ready.ticket is not None
        self.assertNotIn(ready.ticket, repr(self.audited))
        self.assertEqual(self.audited[0][1]["word"], "not-allowed")
