"""Agents and callers in memory, about a server's connections."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.connections import Connections, Registration
from helix_revdial.revdial.features import ALL
from helix_revdial.revdial.messages import (
    ConnReady,
    Echo,
    KeepAlive,
    dialIds,
    encode,
)
from helix_revdial.revdial.pickups import Call, PickUp
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
