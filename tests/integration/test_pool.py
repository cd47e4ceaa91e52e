"""Parked connections from end to end: both ends of ours, on real sockets."""

from __future__ import annotations

import random
from hashlib import sha256
from typing import Any, cast

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocol,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from helix_revdial.agent.targets import LocalTarget, parseTarget
from helix_revdial.revdial.errors import NotConnected, TargetRefused, TargetTimeout
from helix_revdial.revdial.interfaces import ITarget
from helix_revdial.revdial.parked import PoolLimits
from helix_revdial.revdial.relay import relayPair
from helix_revdial.revdial.sockets import SocketRelays
from tests.integration.middlebox import Link, Middlebox
from tests.integration.test_tunnel import Flood, Hasher, Slow, TunnelCase
from tests.integration.tunnels import (
    Agent,
    Banner,
    Collector,
    Echo,
    Server,
    collector,
    listen,
    reactor,
    until,
)


class PoolCase(TunnelCase):
    """Dials until connections are parked."""

    timeout = 20
    form = "raw"
    sockets: SocketRelays | None = None

    def pooling(self, **limits: Any) -> Server:
        return self.server(self.form, pool=PoolLimits(**{"spare": 4, **limits}))

    def target(self, protocol: Any) -> ITarget:
        port, address = listen(protocol)
        self.addCleanup(port.stopListening)

        def pair(clock: Any, *, linger: float) -> tuple[IProtocol, IProtocol]:
            return relayPair(clock, linger=linger, sockets=self.sockets)

        return cast(ITarget, LocalTarget(reactor, parseTarget(address), pair=pair))

    def events(self, server: Server) -> dict[str, int]:
        return server.connections.poolEvents()

    def parked(self, server: Server) -> int:
        return server.connections.sizes()["parked"]

    async def warm(self, server: Server, target: str | None = None, idle: int = 4) -> None:
        """Dial once, and wait until the spare ones are there."""
        caller = await server.connections.endpoint("wolf-1", target).connect(collector())
        cast(Any, caller).transport.abortConnection()
        await until(lambda: self.parked(server) >= idle, f"{idle} are parked")

    async def dial(self, server: Server, target: str | None = None, **more: Any) -> Collector:
        connecting = server.connections.endpoint("wolf-1", target, **more).connect(collector())
        return cast(Collector, await connecting)

    async def echoed(self, server: Server, data: bytes = b"ping") -> Any:
        """Dial, see that bytes go there and back, and end the stream; its record."""
        caller = await self.dial(server, "echo")
        record = cast(Any, caller.transport).stream
        caller.write(data)
        self.assertEqual(await caller.read(len(data)), data)
        cast(Any, caller.transport).loseConnection()
        await caller.ended
        return record

    async def boxed(self, server: Server, **targets: ITarget) -> tuple[Agent, Middlebox]:
        """An agent behind something that may end its connections."""
        box = Middlebox(server)
        self.addCleanup(lambda: Deferred.fromCoroutine(box.stop()))
        agent = await self.agent(cast(Any, box), {"echo": self.target(Echo), **targets})
        return agent, box


@implementer(IHalfCloseableProtocol)
class Player(Protocol):
    """
    One end of a stream, which does what chance says.

    @ivar sent: What it wrote.
    @ivar got: What came.
    @ivar saidEnd: Whether it has ended its direction.
    @ivar heardEnd: Whether the other has, in good order.
    @ivar broke: Whether it has broken the connection.
    @ivar lost: Whether its connection is over.
    """

    def __init__(self, accepted: list[Player] | None = None) -> None:
        self.sent = bytearray()
        self.got = bytearray()
        self.saidEnd = self.heardEnd = self.broke = self.lost = False
        self._accepted = accepted

    @property
    def wire(self) -> Any:
        return self.transport

    def connectionMade(self) -> None:
        if self._accepted is not None:
            self._accepted.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def readConnectionLost(self) -> None:
        self.heardEnd = True
        if self.saidEnd:
            self.wire.loseConnection()

    def writeConnectionLost(self) -> None:
        """Of our own making."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True
        self.heardEnd = self.heardEnd or reason.check(ConnectionDone) is not None

    def say(self, data: bytes) -> None:
        """Write it."""
        if not (self.saidEnd or self.lost or self.broke):
            self.sent += data
            self.wire.write(data)

    def play(self, source: random.Random, breaks: bool) -> None:
        """Do something."""
        move = source.choice(("say", "say", "say", "pause", "resume", "end", "break"))
        if self.lost or self.broke:
            return
        if move == "say":
            self.say(source.randbytes(source.choice((1, 100, 20_000, 150_000))))
        elif move == "pause":
            self.wire.pauseProducing()
        elif move == "resume":
            self.wire.resumeProducing()
        elif move == "end" and not source.randrange(8):
            self.end()
        elif move == "break" and breaks and not source.randrange(8):
            self.broke = True
            self.wire.abortConnection()

    def end(self) -> None:
        """End this direction."""
        if not (self.saidEnd or self.lost or self.broke):
            self.saidEnd = True
            self.wire.loseWriteConnection()

    def finish(self) -> None:
        """Read on, and end."""
        if not (self.lost or self.broke):
            self.wire.resumeProducing()
        self.end()
        if self.heardEnd and not (self.lost or self.broke):
            self.wire.loseConnection()


class PooledDialTests(PoolCase):
    async def test_aDialTakesOne(self) -> None:
        """A dial takes a parked connection, says so in its record, and gives it back."""
        server = self.pooling()
        await self.agent(server, {"echo": self.target(Echo)})
        await self.warm(server)
        for _ in range(20):
            record = await self.echoed(server)
            self.assertTrue(record.pooled)
            self.assertIn("target", record.phases)
            self.assertEqual((record.bytesIn, record.bytesOut), (4, 4))
        await until(lambda: self.parked(server) >= 4, "all are parked again")
        self.assertEqual(self.events(server)["taken"], 20)
        self.assertLessEqual(self.events(server)["opened"], 6, "they are used again")

    async def test_errorsAreTheSame(self) -> None:
        """What the caller hears of a target that fails is what a dial-back would tell."""
        server = self.pooling()
        port, address = listen(Echo)
        await cast("Deferred[None]", port.stopListening())
        never = Slow(self.target(Echo), lambda: 60)
        targets: dict[str, ITarget] = {
            "echo": self.target(Echo),
            "refuses": cast(ITarget, LocalTarget(reactor, parseTarget(address))),
            "slow": never,
        }
        await self.agent(server, targets, dialBackTimeout=0.2)
        await self.warm(server, "echo")
        for name, error in (
            ("refuses", TargetRefused),
            ("unheard-of", TargetRefused),
            ("slow", TargetTimeout),
        ):
            await self.assertFailure(Deferred.fromCoroutine(self.dial(server, name)), error)
        self.assertEqual(self.events(server)["taken"], 3)
        self.assertTrue((await self.echoed(server)).pooled)
        await until(lambda: self.parked(server) >= 4, "all are parked again")

    async def test_burst(self) -> None:
        """C10: a hundred dials with a pool of four are all answered, and it refills."""
        server = self.pooling(most=8)
        await self.agent(server, {"echo": self.target(Echo)})
        await self.warm(server)
        data = [bytes([n]) * 1000 for n in range(100)]
        dials = [Deferred.fromCoroutine(self.echoed(server, one)) for one in data]
        await gatherResults(dials, consumeErrors=True)
        events = self.events(server)
        self.assertGreaterEqual(events["taken"], 4)
        self.assertGreaterEqual(events["missed"], 50)
        await until(lambda: 4 <= self.parked(server) <= 8, "it has refilled, within its limit")
        self.assertTrue((await self.echoed(server)).pooled)

    async def test_ends(self) -> None:
        """Half-close and data after the end go through, and the connection is used again."""
        server = self.pooling()
        await self.agent(server, {"echo": self.target(Hasher), "ssh": self.target(Banner)})
        await self.warm(server)
        for size in (0, 1, 70_000, 3_000_000):
            data = random.Random(size).randbytes(size)
            caller = await self.dial(server, "echo")
            caller.write(data)
            cast(Any, caller.transport).loseWriteConnection()
            self.assertIsInstance(await caller.ended, ConnectionDone)
            self.assertEqual(bytes(caller.received).decode(), sha256(data).hexdigest())
        caller = await self.dial(server, "ssh")
        await caller.read(len(Banner.banner))
        self.assertEqual(self.events(server)["taken"], 5)

    async def test_flood(self) -> None:
        """D3: the last byte of a large body arrives, and the next stream begins behind it."""
        server = self.pooling()
        await self.agent(server, {"echo": self.target(Echo), "flood": self.target(Flood)})
        await self.warm(server, "echo")
        for _ in range(3):
            caller = await self.dial(server, "flood")
            await caller.ended
            self.assertEqual(len(caller.received), len(Flood.data))
            self.assertEqual(sha256(caller.received).digest(), sha256(Flood.data).digest())
            self.assertTrue((await self.echoed(server)).pooled)

    async def test_aPeerThatGoesOn(self) -> None:
        """A stream that its caller closes while the target sends ends its connection."""
        server = self.pooling()
        await self.agent(server, {"echo": self.target(Echo), "flood": self.target(Flood)})
        await self.warm(server, "echo")
        caller = await self.dial(server, "flood")
        await caller.read(1)
        cast(Any, caller.transport).loseConnection()
        await caller.ended
        self.assertTrue((await self.echoed(server)).pooled)
        await until(lambda: not server.connections.sizes()["streams"], "no stream is left")

    def door(self, server: Server, target: str) -> tuple[IStreamClientEndpoint, list[Any]]:
        """A port that leads to a target, as TCP forwards do; and the records of its streams."""
        sockets, records = self.sockets, []

        class Door(Factory):
            noisy = False

            def buildProtocol(self, addr: Any) -> Any:
                accepted, stream = relayPair(reactor, sockets=sockets)
                factory = Factory.forProtocol(lambda: stream)
                factory.noisy = False
                factory.early = stream  # type: ignore[attr-defined]
                connecting = server.connections.endpoint("wolf-1", target).connect(factory)
                connecting.addCallbacks(
                    lambda _: records.append(cast(Any, stream.transport).stream),
                    lambda _: accepted.abandon(),
                )
                return accepted

        door = reactor.listenTCP(0, Door(), interface="127.0.0.1")
        self.addCleanup(door.stopListening)
        return TCP4ClientEndpoint(reactor, "127.0.0.1", door.getHost().port), records

    async def test_relayed(self) -> None:
        """Bytes that a caller sends before the answer go with the assignment."""
        server = self.pooling()
        await self.agent(server, {"echo": Slow(self.target(Echo), lambda: 0.05)}, dialBackTimeout=5)
        await self.warm(server)
        door, _ = self.door(server, "echo")
        for size in (1, 1000, 200_000):
            data = random.Random(size).randbytes(size)
            caller = cast(Collector, await door.connect(collector()))
            caller.write(data)
            self.assertEqual(await caller.read(size), data)
            cast(Any, caller.transport).loseWriteConnection()
            await caller.ended
            self.assertEqual(len(caller.received), size)

    async def test_anyInterleaving(self) -> None:
        """
        D1, D3, D6: streams, one after the other and beside each other, whose ends do what they
        like in any order: bytes that arrive are a beginning of what was sent, all of it where the
        end arrived; both sides learn the end; and the record has as many bytes.
        """
        server = self.pooling()
        accepted: list[Player] = []
        await self.agent(
            server,
            {
                "echo": self.target(Echo),
                # Time for what callers send before it is there.
                "play": Slow(self.target(lambda: Player(accepted)), lambda: 0.02),
            },
            dialBackTimeout=5,
        )
        await self.warm(server, "echo")
        door, records = self.door(server, "play")
        for seed in range(10):
            source = random.Random(seed)
            caller = cast(Player, await door.connect(Factory.forProtocol(Player)))
            for _ in range(seed):
                caller.say(source.randbytes(source.choice((1, 3000, 70_000))))
                await deferLater(reactor, 0)
            caller.say(b"!")
            await until(lambda: any(each.got for each in accepted), "the target")
            # On a machine that stands still, a dial is asked for twice.
            [target] = [each for each in accepted if each.got]
            accepted.clear()
            ends = (caller, target)
            breaks = not seed % 3
            for _ in range(50):
                ends[source.randrange(2)].play(source, breaks)
                await deferLater(reactor, 0)
                for giver, taker in (ends, ends[::-1]):
                    self.assertTrue(giver.sent.startswith(taker.got), f"seed {seed}")
            broke = any(each.broke for each in ends)
            for each in ends:
                each.finish()
            await until(
                lambda: all(each.lost or each.broke for each in ends),  # noqa: B023
                f"seed {seed}: both have learnt the end",
            )
            for giver, taker in (ends, ends[::-1]):
                self.assertTrue(giver.sent.startswith(taker.got), f"seed {seed}")
                if taker.heardEnd or not broke:
                    self.assertTrue(giver.saidEnd, f"seed {seed}: an end that nobody sent")
                    self.assertEqual(giver.sent, taker.got, f"seed {seed}: an early end")
            await until(lambda: not server.connections.openStreams, "no stream is left")
            record = records[seed]
            self.assertTrue(record.pooled or "raced" in self.events(server))
            if not broke:
                counted = record.bytesOut, record.bytesIn
                self.assertEqual(counted, tuple(len(each.sent) for each in ends), f"seed {seed}")
            await until(lambda: self.parked(server) >= 4, "enough are parked")


class SocketPooledDialTests(PooledDialTests):
    """The same where both ends move bytes between sockets."""

    sockets = SocketRelays(reactor)


class WebSocketPooledDialTests(PooledDialTests):
    """The same where only WebSocket gets through."""

    form = "websocket"


class WebSocketSocketPooledDialTests(PooledDialTests):
    form = "websocket"
    sockets = SocketRelays(reactor)


class ReapedTests(PoolCase):
    """B6: what something in between has ended is not seen by the caller."""

    async def reaped(self, how: Any) -> None:
        server = self.pooling()
        _, box = await self.boxed(server)
        await self.warm(server)
        for link in box.links[1:]:
            how(link)
        began = reactor.seconds()
        await self.echoed(server)
        self.assertLess(reactor.seconds() - began, 5)
        await until(lambda: self.parked(server) >= 4, "others are parked", 15)
        self.assertTrue((await self.echoed(server)).pooled)

    async def test_fin(self) -> None:
        """In good order."""
        await self.reaped(Link.finish)

    async def test_reset(self) -> None:
        """By a reset."""
        await self.reaped(Link.reset)

    async def test_resetAtUse(self) -> None:
        """By a reset that comes when the connection is used."""
        await self.reaped(Link.resetAtUse)

    async def test_silence(self) -> None:
        """Without a word: the dial is asked for on the control connection as well."""
        await self.reaped(Link.forget)

    async def test_slowTarget(self) -> None:
        """A dial that is asked for twice connects one target for its stream, once."""
        opened: list[int] = []

        def delay() -> float:
            opened.append(1)
            return 1.3

        server = self.pooling()
        slow = Slow(self.target(Banner), delay)
        await self.agent(server, {"echo": self.target(Echo), "slow": slow})
        await self.warm(server, "echo")
        caller = await self.dial(server, "slow")
        await caller.read(len(Banner.banner))
        self.assertLessEqual(len(opened), 2)
        self.assertEqual(bytes(caller.received), Banner.banner)
        self.assertFalse(cast(Any, caller.transport).stream.pooled)


class GenerationTests(PoolCase):
    async def test_takeover(self) -> None:
        """What an older generation has parked is closed, and never used for the next."""
        server = self.pooling()
        first = await self.agent(server, {"echo": self.target(Echo)})
        await self.warm(server)
        caller = await self.dial(server)
        second = await self.agent(server, {"echo": self.target(Echo)})
        self.assertEqual(self.parked(server), 0)
        await until(lambda: not first.listener.parked, "the first agent has none")
        caller.write(b"on")
        self.assertEqual(await caller.read(2), b"on")
        cast(Any, caller.transport).loseConnection()
        await caller.ended
        await self.warm(server)
        await until(lambda: second.listener.parked >= 4, "the second agent has some")
        self.assertEqual(first.listener.parked, 0)

    async def test_controlLost(self) -> None:
        """With its control connection, what a generation has parked goes."""
        server = self.pooling()
        agent = await self.agent(server, {"echo": self.target(Echo)})
        await self.warm(server)
        agent.session.control.drop("test")
        await until(lambda: not self.parked(server), "none is parked")
        await until(lambda: not agent.listener.parked, "the agent has none")

    async def test_revoked(self) -> None:
        """With its token, too."""
        server = self.pooling()
        agent = await self.agent(server, {"echo": self.target(Echo)})
        await self.warm(server)
        server.connections.revoke(key="wolf-1")
        self.assertEqual(self.parked(server), 0)
        await until(lambda: not agent.listener.parked, "the agent has none")

    async def test_theAgentLeaves(self) -> None:
        """An agent that leaves closes what is parked at once, and streams may end."""
        server = self.pooling()
        agent = await self.agent(server, {"echo": self.target(Echo)})
        await self.warm(server)
        caller = await self.dial(server)
        leaving = Deferred.fromCoroutine(agent.listener.stop(5))
        await until(lambda: not self.parked(server), "none is parked")
        caller.write(b"still")
        self.assertEqual(await caller.read(5), b"still")
        self.assertFalse(leaving.called)
        cast(Any, caller.transport).loseConnection()
        await leaving
        await self.assertFailure(Deferred.fromCoroutine(self.dial(server)), NotConnected)

    async def test_theServerLeaves(self) -> None:
        """So does a server."""
        server = self.pooling()
        agent = await self.agent(server, {"echo": self.target(Echo)})
        await self.warm(server)
        server.connections.leave(5)
        self.assertEqual(self.parked(server), 0)
        await until(lambda: not agent.listener.parked, "the agent has none")

    async def test_descriptorsAreScarce(self) -> None:
        """What is parked goes first when descriptors run out, and dials go on."""
        scarce = False
        server = self.server(pool=PoolLimits(spare=4), scarce=lambda: scarce)
        await self.agent(server, {"echo": self.target(Echo)})
        await self.warm(server)
        scarce = True
        server.connections.shedParked()
        self.assertEqual(self.parked(server), 0)
        self.assertFalse((await self.echoed(server)).pooled)
        self.assertEqual(self.parked(server), 0)

    async def test_noPool(self) -> None:
        """An agent that has no way to park is dialled as ever."""
        server = self.pooling()
        agent = Agent(server, {"echo": self.target(Echo)})
        agent.listener._pooled._parking = None
        await agent.connect()
        self.addCleanup(lambda: Deferred.fromCoroutine(agent.stop()))
        for _ in range(3):
            self.assertFalse((await self.echoed(server)).pooled)
        await deferLater(reactor, 0)
        self.assertEqual(self.parked(server), 0)
