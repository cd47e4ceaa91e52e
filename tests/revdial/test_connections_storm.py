"""
L{helix_revdial.revdial.connections} under any order of events.

Hypothesis picks what happens next (dials, cancels, pick-ups, carriers that come
up or do not, losses, returns, takeovers, revocations, time); whatever it picks,
each caller hears exactly once, gets his own stream, and in the end nothing is
left.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.connections import Connections, Registration
from helix_revdial.revdial.errors import DialError
from helix_revdial.revdial.features import ALL
from helix_revdial.revdial.messages import (
    ConnReady,
    Echo,
    Goodbye,
    KeepAlive,
    PickupFailed,
    dialIds,
    encode,
)
from helix_revdial.revdial.pickups import PickUp
from tests.revdial.carriers import MemoryCarrier

KEYS = st.sampled_from(["wolf-1", "wolf-2"])


class Caller(Factory):
    """One caller: his factory, what he was told, and his protocol."""

    noisy = False

    def __init__(self, connections: Connections, key: str) -> None:
        self.starts = self.stops = 0
        self.built: list[Protocol] = []
        self.results: list[Any] = []
        self.key = key
        self.connecting = connections.endpoint(key).connect(self)
        self.connecting.addBoth(self.results.append)

    def doStart(self) -> None:
        self.starts += 1

    def doStop(self) -> None:
        self.stops += 1

    def buildProtocol(self, addr: Any) -> Protocol:
        self.built.append(Protocol())
        return self.built[-1]


class Agent:
    """A registration and its carrier, and the asks that were not answered."""

    def __init__(self, key: str, registration: Registration, form: str) -> None:
        self.key = key
        self.registration = registration
        self.carrier = MemoryCarrier(form).connect(registration.protocol)
        self.asks: list[ConnReady] = []

    def read(self) -> None:
        for message in self.carrier.messages():
            match message:
                case ConnReady():
                    self.asks.append(message)
                case KeepAlive(echo) if echo is not None and not self.carrier.ended:
                    self.carrier.deliver(encode(Echo(echo)))
                case _:
                    pass


class Storm(RuleBasedStateMachine):
    """The events."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.generation = 0
        self.connections = Connections(
            self.clock, self.nextGeneration, wallClock=self.clock.seconds, maxPending=5
        )
        self.callers: list[Caller] = []
        self.agents: list[Agent] = []
        self.pickUps: list[PickUp] = []
        self.carriers: list[MemoryCarrier] = []
        self.registering: list[Deferred[Any]] = []

    async def nextGeneration(self) -> int:
        self.generation += 1
        return self.generation

    @rule(key=KEYS, old=st.booleans())
    def register(self, key: str, old: bool) -> None:
        def registered(result: Any) -> None:
            if isinstance(result, Registration):
                self.agents.append(Agent(key, result, "hijack" if old else "raw"))
            else:
                result.trap(DialError)

        registering = Deferred.fromCoroutine(
            self.connections.register(
                key,
                f"owner of {key}",
                f"token of {key}",
                features=frozenset() if old else ALL,
                offered=not old,
                peer="",
            )
        )
        registering.addBoth(registered)
        self.registering.append(registering)

    @rule(key=KEYS)
    def dial(self, key: str) -> None:
        self.callers.append(Caller(self.connections, key))

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.callers)).connecting.cancel()

    def ask(self, data: st.DataObject) -> tuple[Agent, ConnReady] | None:
        for agent in self.agents:
            agent.read()
        asks = [(agent, ask) for agent in self.agents for ask in agent.asks]
        if not asks:
            return None
        agent, ask = data.draw(st.sampled_from(asks))
        agent.asks.remove(ask)
        return agent, ask

    @rule(data=st.data(), carry=st.booleans())
    def pickUp(self, data: st.DataObject, carry: bool) -> None:
        found = self.ask(data)
        if found is None:
            return
        agent, ask = found
        dialer, request = dialIds(ask.connPath)
        try:
            pickUp = self.connections.pickUp(
                f"token of {agent.key}", ticket=ask.ticket, dialer=dialer, request=request
            )
        except DialError:
            return
        assert pickUp.runner == agent.key
        if carry:
            self.carriers.append(MemoryCarrier().connect(pickUp.protocol))
        else:
            self.pickUps.append(pickUp)

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        found = self.ask(data)
        if found is not None and not found[0].carrier.ended:
            agent, ask = found
            agent.carrier.deliver(encode(PickupFailed(ask.connPath, "no", ask.dial)))

    @precondition(lambda self: self.pickUps)
    @rule(up=st.booleans())
    def carrier(self, up: bool) -> None:
        pickUp = self.pickUps.pop(0)
        if up:
            self.carriers.append(MemoryCarrier().connect(pickUp.protocol))
        else:
            pickUp.failed(Failure(ConnectionLost()))

    @precondition(lambda self: self.carriers)
    @rule(data=st.data())
    def endStream(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.carriers)).lose()

    @precondition(lambda self: self.agents)
    @rule(data=st.data(), goodbye=st.booleans())
    def loseAgent(self, data: st.DataObject, goodbye: bool) -> None:
        agent = data.draw(st.sampled_from(self.agents))
        if goodbye and not agent.carrier.ended:
            agent.carrier.deliver(encode(Goodbye()))
        agent.carrier.lose()

    @rule(key=KEYS)
    def revoke(self, key: str) -> None:
        self.connections.revoke(credential=f"token of {key}")
        assert self.connections.status(key) is None
        assert self.connections._streams.get(key) is None

    @rule(seconds=st.sampled_from([0.1, 3.0, 16.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for agent in self.agents:
            agent.read()

    @invariant()
    def eachCallerHearsOnce(self) -> None:
        for caller in self.callers:
            assert len(caller.results) <= 1
            assert len(caller.built) <= 1
            assert caller.stops <= caller.starts <= 1
            if caller.results and not isinstance(caller.results[0], Failure):
                assert caller.results[0] is caller.built[0]

    @invariant()
    def theCountsAgree(self) -> None:
        stats = self.connections.stats()
        waiting = len(self.connections._calls)
        assert stats.pendingDialsTotal == waiting, (stats, waiting)
        live = [agent for agent in self.agents if not agent.carrier.ended]
        assert len(live) == len(self.connections._registrations)
        assert stats.connections == sorted(agent.key for agent in live)

    def teardown(self) -> None:
        stopping = Deferred.fromCoroutine(self.connections.stop())
        self.clock.advance(5)
        assert stopping.called, "stop did not end"
        for caller in self.callers:
            assert len(caller.results) == 1, "a caller was never told"
            assert caller.starts == caller.stops
        assert all(carrier.ended for carrier in self.carriers)
        assert all(agent.carrier.ended for agent in self.agents)
        self.clock.advance(5)
        assert all(registering.called for registering in self.registering)
        assert self.clock.getDelayedCalls() == []
        assert not self.connections._calls
        assert not self.connections._streams
        assert not self.connections._registrations


class StormTests(SynchronousTestCase):
    def test_anyOrderOfEvents(self) -> None:
        """C2, C3, C7, C12, A1-A3, F3 in any combination."""
        run_state_machine_as_test(
            Storm,
            settings=settings(
                max_examples=60,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
