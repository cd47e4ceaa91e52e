"""Tests for L{helix_revdial.revdial.connections}: dials, pick-ups and cutting off."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from helix_revdial.revdial.errors import (
    DialTimeout,
    NotAllowed,
    NotConnected,
    TargetRefused,
    TargetTimeout,
    TooManyPendingDials,
    TunnelBroke,
    UnknownDial,
)
from helix_revdial.revdial.features import ALL
from helix_revdial.revdial.messages import (
    Closing,
    Goodbye,
    PickupFailed,
)
from helix_revdial.revdial.streams import RunnerAddress
from tests.revdial.callers import Agent, Caller, Callers, ConnectionsCase
from tests.revdial.carriers import MemoryCarrier


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

    def test_patience(self) -> None:
        """
        Patient dials of one service wait for each other where half of what may be
        under way is; other services and impatient callers have the rest.
        """
        self.connections = self.make(maxPending=4)
        agent = self.agent()

        def patient(target: str) -> Any:
            endpoint = self.connections.endpoint("wolf-1", target, patient=True)
            return endpoint.connect(Callers())

        first, second, third = [patient("api") for _ in range(3)]
        self.assertEqual(len(agent.read()), 2)
        other, impatient = patient("web"), self.dial()
        asked = agent.read()
        self.assertEqual([ready.target for ready in asked], ["web", None])
        self.failureResultOf(self.dial(), TooManyPendingDials)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        [ready] = agent.read()
        carrier = agent.carry(ready)
        self.successResultOf(third)
        carrier.lose()
        for dial in (first, other, impatient):
            self.assertNoResult(dial)

    def test_patienceEnds(self) -> None:
        """A patient dial has the time of any other, the wait included."""
        self.connections = self.make(maxPending=2, dialTimeout=5, gracePeriod=1)
        self.agent()
        endpoint = self.connections.endpoint("wolf-1", patient=True)
        self.clock.advance(0.5)
        waiting = [endpoint.connect(Callers()) for _ in range(3)]
        self.clock.pump([1.0] * 6)
        for dial in waiting:
            self.failureResultOf(dial, DialTimeout)

    def test_noPatienceForWhoIsNotThere(self) -> None:
        """Who awaits a runner that was lost is told when there are too many."""
        self.connections = self.make(maxPending=4)
        self.agent().carrier.lose()
        endpoint = self.connections.endpoint("wolf-1", patient=True)
        for _ in range(4):
            self.assertNoResult(endpoint.connect(Callers()))
        self.failureResultOf(endpoint.connect(Callers()), TooManyPendingDials)

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
