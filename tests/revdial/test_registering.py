"""Tests for L{helix_revdial.revdial.registering}: takeover and grace."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from helix_revdial.revdial.connections import Connections, GraceEntry
from helix_revdial.revdial.errors import (
    HeldByAnother,
    NotConnected,
    ReconnectTimeout,
    TunnelBroke,
    UnknownDial,
)
from helix_revdial.revdial.messages import (
    Closing,
    Goodbye,
)
from tests.revdial.callers import ConnectionsCase
from tests.revdial.carriers import MemoryCarrier


class TakeoverTests(ConnectionsCase):
    def test_takeoverWhileHalfOpen(self) -> None:
        """A1: the same owner takes over at once; the older connection is closed."""
        older = self.agent()
        older.carrier.stuck = True
        older.read()
        newer = self.agent()
        self.assertEqual(self.events(), ["takeover"])
        older.read()
        self.assertEqual(older.other[-1], Closing("superseded", 60.0))
        self.assertEqual(older.carrier.closedWith, (4000, "superseded"))
        connecting = self.dial()
        [ready] = newer.read()
        newer.carry(ready)
        self.successResultOf(connecting)
        self.clock.advance(5)
        self.assertTrue(older.carrier.aborted, "bug 2: replaced tunnels are closed")

    def test_theOldConnectionsEndTouchesOnlyItself(self) -> None:
        """A2, bug 1: what ends after its successor came ends nothing else."""
        older = self.agent()
        older.carrier.stuck = True
        newer = self.agent()
        older.carrier.lose()
        self.assertEqual(self.connections.status("wolf-1"), "connected")
        self.assertEqual(self.connections.details()[0].generation, newer.registration.generation)
        older.registration.abandon()
        self.assertEqual(self.connections.status("wolf-1"), "connected")

    def test_threeGenerationsInFlight(self) -> None:
        """A3: one winner, and nothing of the others."""
        agents = [self.agent() for _ in range(2)]
        self.clock.advance(61)
        agents.append(self.agent())
        self.assertEqual([a.carrier.ended for a in agents], [True, True, False])
        self.assertEqual(self.connections.stats().activeConnections, 1)
        self.assertEqual(len(self.connections._registrations), 1)

    def test_anotherOwnerIsRefused(self) -> None:
        """A4: 409 and an audit entry, during grace too; the live agent is undisturbed."""
        agent = self.agent()
        self.failureResultOf(self.registering(owner="family:b"), HeldByAnother)
        self.assertFalse(agent.carrier.ended)
        agent.carrier.lose()
        error = self.failureResultOf(self.registering(owner="family:b"), HeldByAnother)
        self.assertEqual(error.value.retryAfter, 30.0)
        self.assertEqual(self.events(), ["claim-refused", "claim-refused"])
        self.clock.advance(30)
        self.successResultOf(self.registering(owner="family:b"))

    def test_twoClones(self) -> None:
        """A5: the third takeover in a minute is probed; the one that answers stays."""
        self.agent()
        self.agent()
        holder = self.agent()
        holder.echo()
        third = self.registering()
        self.assertNoResult(third)
        holder.echo()
        error = self.failureResultOf(third, HeldByAnother)
        self.assertIsNotNone(error.value.retryAfter)
        self.assertEqual(self.events(), ["takeover", "takeover", "clone-refused"])
        self.assertFalse(holder.carrier.ended)

    def test_aCloneThatIsDead(self) -> None:
        """A8: an agent that restarts over and over is let in when its older self is silent."""
        for _ in range(3):
            self.agent()
        again = self.registering()
        self.assertNoResult(again)
        self.clock.advance(3)
        self.successResultOf(again)
        self.assertEqual(len(self.connections._registrations), 1)

    def test_restartsInOneSecond(self) -> None:
        """A8: fifty restarts whose older connections ended leave one entry."""
        for _ in range(50):
            agent = self.agent()
            agent.carrier.lose()
            self.clock.advance(0.02)
        self.assertEqual(self.connections.stats().gracePeriodEntries, 1)
        self.assertEqual(self.connections._registrations, {})
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_twoRegistrationsRace(self) -> None:
        """The later generation wins, whichever is claimed first."""
        waits: list[Deferred[int]] = [Deferred(), Deferred()]
        numbers = iter(waits)

        async def slow() -> int:
            return await next(numbers)

        self.connections = Connections(self.clock, slow, wallClock=lambda: 0.0)
        first, second = self.registering(), self.registering()
        waits[1].callback(2)
        winner = self.successResultOf(second)
        waits[0].callback(1)
        self.failureResultOf(first, HeldByAnother)
        detail = self.connections.detail("wolf-1")
        assert detail is not None
        self.assertEqual(detail.generation, winner.generation)

    def test_abandon(self) -> None:
        """A hand-over that fails leaves the name in grace, like a lost connection."""
        registration = self.successResultOf(self.registering())
        registration.abandon()
        self.assertEqual(self.connections.status("wolf-1"), "grace")
        self.assertEqual(self.connections._registrations, {})

    def test_agentsGoodbye(self) -> None:
        """An agent that says goodbye has no grace, and what waits fails."""
        agent = self.agent()
        waiting = self.dial()
        agent.say(Goodbye())
        self.failureResultOf(waiting, NotConnected)
        self.assertIsNone(self.connections.status("wolf-1"))
        self.assertEqual(self.gone, [("wolf-1", 1)])
        self.assertTrue(agent.carrier.ended)


class GraceTests(ConnectionsCase):
    def test_dialsWaitAndAreAsked(self) -> None:
        """A dial in grace waits, and is asked when the agent is back."""
        agent = self.agent()
        agent.carrier.lose()
        connecting = self.dial()
        self.clock.advance(2)
        back = self.agent()
        [ready] = back.read()
        back.carry(ready)
        protocol = self.successResultOf(connecting)
        self.assertEqual(protocol.transport.stream.phases["asked"], 2.0)
        self.assertEqual(protocol.transport.stream.generation, 2)

    def test_aDialUnderWayIsAskedAgain(self) -> None:
        """Bug 5: the control connection dies, nothing was exchanged: asked on return."""
        agent = self.agent()
        connecting = self.dial()
        [old] = agent.read()
        agent.carrier.lose()
        self.assertNoResult(connecting)
        self.assertRaises(UnknownDial, agent.pickUp, old)
        back = self.agent()
        [ready] = back.read()
        self.assertEqual(ready.dial, old.dial)
        self.assertNotEqual(ready.ticket, old.ticket)
        self.assertRaises(UnknownDial, agent.pickUp, old)
        back.carry(ready)
        self.successResultOf(connecting)

    def test_aPickUpUnderWayGoesOn(self) -> None:
        """A dial that was picked up does not need the control connection any more."""
        agent = self.agent()
        connecting = self.dial()
        [ready] = agent.read()
        pickUp = agent.pickUp(ready)
        agent.carrier.lose()
        MemoryCarrier().connect(pickUp.protocol)
        self.successResultOf(connecting)

    def test_agentClosesWithPickUpsInFlight(self) -> None:
        """C7: all callers are told, none twice, nothing is left."""
        agent = self.agent()
        dials = [self.dial() for _ in range(20)]
        asks = agent.read()
        picked = [agent.pickUp(ready) for ready in asks[:10]]
        agent.carrier.lose()
        for pickUp in picked:
            pickUp.failed(Failure(ConnectionLost()))
        for connecting in dials[:10]:
            self.failureResultOf(connecting, TunnelBroke)
        self.clock.advance(30)
        for connecting in dials[10:]:
            self.failureResultOf(connecting, ReconnectTimeout)
        self.nothingLeft()

    def test_graceEnds(self) -> None:
        """The name is free after 30 s, and what waited is told why."""
        agent = self.agent()
        agent.carrier.lose()
        connecting = self.dial()
        self.clock.advance(20)
        self.assertEqual(self.connections.graceEntries(), [GraceEntry("wolf-1", 1, 10.0, 1)])
        self.clock.advance(10)
        error = self.failureResultOf(connecting, ReconnectTimeout)
        self.assertEqual(str(error.value), "reconnect timeout")
        self.assertEqual(self.gone, [("wolf-1", 1)])
        self.failureResultOf(self.dial(), NotConnected)
        self.nothingLeft()

    def test_streamsOutliveTheControlConnection(self) -> None:
        """Joined streams are judged on their own."""
        agent = self.agent()
        connecting = self.dial()
        [ready] = agent.read()
        carrier = agent.carry(ready)
        protocol = self.successResultOf(connecting)
        agent.carrier.lose()
        self.clock.advance(31)
        carrier.deliver(b"still")
        self.assertEqual(protocol.received, b"still")
        self.assertFalse(carrier.ended)
