"""
Tests for L{helix_revdial.revdial.connections}, L{helix_revdial.revdial.pickups}
and L{helix_revdial.revdial.endpoints}.
"""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.connections import Connections, GraceEntry, Registration
from helix_revdial.revdial.departure import CLOSE_LIMIT, LEAVE_AFTER
from helix_revdial.revdial.errors import (
    DialTimeout,
    HeldByAnother,
    NotAllowed,
    NotConnected,
    ReconnectTimeout,
    TargetRefused,
    TargetTimeout,
    TooManyPendingDials,
    TunnelBroke,
    UnknownDial,
)
from helix_revdial.revdial.features import ALL, ECHO, TARGETS, TICKETS
from helix_revdial.revdial.messages import (
    Closing,
    ConnReady,
    Echo,
    Goodbye,
    KeepAlive,
    PickupFailed,
    dialIds,
    encode,
)
from helix_revdial.revdial.pickups import Call, PickUp
from helix_revdial.revdial.streams import RunnerAddress
from tests.revdial.carriers import MemoryCarrier


class Caller(Protocol):
    """A caller's protocol that writes down what it hears."""

    def __init__(self) -> None:
        self.received = b""
        self.losses: list[Failure] = []

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        self.losses.append(reason)


class Callers(Factory):
    """Counts its starts and stops."""

    noisy = False

    def __init__(self) -> None:
        self.starts = 0
        self.stops = 0
        self.addresses: list[Any] = []

    def doStart(self) -> None:
        self.starts += 1

    def doStop(self) -> None:
        self.stops += 1

    def buildProtocol(self, addr: Any) -> Caller:
        self.addresses.append(addr)
        return Caller()


class Agent:
    """An agent on a memory carrier: what it was asked, and its answers."""

    def __init__(self, connections: Connections, registration: Registration, **carrier: Any):
        self.connections = connections
        self.registration = registration
        self.carrier = MemoryCarrier(**carrier).connect(registration.protocol)
        self.other: list[Any] = []
        self.asks: list[ConnReady] = []

    def read(self) -> list[ConnReady]:
        """The new asks; other messages go to C{other}."""
        new: list[ConnReady] = []
        for message in self.carrier.messages():
            if isinstance(message, ConnReady):
                new.append(message)
            else:
                self.other.append(message)
        self.asks.extend(new)
        return new

    def pickUp(self, ready: ConnReady, credential: str = "family:a") -> PickUp:
        dialer, request = dialIds(ready.connPath)
        return self.connections.pickUp(
            credential, ticket=ready.ticket, dialer=dialer, request=request
        )

    def carry(self, ready: ConnReady) -> MemoryCarrier:
        """Pick up and connect the data carrier."""
        return MemoryCarrier().connect(self.pickUp(ready).protocol)

    def say(self, message: Any) -> None:
        self.carrier.deliver(encode(message))

    def echo(self) -> None:
        """Answer what asks for an echo."""
        self.read()
        for message in self.other:
            if isinstance(message, KeepAlive) and message.echo is not None:
                self.say(Echo(message.echo))
        self.other.clear()


class ConnectionsCase(SynchronousTestCase):
    """Connections with a clock, generations that count, and an audit log."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.generation = 0
        self.audited: list[tuple[str, dict[str, Any]]] = []
        self.gone: list[tuple[str, int]] = []
        self.over: list[Call] = []
        self.connections = self.make()

    def make(self, **options: Any) -> Connections:
        return Connections(
            self.clock,
            self.nextGeneration,
            wallClock=lambda: 1_000_000.0 + self.clock.seconds(),
            audit=lambda event, fields: self.audited.append((event, fields)),
            onGone=lambda key, generation: self.gone.append((key, generation)),
            onEnded=self.over.append,
            **options,
        )

    async def nextGeneration(self) -> int:
        self.generation += 1
        return self.generation

    def registering(
        self,
        key: str = "wolf-1",
        owner: str = "family:a",
        credential: str = "family:a",
        features: frozenset[str] = ALL,
        offered: bool = True,
    ) -> Deferred[Registration]:
        return Deferred.fromCoroutine(
            self.connections.register(
                key, owner, credential, features=features, offered=offered, peer="192.0.2.1:5"
            )
        )

    def agent(self, carrier: str = "raw", **options: Any) -> Agent:
        registration = self.successResultOf(self.registering(**options))
        return Agent(self.connections, registration, carrier=carrier)

    def dial(self, key: str = "wolf-1", target: str | None = None, **options: Any) -> Any:
        self.factory = Callers()
        return self.connections.endpoint(key, target, **options).connect(self.factory)

    def events(self) -> list[str]:
        return [event for event, _ in self.audited]

    def nothingLeft(self) -> None:
        """No timer, no call, no stream; every factory that started has stopped."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.connections._calls, {})
        self.assertEqual(self.connections._streams, {})


class DialTests(ConnectionsCase):
    def test_aDialBecomesAStream(self) -> None:
        """Ask, pick up, carry: the caller's protocol has the agent's bytes."""
        agent = self.agent()
        connecting = self.dial(target="api")
        self.clock.advance(0.5)
        [ready] = agent.read()
        self.assertEqual(ready.target, "api")
        self.clock.advance(0.5)
        pickUp = self.connections.pickUp(
            "family:a", ticket=ready.ticket, timing=b"target=0.012, other=1"
        )
        self.assertEqual(pickUp.features, ALL)
        self.assertNoResult(connecting)
        carrier = MemoryCarrier().connect(pickUp.protocol)
        protocol = self.successResultOf(connecting)
        self.assertIsInstance(protocol, Caller)
        self.assertEqual(self.factory.addresses, [RunnerAddress("wolf-1", "api")])
        self.clock.advance(0.5)
        protocol.transport.write(b"hello")
        self.clock.advance(0.5)
        carrier.deliver(b"world")
        self.assertEqual(carrier.value(), b"hello")
        self.assertEqual(protocol.received, b"world")

        stream = protocol.transport.stream
        self.assertEqual(stream.id, ready.dial)
        self.assertEqual((stream.runner, stream.target), ("wolf-1", "api"))
        protocol.transport.loseConnection()
        self.assertEqual(len(protocol.losses), 1)
        self.assertEqual(
            stream.phases,
            {
                "asked": 0.0,
                "target": 0.012,
                "dialBack": 1.0,
                "firstByteOut": 1.5,
                "firstByteIn": 2.0,
                "ended": 2.0,
            },
        )
        self.assertEqual((stream.bytesIn, stream.bytesOut, stream.reason), (5, 5, "closed"))
        self.assertEqual((self.factory.starts, self.factory.stops), (1, 1))
        self.assertEqual([call.stream for call in self.over], [stream])

    def test_theOldWire(self) -> None:
        """An agent without features is asked with ids in the path, and carries its token."""
        agent = self.agent("hijack", features=frozenset(), offered=False)
        connecting = self.dial()
        [ready] = agent.read()
        self.assertIsNone(ready.ticket)
        self.assertIsNone(ready.dial)
        agent.carry(ready)
        self.successResultOf(connecting)

    def test_aHundredDialsInAnyOrder(self) -> None:
        """C2: 100 concurrent dials with shuffled arrivals each get their own."""
        agent = self.agent()
        dials = {}
        for _ in range(100):
            connecting = self.dial()
            [ready] = agent.read()
            dials[ready.dial] = (ready, connecting)
        arrivals = list(dials.values())
        random.Random(2).shuffle(arrivals)
        for ready, _ in arrivals:
            agent.carry(ready).deliver(str(ready.dial).encode())
        for dial, (_, connecting) in dials.items():
            self.assertEqual(self.successResultOf(connecting).received, str(dial).encode())

    def test_noConnection(self) -> None:
        """Nobody there and nobody awaited is said at once."""
        error = self.failureResultOf(self.dial(), NotConnected)
        self.assertEqual(str(error.value), "no connection")
        self.assertEqual((self.factory.starts, self.factory.stops), (0, 0))
        self.nothingLeft()

    def test_dialTimeoutFailsOneDialOnly(self) -> None:
        """C9: a dial that nobody answers ends in its own time; others go on."""
        agent = self.agent()
        slow = self.dial()
        agent.read()
        self.clock.advance(15)
        other = self.dial()
        [ready] = agent.read()
        self.clock.advance(5)
        self.failureResultOf(slow, DialTimeout)
        self.assertNoResult(other)
        agent.carry(ready)
        self.successResultOf(other)

    def test_theCallersOwnTimeout(self) -> None:
        """A shorter limit of the caller's counts."""
        self.agent()
        connecting = self.dial(timeout=2.0)
        self.clock.advance(2.0)
        self.failureResultOf(connecting, DialTimeout)

    def test_lateDialBackIsUnknown(self) -> None:
        """C1, C4: what comes for a dial whose time was up gets 404 and no stream."""
        agent = self.agent()
        slow = self.dial(timeout=2.0)
        [late] = agent.read()
        self.clock.advance(2.0)
        self.failureResultOf(slow, DialTimeout)
        waiting = self.dial()
        self.assertRaises(UnknownDial, agent.pickUp, late)
        self.assertNoResult(waiting)
        self.assertIn("pickup-refused", self.events())

    def test_lateDialBackIsClosedNeverGivenToTheNextCaller(self) -> None:
        """C1: cancelled between pick-up and carrier, the carrier is closed."""
        agent = self.agent()
        cancelled = self.dial()
        factory = self.factory
        [ready] = agent.read()
        pickUp = agent.pickUp(ready)
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        waiting = self.dial()
        carrier = MemoryCarrier().connect(pickUp.protocol)
        self.assertTrue(carrier.aborted)
        self.assertNoResult(waiting)
        self.assertEqual(factory.addresses, [], "a caller who is gone was given a protocol")
        self.assertEqual(self.factory.addresses, [])
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        agent.carrier.lose()
        self.clock.advance(30)
        self.nothingLeft()

    def test_aTicketWorksOnce(self) -> None:
        """F7, C4: a replayed ticket opens nothing, and disturbs nothing."""
        agent = self.agent()
        connecting = self.dial()
        [ready] = agent.read()
        carrier = agent.carry(ready)
        self.assertRaises(UnknownDial, agent.pickUp, ready)
        carrier.deliver(b"still here")
        self.assertEqual(self.successResultOf(connecting).received, b"still here")

    def test_anotherAgentsTicket(self) -> None:
        """F7, C4: a ticket with another runner's token is refused, and not used up."""
        agent = self.agent()
        connecting = self.dial()
        [ready] = agent.read()
        self.assertRaises(NotAllowed, agent.pickUp, ready, "family:b")
        agent.carry(ready)
        self.successResultOf(connecting)

    def test_pickupFailedForOneFailsNoOther(self) -> None:
        """C3: each dial hears of its own failure only."""
        for features in (ALL, frozenset[str]()):
            self.connections = self.make()
            agent = self.agent(features=features, offered=bool(features))
            first, second = self.dial(), self.dial()
            failed, good = agent.read()
            agent.say(PickupFailed(failed.connPath, "127.0.0.1:1: refused", failed.dial))
            error = self.failureResultOf(first, TunnelBroke)
            self.assertEqual(str(error.value), "127.0.0.1:1: refused")
            self.assertNoResult(second)
            agent.carry(good)
            self.successResultOf(second)

    def test_pickupFailedWithNobodyWaiting(self) -> None:
        """C3: it blocks nothing: the next line is read."""
        agent = self.agent()
        gone = self.dial()
        [ready] = agent.read()
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        agent.say(PickupFailed(ready.connPath, "late", ready.dial))
        agent.say(PickupFailed("/revdial?revdial.dialer=x&revdial.req=y", "never"))
        self.dial().addErrback(lambda _: None)
        self.assertEqual(len(agent.read()), 1)

    def test_theReasonsOfAnAgent(self) -> None:
        """Each word of our agents is its own error for the caller."""
        agent = self.agent()
        for reason, kind in (
            ("target-refused", TargetRefused),
            ("unknown-target", TargetRefused),
            ("target-timed-out", TargetTimeout),
            ("busy", TooManyPendingDials),
            ("unreachable", TunnelBroke),
            (None, TunnelBroke),
        ):
            connecting = self.dial()
            [ready] = agent.read()
            agent.say(PickupFailed(ready.connPath, "because", ready.dial, reason))
            self.assertEqual(str(self.failureResultOf(connecting, kind).value), "because")

    def test_aFailedHandOver(self) -> None:
        """The carrier of a picked-up dial that never comes up fails its caller at once."""
        agent = self.agent()
        connecting = self.dial()
        [ready] = agent.read()
        agent.pickUp(ready).failed(Failure(ConnectionLost("handshake")))
        error = self.failureResultOf(connecting, TunnelBroke)
        self.assertIn("handshake", str(error.value))
        self.assertEqual(self.factory.stops, 1)

    def test_aHandOverThatNeverEnds(self) -> None:
        """So does one that hangs, in time."""
        agent = self.agent()
        connecting = self.dial()
        [ready] = agent.read()
        pickUp = agent.pickUp(ready)
        self.clock.advance(15)
        self.failureResultOf(connecting, DialTimeout)
        self.assertTrue(MemoryCarrier().connect(pickUp.protocol).aborted)

    def test_aNamedTargetOfAnOldAgent(self) -> None:
        """A named dial to an agent without targets fails; it never falls to the sole local."""
        agent = self.agent(features=frozenset(), offered=False)
        self.failureResultOf(self.dial(target="api"), TargetRefused)
        self.assertEqual(agent.read(), [])

    def test_maxPending(self) -> None:
        """Bug 6 of the Go system: the limit on waiting dials holds exactly."""
        self.connections = self.make(maxPending=3)
        self.agent()
        waiting = [self.dial() for _ in range(3)]
        self.failureResultOf(self.dial(), TooManyPendingDials)
        waiting[0].cancel()
        self.failureResultOf(waiting[0], CancelledError)
        self.assertNoResult(self.dial())

    def test_maxStreams(self) -> None:
        """The number of streams open to a runner is bounded."""
        self.connections = self.make(maxStreams=2)
        agent = self.agent()
        carriers: list[MemoryCarrier] = []
        for _ in range(2):
            self.successResultOf(self.dialCarried(agent, carriers))
        self.failureResultOf(self.dial(), TooManyPendingDials)
        carriers[0].lose()
        self.successResultOf(self.dialCarried(agent, carriers))

    def dialCarried(self, agent: Agent, carriers: list[MemoryCarrier]) -> Any:
        connecting = self.dial()
        [ready] = agent.read()
        carriers.append(agent.carry(ready))
        return connecting


class CancelTests(ConnectionsCase):
    def test_cancelLeavesNothing(self) -> None:
        """C12: a cancelled dial leaves no timer, no entry, no started factory."""
        agent = self.agent()
        connecting = self.dial()
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        self.assertEqual(self.factory.stops, 1)
        self.assertEqual(self.connections.stats().pendingDialsTotal, 0)
        agent.carrier.lose()
        self.clock.advance(30)
        self.nothingLeft()

    def test_cancelStorm(self) -> None:
        """C12: a thousand dials cancelled at random points leave nothing at all."""
        chance = random.Random(12)
        agent = self.agent()
        factories = []
        carriers = []
        live = []
        for _ in range(1000):
            connecting = self.dial()
            results: list[Any] = []
            connecting.addBoth(results.append)
            factories.append(self.factory)
            [ready] = agent.read()
            point = chance.randrange(5)
            if point == 0:
                connecting.cancel()
                self.assertRaises(UnknownDial, agent.pickUp, ready)
            elif point == 1:
                pickUp = agent.pickUp(ready)
                connecting.cancel()
                carriers.append(MemoryCarrier().connect(pickUp.protocol))
            elif point == 2:
                pickUp = agent.pickUp(ready)
                connecting.cancel()
                pickUp.failed(Failure(ConnectionLost()))
            elif point == 3:
                agent.say(PickupFailed(ready.connPath, "no", ready.dial))
                connecting.cancel()
            else:
                carriers.append(agent.carry(ready))
                live.append((results[0], carriers[-1]))
                connecting.cancel()
            self.assertEqual(len(results), 1)
        for protocol, carrier in live:
            self.assertFalse(carrier.ended, "a cancel after the result ended the stream")
            protocol.transport.loseConnection()
        self.assertTrue(all(carrier.ended for carrier in carriers))
        self.assertTrue(all(f.starts == f.stops == 1 for f in factories))
        agent.carrier.lose()
        self.clock.advance(30)
        self.nothingLeft()

    def test_cancelWhileTheProtocolIsBuilt(self) -> None:
        """A caller who cancels from within his own factory gets no stream."""
        agent = self.agent()
        factory = Callers()
        connecting = self.connections.endpoint("wolf-1").connect(factory)
        built: list[Caller] = []

        def build(_: Any) -> Caller:
            connecting.cancel()
            built.append(Caller())
            return built[0]

        factory.buildProtocol = build  # type: ignore[method-assign,assignment]
        [ready] = agent.read()
        carrier = agent.carry(ready)
        self.failureResultOf(connecting, CancelledError)
        self.assertTrue(carrier.aborted)
        self.assertEqual(factory.stops, 1)


class GuardTests(ConnectionsCase):
    def test_aFactoryThatFails(self) -> None:
        """Its caller hears of it; the next dial works."""
        agent = self.agent()
        for broken in (ZeroDivisionError, None):
            factory = Callers()

            def build(_: Any, broken: Any = broken) -> None:
                if broken is not None:
                    raise broken

            factory.buildProtocol = build  # type: ignore[method-assign,assignment]
            connecting = self.connections.endpoint("wolf-1").connect(factory)
            [ready] = agent.read()
            carrier = agent.carry(ready)
            self.failureResultOf(connecting)
            self.assertTrue(carrier.aborted)
            self.assertEqual(factory.stops, 1)
        connecting = self.dial()
        [ready] = agent.read()
        agent.carry(ready)
        self.successResultOf(connecting)

    def test_aProtocolThatFailsEndsItsStreamOnly(self) -> None:
        """F10, D13: an exception in one stream never reaches another."""
        agent = self.agent()
        streams = []
        for _ in range(2):
            connecting = self.dial()
            [ready] = agent.read()
            carrier = agent.carry(ready)
            streams.append((self.successResultOf(connecting), carrier))
        (bad, badCarrier), (good, goodCarrier) = streams

        def fails(_: Any) -> None:
            raise ZeroDivisionError("a bug")

        bad.dataReceived = fails
        bad.connectionLost = fails
        badCarrier.deliver(b"x")
        goodCarrier.deliver(b"y")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertTrue(badCarrier.aborted)
        self.assertEqual(good.received, b"y")
        self.assertFalse(agent.carrier.ended)

    def test_anAuditLogThatFails(self) -> None:
        """A callback that raises changes nothing."""

        def fails(*_: Any) -> None:
            raise ZeroDivisionError("a bug")

        roster = self.connections._roster
        roster._audit = roster._onEnded = roster._onGone = fails
        self.agent()
        agent = self.agent()
        connecting = self.dial()
        agent.read()
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        agent.say(Goodbye())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 3)


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


class RevokeTests(ConnectionsCase):
    def test_revocationCutsEverythingAtOnce(self) -> None:
        """F3: control, data, pick-ups under way and dials that wait; no grace."""
        for word in ({"credential": "family:a"}, {"owner": "family:a"}, {"key": "wolf-1"}):
            agent = self.agent()
            other = self.agent(key="wolf-2", owner="family:b", credential="family:b")
            joined, pickedUp, waiting = self.dial(), self.dial(), self.dial()
            spared = self.dial("wolf-2")
            first, second, _ = agent.read()
            carrier = agent.carry(first)
            agent.pickUp(second)
            protocol = self.successResultOf(joined)
            self.connections.revoke(**word)
            self.assertTrue(carrier.aborted)
            self.assertEqual(protocol.transport.stream.reason, "the runner was cut off")
            self.failureResultOf(pickedUp, TunnelBroke)
            self.failureResultOf(waiting, NotConnected)
            agent.read()
            self.assertEqual(agent.other[-1], Closing("revoked"))
            self.assertEqual(agent.carrier.closedWith, (4001, "revoked"))
            self.assertIsNone(self.connections.status("wolf-1"))
            self.assertNoResult(spared)
            [ready] = other.read()
            MemoryCarrier().connect(
                self.connections.pickUp("family:b", ticket=ready.ticket).protocol
            )
            self.successResultOf(spared).transport.loseConnection()
            other.say(Goodbye())
        self.nothingLeft()

    def test_aRegistrationUnderWayIsRevokedToo(self) -> None:
        """F3: a claim that waits for its holder's answer does not slip in behind it."""
        for _ in range(3):
            self.agent()
        waiting = self.registering()
        self.assertNoResult(waiting)
        self.connections.revoke(credential="family:a")
        self.failureResultOf(waiting, NotAllowed)
        self.assertIsNone(self.connections.status("wolf-1"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aStreamWhoseRunnerIsGoneIsCutToo(self) -> None:
        """F3: a stream that outlived its runner's grace still belongs to the token."""
        agent = self.agent()
        connecting = self.dial()
        [ready] = agent.read()
        carrier = agent.carry(ready)
        self.successResultOf(connecting)
        agent.carrier.lose()
        self.clock.advance(31)
        self.assertEqual(self.connections.revoke(credential="family:a"), 1)
        self.assertTrue(carrier.aborted)


class StopTests(ConnectionsCase):
    def test_stop(self) -> None:
        """G1: goodbye first, then what runs may finish, then closing, and nothing left."""
        agent = self.agent()
        old = self.agent("hijack", key="wolf-2", features=frozenset(), offered=False)
        connecting, waiting = self.dial(), self.dial()
        ready, _ = agent.read()
        carrier = agent.carry(ready)
        self.successResultOf(connecting)
        stopping = Deferred.fromCoroutine(self.connections.stop(10.0))
        agent.read()
        self.assertIn(Goodbye(LEAVE_AFTER), agent.other)
        refused = self.failureResultOf(self.dial(), NotConnected).value
        self.assertEqual(refused.retryAfter, 1.0)
        self.failureResultOf(self.registering(key="wolf-3"), NotConnected)
        self.assertFalse(carrier.ended)
        self.assertFalse(old.carrier.ended)
        self.clock.advance(10)
        self.successResultOf(stopping)
        agent.read()
        self.assertEqual(agent.other[-1], Closing("shutdown"))
        self.assertTrue(carrier.aborted)
        self.assertTrue(old.carrier.ended)
        self.failureResultOf(waiting, NotConnected)
        self.nothingLeft()

    def test_stopEndsEarlyWhenNothingRuns(self) -> None:
        """G2: agents that are connected and idle are not waited for."""
        agent = self.agent()
        stopping = Deferred.fromCoroutine(self.connections.stop(10.0))
        self.successResultOf(stopping)
        agent.read()
        self.assertEqual(agent.other[-2:], [Goodbye(LEAVE_AFTER), Closing("shutdown")])
        self.nothingLeft()

    def test_stopAtOnceAndAgain(self) -> None:
        """G2: a second stop without a delay does not wait for the first."""
        agent = self.agent()
        connecting = self.dial()
        carrier = agent.carry(agent.read()[0])
        self.successResultOf(connecting)
        first = Deferred.fromCoroutine(self.connections.stop(60.0))
        self.assertNoResult(first)
        second = Deferred.fromCoroutine(self.connections.stop())
        self.successResultOf(second)
        self.successResultOf(first)
        self.assertTrue(agent.carrier.ended)
        self.assertTrue(carrier.aborted)
        self.nothingLeft()

    def test_dialsUnderWayAreAnswered(self) -> None:
        """G1: what an agent was asked for before the stop is still picked up."""
        agent = self.agent()
        connecting = self.dial()
        [ready] = agent.read()
        self.connections.leave(30.0)
        settled = Deferred.fromCoroutine(self.connections.settled(20.0))
        drained = Deferred.fromCoroutine(self.connections.drained(30.0))
        self.assertNoResult(settled)
        carrier = agent.carry(ready)
        self.assertTrue(self.successResultOf(settled))
        self.successResultOf(connecting)
        self.assertNoResult(drained)
        carrier.lose()
        self.assertTrue(self.successResultOf(drained))
        self.successResultOf(Deferred.fromCoroutine(self.connections.stop()))
        self.nothingLeft()

    def test_whoCannotBeKeptIsToldBeforeTheWait(self) -> None:
        """G1: only who goes on with the next process is not told to leave, and only so many."""
        told = []
        for number in range(3):
            agent = self.agent(key=f"wolf-{number}")
            agent.carrier.isPlainSocket = number < 2  # type: ignore[attr-defined]
            told.append(agent)
        self.connections.leave(30.0, keeping=1)
        for agent in told:
            agent.read()
        self.assertEqual([Goodbye in map(type, agent.other) for agent in told], [False, True, True])
        self.successResultOf(Deferred.fromCoroutine(self.connections.stop()))
        self.nothingLeft()

    def test_dialsThatWaitAreToldToTryAgain(self) -> None:
        """G1: a dial that waits for a lost runner fails at once: it comes to another server."""
        agent = self.agent()
        agent.carrier.lose()
        waiting = self.dial()
        self.assertNoResult(waiting)
        self.connections.leave(30.0)
        self.assertEqual(self.failureResultOf(waiting, NotConnected).value.retryAfter, 1.0)
        self.successResultOf(Deferred.fromCoroutine(self.connections.stop()))
        self.nothingLeft()

    def test_agentThatLeavesIsNotAwaited(self) -> None:
        """G1: while the server stops there is no grace: the runner comes back to another."""
        agent = self.agent()
        asked = self.dial()
        agent.read()
        self.connections.leave(30.0)
        agent.carrier.lose()
        self.assertEqual(self.failureResultOf(asked, NotConnected).value.retryAfter, 1.0)
        self.assertIsNone(self.connections.status("wolf-1"))
        self.successResultOf(Deferred.fromCoroutine(self.connections.stop()))
        self.nothingLeft()

    def test_stopIsNotHeldByAPeer(self) -> None:
        """G2: an agent that does not close its side is dropped after two seconds."""
        agent = self.agent()
        agent.carrier.stuck = True
        stopping = Deferred.fromCoroutine(self.connections.stop())
        self.assertNoResult(stopping)
        self.clock.advance(CLOSE_LIMIT)
        self.successResultOf(stopping)
        self.assertTrue(agent.carrier.aborted)
        self.nothingLeft()


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
