"""The tunnel from end to end: both ends of ours, on real sockets."""

from __future__ import annotations

import os
import random
from hashlib import sha256
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from helix_revdial.agent.targets import LocalTarget, parseTarget
from helix_revdial.revdial.errors import (
    NotConnected,
    TargetRefused,
    TargetTimeout,
    UnknownDial,
)
from helix_revdial.revdial.interfaces import ITarget
from helix_revdial.revdial.streams import Stream
from tests.integration.tunnels import (
    FORMS,
    Agent,
    AgentOf2025,
    Banner,
    Collector,
    Echo,
    Server,
    collector,
    listen,
    reactor,
    until,
)


@implementer(IHalfCloseableProtocol)
class Hasher(Protocol):
    """Answers the end of what it gets with its hash, then ends too."""

    def __init__(self) -> None:
        self.hash = sha256()

    def dataReceived(self, data: bytes) -> None:
        self.hash.update(data)

    def readConnectionLost(self) -> None:
        transport = cast(Any, self.transport)
        transport.write(self.hash.hexdigest().encode())
        transport.loseConnection()

    def writeConnectionLost(self) -> None:
        pass


class Flood(Protocol):
    """Sends eight MiB and closes at once."""

    data = b"0123456789abcdef" * (512 * 1024)

    def connectionMade(self) -> None:
        transport = cast(Any, self.transport)
        transport.write(self.data)
        transport.loseConnection()


@implementer(ITarget)
class Slow:
    """A target that opens after a while."""

    def __init__(self, target: ITarget, delay: Any) -> None:
        self._target = target
        self._delay = delay

    def open(self) -> Deferred[IProtocol]:
        return Deferred.fromCoroutine(self._open())

    async def _open(self) -> IProtocol:
        await deferLater(reactor, self._delay())
        return await self._target.open()


class TunnelCase(TestCase):
    """Starts servers, agents and services, and ends them."""

    timeout = 60

    def server(self, form: str = "raw", **options: Any) -> Server:
        server = Server(form, **options)
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        return server

    async def agent(self, server: Server, targets: dict[str, ITarget], **options: Any) -> Agent:
        agent = Agent(server, targets, **options)
        await agent.connect()
        self.addCleanup(lambda: Deferred.fromCoroutine(agent.stop()))
        return agent

    def target(self, protocol: type[Protocol]) -> ITarget:
        port, address = listen(protocol)
        self.addCleanup(port.stopListening)
        target: ITarget = LocalTarget(reactor, parseTarget(address))
        return target

    async def dial(self, server: Server, target: str | None = None, **options: Any) -> Collector:
        endpoint = server.connections.endpoint("wolf-1", target, **options)
        return cast(Collector, await endpoint.connect(collector()))

    async def noStreams(self, agent: Agent) -> None:
        await until(lambda: not agent.listener.openStreams, "the agent's streams ended")

    async def underWay(self, agent: Agent, number: int) -> None:
        await until(
            lambda: agent.listener.dialsUnderWay == number, f"{number} dial-backs under way"
        )

    async def status(self, server: Server, status: str | None) -> None:
        await until(
            lambda: server.connections.status("wolf-1") == status, f"the status is {status}"
        )

    def streamOf(self, protocol: Collector) -> Stream:
        return cast(Stream, cast(Any, protocol.transport).stream)


class FormTests(TunnelCase):
    """What holds over every form of the wire."""

    async def test_echo(self) -> None:
        """Bytes there and back; the carriers are those the form is about."""
        for form, control, data in (
            ("raw", "raw", "raw"),
            ("websocket", "websocket", "websocket"),
            ("old", "hijack", "websocket"),
        ):
            server = self.server(form)
            agent = await self.agent(server, {"echo": self.target(Echo)})
            self.assertEqual(agent.session.carrier, control)
            protocol = await self.dial(server)
            self.assertEqual(self.streamOf(protocol).carrier, data)
            protocol.write(b"x" * 100_000)
            self.assertEqual(await protocol.read(100_000), b"x" * 100_000)
            self.assertIn("target", self.streamOf(protocol).phases)
            cast(Any, protocol.transport).loseConnection()
            self.assertIsInstance(await protocol.ended, ConnectionDone)
            await self.noStreams(agent)

    async def test_serverSpeaksFirst(self) -> None:
        """C6: a banner that is sent at once is not lost, however often."""
        for form in FORMS:
            server = self.server(form)
            await self.agent(server, {"ssh": self.target(Banner)})
            for _ in range(20):
                protocol = await self.dial(server)
                self.assertEqual(await protocol.read(len(Banner.banner)), Banner.banner)
                cast(Any, protocol.transport).abortConnection()

    async def test_halfClose(self) -> None:
        """D1: our end of stream arrives as such, and the answer after it too."""
        for form in ("raw", "websocket"):
            server = self.server(form)
            await self.agent(server, {"hash": self.target(Hasher)})
            protocol = await self.dial(server)
            protocol.write(b"some data")
            cast(Any, protocol.transport).loseWriteConnection()
            self.assertIsInstance(await protocol.ended, ConnectionDone)
            self.assertEqual(bytes(protocol.received), sha256(b"some data").hexdigest().encode())

    async def test_closeFlushes(self) -> None:
        """D3: a target that closes behind its last byte is read to that byte."""
        for form in FORMS:
            server = self.server(form)
            await self.agent(server, {"flood": self.target(Flood)})
            protocol = await self.dial(server)
            await protocol.ended
            self.assertEqual(len(protocol.received), len(Flood.data), form)
            self.assertEqual(sha256(protocol.received).digest(), sha256(Flood.data).digest(), form)

    async def test_targetRefused(self) -> None:
        """The reason of the agent's connect arrives where the caller is."""
        for form in FORMS:
            server = self.server(form)
            port, address = listen(Echo)
            await cast(Any, port.stopListening())
            await self.agent(server, {"api": LocalTarget(reactor, parseTarget(address))})
            error = await self.assertFailure(
                Deferred.fromCoroutine(self.dial(server)),
                TargetRefused,
            )
            self.assertIn(address, str(error))
            self.assertIn("refused", str(error))


class ManyTests(TunnelCase):
    async def test_aHundredDialsShuffled(self) -> None:
        """C2: a hundred at once, answered in any order; each gets its own target."""
        chance = random.Random(7)
        for form in ("raw", "websocket"):
            server = self.server(form)
            agent = await self.agent(server, {})
            for number in range(100):
                banner = type("B", (Banner,), {"banner": b"target %03d\n" % number})
                name = f"t{number}"
                await agent.listener.endpoint(name).listen(Factory.forProtocol(banner))
                target = agent.listener._targets[name]
                agent.listener._targets[name] = Slow(target, lambda: chance.random() / 5)
            dials = [
                Deferred.fromCoroutine(self.dial(server, f"t{number}")) for number in range(100)
            ]
            protocols = await gatherResults(dials, consumeErrors=True)
            for number, protocol in enumerate(protocols):
                self.assertEqual(await protocol.read(11), b"target %03d\n" % number)
                cast(Any, protocol.transport).loseConnection()

    async def test_oldWireHundred(self) -> None:
        """C2 on the old wire, where ids in the path tell the dials apart."""
        server = self.server("old")
        await self.agent(server, {"echo": self.target(Echo)})

        async def one(number: int) -> None:
            protocol = await self.dial(server)
            said = b"caller %03d" % number
            protocol.write(said)
            self.assertEqual(await protocol.read(len(said)), said)
            cast(Any, protocol.transport).loseConnection()

        await gatherResults(
            [Deferred.fromCoroutine(one(number)) for number in range(100)], consumeErrors=True
        )

    async def test_cancelStorm(self) -> None:
        """C12: a thousand dials cancelled at random points leave no socket and no entry."""
        chance = random.Random(12)
        server = self.server(maxPending=2000)
        agent = await self.agent(server, {"echo": self.target(Echo)})
        protocol = await self.dial(server)
        cast(Any, protocol.transport).loseConnection()
        await until(lambda: not agent.listener.openStreams, "quiet before the storm")
        await deferLater(reactor, 0.05)
        before = len(os.listdir("/proc/self/fd"))
        outcomes = {"connected": 0, "cancelled": 0}

        async def one() -> None:
            connecting = server.connections.endpoint("wolf-1").connect(collector())
            reactor.callLater(chance.random() * 0.4, connecting.cancel)
            try:
                protocol = cast(Any, await connecting)
            except CancelledError:
                outcomes["cancelled"] += 1
            else:
                outcomes["connected"] += 1
                protocol.transport.abortConnection()

        storm = []
        for _ in range(10):
            storm += [Deferred.fromCoroutine(one()) for _ in range(100)]
            await deferLater(reactor, 0.02)
        await gatherResults(storm, consumeErrors=True)
        self.assertEqual(sum(outcomes.values()), 1000)
        self.assertGreater(min(outcomes.values()), 0, f"the storm was one-sided: {outcomes}")
        await until(
            lambda: not agent.listener.dialsUnderWay and not agent.listener.openStreams,
            "the agent is quiet",
            20.0,
        )
        await until(
            lambda: len(os.listdir("/proc/self/fd")) <= before,
            f"as few sockets as before ({before})",
        )
        self.assertEqual(server.connections._calls, {})
        self.assertEqual(server.connections._streams, {})
        self.assertEqual(server.connections.stats().pendingDialsTotal, 0)
        # The tunnel works as before.
        protocol = await self.dial(server)
        protocol.write(b"after")
        self.assertEqual(await protocol.read(5), b"after")

    async def test_aSlowTargetDelaysNobody(self) -> None:
        """C8: one target that hangs, fifty dials of another beside it."""
        server = self.server()
        targets = {"echo": self.target(Echo)}
        targets["slow"] = Slow(targets["echo"], lambda: 2.0)
        await self.agent(server, targets)
        slow = Deferred.fromCoroutine(self.dial(server, "slow"))
        for _ in range(50):
            protocol = await self.dial(server, "echo")
            cast(Any, protocol.transport).abortConnection()
        self.assertFalse(slow.called)
        slow.cancel()
        await self.assertFailure(slow, CancelledError)


class OldAgentTests(TunnelCase):
    async def connect(self, server: Server) -> AgentOf2025:
        endpoint = HostnameEndpoint(reactor, "127.0.0.1", cast(Any, server.port.getHost()).port)
        agent = AgentOf2025(server, Banner)
        factory = Factory.forProtocol(lambda: agent)
        factory.noisy = False
        await endpoint.connect(factory)
        self.addCleanup(lambda: cast(Any, agent.transport).abortConnection())
        return agent

    async def test_anAgentOf2025(self) -> None:
        """It loses nothing, although a dial waits at the moment when it registers."""
        server = self.server()
        agent = await self.connect(server)
        await self.status(server, "connected")
        first = await self.dial(server)
        self.assertEqual(await first.read(len(Banner.banner)), Banner.banner)
        cast(Any, agent.transport).abortConnection()
        await self.status(server, "grace")
        waiting = Deferred.fromCoroutine(self.dial(server))
        again = await self.connect(server)
        second = await waiting
        self.assertEqual(await second.read(len(Banner.banner)), Banner.banner)
        self.assertEqual(again.swallowed, b"", "the head was not sent alone")
        self.assertEqual([line["command"] for line in again.lines], ["keep-alive", "conn-ready"])
        cast(Any, first.transport).abortConnection()
        cast(Any, second.transport).abortConnection()


class EndTests(TunnelCase):
    async def test_controlLossWithDialsInFlight(self) -> None:
        """What was asked and not picked up is asked again on return; streams go on."""
        for form in FORMS:
            server = self.server(form)
            echo = self.target(Echo)
            agent = await self.agent(server, {"echo": echo, "slow": Slow(echo, lambda: 0.3)})
            joined = await self.dial(server)
            agent.listener._default = "slow"
            dials = [Deferred.fromCoroutine(self.dial(server)) for _ in range(10)]
            await self.underWay(agent, 10)
            cast(Any, agent.session.control.transport).abortConnection()
            await agent.session.closed
            await self.status(server, "grace")
            agent.listener._default = "echo"
            await agent.connect()
            for protocol in await gatherResults(dials, consumeErrors=True):
                protocol.write(b"again")
                self.assertEqual(await protocol.read(5), b"again")
                cast(Any, protocol.transport).loseConnection()
            joined.write(b"still")
            self.assertEqual(await joined.read(5), b"still")

    async def test_takeoverAndTheOldOneWaits(self) -> None:
        """A1, A2: the newer agent serves; the older hears why, and ends nothing."""
        server = self.server()
        older = await self.agent(server, {"b": self.target(Banner)})
        newer = await self.agent(server, {"echo": self.target(Echo)})
        closed = await older.session.closed
        self.assertEqual((closed.reason, closed.retryAfter), ("superseded", 60.0))
        protocol = await self.dial(server)
        protocol.write(b"newer")
        self.assertEqual(await protocol.read(5), b"newer")
        self.assertIsNotNone(newer.listener.control)

    async def test_revocation(self) -> None:
        """F3: control and data end at once, at both ends."""
        for form in FORMS:
            server = self.server(form)
            agent = await self.agent(server, {"echo": self.target(Echo)})
            protocol = await self.dial(server)
            server.connections.revoke(credential="family:a")
            await protocol.ended
            closed = await agent.session.closed
            self.assertEqual(closed.reason, "closed" if form == "old" else "revoked")
            await self.noStreams(agent)
            await self.assertFailure(Deferred.fromCoroutine(self.dial(server)), NotConnected)

    async def test_theAgentLeaves(self) -> None:
        """An agent that says goodbye leaves no grace behind."""
        server = self.server()
        agent = await self.agent(server, {"echo": self.target(Echo)})
        await agent.stop()
        await self.status(server, None)

    async def test_theServerLeaves(self) -> None:
        """Goodbye with a delay, then the agent leaves by itself; streams finish."""
        server = self.server()
        agent = await self.agent(server, {"echo": self.target(Echo)})
        protocol = await self.dial(server)
        stopping = Deferred.fromCoroutine(server.connections.stop(5.0))
        closed = await agent.session.closed
        self.assertEqual(closed.reason, "goodbye")
        protocol.write(b"still")
        self.assertEqual(await protocol.read(5), b"still")
        self.assertFalse(stopping.called)
        cast(Any, protocol.transport).loseConnection()
        await stopping

    async def test_lateDialBack(self) -> None:
        """C1: the dial-back of a cancelled dial finds no one, and is closed."""
        server = self.server()
        slow = Slow(self.target(Echo), lambda: 0.1)
        agent = await self.agent(server, {"slow": slow})
        refused: list[Any] = []
        original = server.connections.pickUp

        def pickUp(*arguments: Any, **keywords: Any) -> Any:
            try:
                return original(*arguments, **keywords)
            except UnknownDial as error:
                refused.append(error)
                raise

        self.patch(server.connections, "pickUp", pickUp)
        connecting = Deferred.fromCoroutine(self.dial(server))
        await self.underWay(agent, 1)
        connecting.cancel()
        await self.assertFailure(connecting, CancelledError)
        other = await self.dial(server)
        other.write(b"mine")
        self.assertEqual(await other.read(4), b"mine")
        self.assertEqual(len(refused), 1)

    async def test_aTargetThatDoesNotAccept(self) -> None:
        """The target's own limit is told apart from the dial's."""
        server = self.server()

        @implementer(ITarget)
        class Hangs:
            def open(self) -> Deferred[IProtocol]:
                never: Deferred[IProtocol] = Deferred()
                reactor.callLater(
                    0.05, never.errback, Failure(TargetTimeout("127.0.0.1:9: no answer in 5 s"))
                )
                return never

        await self.agent(server, {"hangs": cast(ITarget, Hangs())})
        error = await self.assertFailure(Deferred.fromCoroutine(self.dial(server)), TargetTimeout)
        self.assertIn("127.0.0.1:9", str(error))
