"""The server's parked connections, in memory: whose they are, and how a dial goes by them."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.testing import StringTransport

from helix_revdial.revdial.errors import DialTimeout, NotAllowed, TargetRefused
from helix_revdial.revdial.features import ALL, POOL, TICKETS
from helix_revdial.revdial.framed import FramedConnection
from helix_revdial.revdial.frames import frame
from helix_revdial.revdial.messages import Connected, Park, PickupFailed, encode
from helix_revdial.revdial.pool import RACE
from tests.revdial.callers import Agent, ConnectionsCase


class Transport(StringTransport):
    """Notes an abort; its producer may be given back twice, as with Twisted's own."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True

    def unregisterProducer(self) -> None:
        self.producer = None


class PoolTests(ConnectionsCase):
    def agentOf(self, features: frozenset[str] = ALL) -> Agent:
        return Agent(self.connections, self.successResultOf(self.registering(features=features)))

    def tickets(self, agent: Agent) -> list[str]:
        """What the agent was asked to park."""
        agent.read()
        found = [one.ticket for one in agent.other if isinstance(one, Park)]
        agent.other.clear()
        return found

    def park(self, ticket: str, credential: str = "family:a") -> FramedConnection | None:
        connection = self.connections.park(credential, ticket, webSocket=False, head=lambda _: b"")
        if connection is not None:
            connection.makeConnection(Transport())
        return connection

    def parked(self, agent: Agent) -> list[Any]:
        """Dial once, the old way, and park what is asked for."""
        self.dial()
        [ready] = agent.read()
        agent.carry(ready)
        return [self.park(ticket) for ticket in self.tickets(agent)]

    def line(self, connection: Any, message: Any) -> None:
        connection.dataReceived(frame(encode(message), None))

    def wire(self, connection: Any) -> Transport:
        return cast(Transport, connection.transport)

    def test_notWithoutAgreement(self) -> None:
        """An agent that did not agree on all that it takes is asked for no connection."""
        for missing in (POOL, TICKETS):
            agent = self.agentOf(ALL - {missing})
            self.dial()
            self.assertEqual(self.tickets(agent), [])

    def test_ticket(self) -> None:
        """A ticket is good once, and for the credential that registered the runner."""
        agent = self.agentOf()
        self.dial()
        ticket, *_ = self.tickets(agent)
        self.assertRaises(NotAllowed, self.park, ticket, "family:b")
        self.assertIsNotNone(self.park(ticket))
        self.assertIsNone(self.park(ticket))
        self.assertIsNone(self.park("unheard-of"))

    def test_assigned(self) -> None:
        """A dial is written on a parked connection, not on the control connection."""
        agent = self.agentOf()
        *_, connection = self.parked(agent)
        dialled = self.dial()
        self.assertEqual(agent.read(), [])
        [call] = [one for one in self.connections.living() if one.outcome is None]
        self.assertIn(b'"command":"dial"', self.wire(connection).value())
        self.line(connection, Connected(call.dial.id, 0.5))
        self.successResultOf(dialled)
        self.assertTrue(call.stream.pooled)
        self.assertEqual(call.stream.phases["target"], 0.5)

    def test_refused(self) -> None:
        """The target's refusal is the caller's error, and the connection goes on."""
        agent = self.agentOf()
        *_, connection = self.parked(agent)
        dialled = self.dial()
        [call] = [one for one in self.connections.living() if one.outcome is None]
        self.line(connection, PickupFailed("", "no", call.dial.id, "target-refused"))
        self.failureResultOf(dialled, TargetRefused)
        connection.dataReceived(frame(b"", None))
        self.assertEqual(self.connections.sizes()["parked"], 2)

    def test_lost(self) -> None:
        """B6: a dial whose connection is lost takes another, and then a dial-back."""
        agent = self.agentOf()
        self.parked(agent)
        dialled = self.dial()
        for _ in range(2):
            [used] = [one.connection for one in self.connections._pool._assigned.values()]
            self.assertEqual(agent.read(), [])
            used.readConnectionLost()
            used.connectionLost()
        [ready] = agent.read()
        agent.carry(ready)
        self.successResultOf(dialled)
        self.assertEqual(self.connections.poolEvents()["failed-over"], 2)

    def test_silence(self) -> None:
        """Without an answer the dial is asked for as well; the first answer counts."""
        agent = self.agentOf()
        *_, connection = self.parked(agent)
        dialled = self.dial()
        self.clock.advance(RACE)
        [ready] = agent.read()
        agent.carry(ready)
        self.successResultOf(dialled)
        self.assertTrue(self.wire(connection).aborted)

    def test_cancelled(self) -> None:
        """A caller who gives up takes the connection with him: the agent may have begun."""
        agent = self.agentOf()
        *_, connection = self.parked(agent)
        dialled = self.dial()
        dialled.cancel()
        self.failureResultOf(dialled)
        self.assertTrue(self.wire(connection).aborted)

    def test_timedOut(self) -> None:
        """A dial that nobody answers fails when its time is up."""
        agent = self.agentOf()
        *_, connection = self.parked(agent)
        dialled = self.dial(timeout=3.0)
        for _ in range(4):
            self.clock.advance(1)
        self.failureResultOf(dialled, DialTimeout)
        self.assertTrue(self.wire(connection).aborted)

    def test_wrongAnswers(self) -> None:
        """An agent that answers what it was not asked loses the connection, the caller nothing."""
        for said in (Connected("another", 0.1), Park("x"), PickupFailed("", "", "another")):
            agent = self.agentOf()
            *_, connection = self.parked(agent)
            dialled = self.dial()
            self.line(connection, said)
            self.assertTrue(self.wire(connection).disconnecting)
            connection.connectionLost()
            self.assertNoResult(dialled)
            dialled.cancel()
            self.failureResultOf(dialled)

    def test_bytesWhileParked(self) -> None:
        """Bytes on a connection that is parked break the protocol."""
        *_, connection = self.parked(self.agentOf())
        connection.dataReceived(frame(b"x", None))
        self.assertTrue(self.wire(connection).disconnecting)
