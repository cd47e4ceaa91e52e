"""
Stand-ins of the Go programs against our server and our agent, over real sockets.

What the stand-ins do on the wire is proven in L{tests.integration.test_go_wire}.
"""

from __future__ import annotations

import os
from hashlib import sha256
from typing import Any, cast

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from helix_revdial.agent.targets import LocalTarget, parseTarget
from helix_revdial.revdial.interfaces import ITarget
from helix_revdial.revdial.parked import PoolLimits
from tests.integration.go_agent import GoAgent
from tests.integration.go_server import GoServer, ServerConnection
from tests.integration.gorilla import COPY, ERA_2025, ERA_2026, Connect
from tests.integration.tunnels import (
    Agent,
    Collector,
    Echo,
    Server,
    collector,
    listen,
    reactor,
    until,
)

BODY = bytes(range(256)) * (5 * 4096 - 1) + b"the end"
"""Five megabytes that no frame's border divides evenly."""


class Body(Protocol):
    """A service that answers with L{BODY} and closes: nothing else says where it ends."""

    def connectionMade(self) -> None:
        transport = cast(Any, self.transport)
        transport.write(BODY)
        transport.loseConnection()


class GoCase(TestCase):
    """Starts services and ends them."""

    timeout = 60

    def service(self, protocol: type[Protocol]) -> str:
        """A local service: its address."""
        port, address = listen(protocol)
        self.addCleanup(port.stopListening)
        return address

    async def downAddress(self) -> str:
        """An address where nothing listens."""
        port, address = listen(Echo)
        await cast(Any, port.stopListening())
        return address


class GoAgentChecks(GoCase):
    """What holds for an agent of either era at our server."""

    era: str

    def server(self) -> Server:
        # As servers are: connections of newer agents would be parked.
        server = Server(pool=PoolLimits())
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        return server

    def connect(self, address: str) -> Connect:
        host, _, port = address.rpartition(":")

        def connect(protocol: Protocol, failed: Any) -> None:
            factory = Factory.forProtocol(lambda: protocol)
            factory.noisy = False
            self.opened.append(protocol)
            connecting = TCP4ClientEndpoint(reactor, host, int(port)).connect(factory)
            connecting.addErrback(
                lambda _: failed(f"dial tcp {address}: connect: connection refused")
            )

        return connect

    async def agent(self, server: Server, target: str) -> GoAgent:
        """An agent that is registered."""
        self.opened: list[Protocol] = []
        address = server.url.removeprefix("http://")
        agent = GoAgent(
            reactor,
            self.era,
            address,
            "wolf-1",
            dialServer=self.connect(address),
            dialTarget=self.connect(target),
            reconnect=0.1,
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(self.end(agent)))
        agent.start()
        await until(lambda: server.connections.status("wolf-1") == "connected", "registration")
        return agent

    async def end(self, agent: GoAgent) -> None:
        agent.stop()
        for protocol in self.opened:
            if protocol.transport is not None:
                protocol.transport.loseConnection()
        await until(
            lambda: (
                not any(
                    cast(Any, one.transport).connected
                    for one in self.opened
                    if one.transport is not None
                )
            ),
            "the agent's sockets are closed",
        )

    async def dial(self, server: Server) -> Collector:
        return cast(Collector, await server.connections.endpoint("wolf-1").connect(collector()))

    async def nothingLeft(self, server: Server, sockets: int) -> None:
        """No dial, no stream, no socket beyond those of before; and none was parked."""
        self.assertEqual(server.connections.poolEvents().get("opened", 0), 0)
        await until(lambda: not server.connections._streams, "the streams ended")
        self.assertEqual(server.connections._calls, {})
        self.assertEqual(server.connections.stats().pendingDialsTotal, 0)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= sockets, "the sockets are closed")

    async def test_aHundredDials(self) -> None:
        """A hundred at once: each caller gets back what it sent, and no other's."""
        server = self.server()
        await self.agent(server, self.service(Echo))
        sockets = len(os.listdir("/proc/self/fd"))

        async def one(server: Server, number: int) -> None:
            protocol = await self.dial(server)
            said = sha256(b"%d" % number).digest() * 400
            protocol.write(said)
            self.assertEqual(await protocol.read(len(said)), said)
            cast(Any, protocol.transport).loseConnection()

        await gatherResults(
            [Deferred.fromCoroutine(one(server, number)) for number in range(100)],
            consumeErrors=True,
        )
        await self.nothingLeft(server, sockets)

    async def test_bodyThatOnlyItsEndDelimits(self) -> None:
        """Five megabytes, then TCP's end without a close frame: whole, and an orderly end."""
        server = self.server()
        await self.agent(server, self.service(Body))
        sockets = len(os.listdir("/proc/self/fd"))
        protocol = await self.dial(server)
        self.assertIsInstance(await protocol.ended, ConnectionDone)
        self.assertEqual(len(protocol.received), len(BODY))
        self.assertEqual(sha256(protocol.received).digest(), sha256(BODY).digest())
        await self.nothingLeft(server, sockets)

    async def test_killedInTheMiddleOfAMessage(self) -> None:
        """An agent that is cut within a message breaks the stream: that is no orderly end."""
        server = self.server()
        agent = await self.agent(server, self.service(Echo))
        protocol = await self.dial(server)
        data = cast(Any, self.opened[1])
        data.wire.write(b"\x02\xfe\x10\x00\0\0\0\0" + b"x" * 4096)
        await protocol.read(4096)
        data.close()
        self.assertIsInstance(await protocol.ended, ConnectionLost)
        self.assertNotIsInstance(await self.dialAgain(server), BaseException)
        agent.stop()

    async def dialAgain(self, server: Server) -> Collector:
        protocol = await self.dial(server)
        protocol.write(b"again")
        self.assertEqual(await protocol.read(5), b"again")
        cast(Any, protocol.transport).loseConnection()
        return protocol

    async def test_largeWrites(self) -> None:
        """Five megabytes from the caller to the service and back."""
        server = self.server()
        await self.agent(server, self.service(Echo))
        protocol = await self.dial(server)
        protocol.write(BODY)
        found = await protocol.read(len(BODY))
        self.assertEqual(sha256(found).digest(), sha256(BODY).digest())
        cast(Any, protocol.transport).loseConnection()
        await protocol.ended

    async def test_dialsWaitForTheReturn(self) -> None:
        """
        The control connection dies without a word: dials wait, and are answered when the
        agent is back, although they are due at the moment of its registration (which an
        agent of 2025 would miss, had they left with the head).  Streams go on.
        """
        server = self.server()
        agent = await self.agent(server, self.service(Echo))
        joined = await self.dial(server)
        agent.reconnect = 0.5
        assert agent.control is not None
        agent.control.close()
        await until(lambda: server.connections.status("wolf-1") == "grace", "grace")
        dials = [Deferred.fromCoroutine(self.dialAgain(server)) for _ in range(10)]
        self.assertEqual(server.connections.stats().pendingDialsTotal, 10)
        await gatherResults(dials, consumeErrors=True)
        joined.write(b"still")
        self.assertEqual(await joined.read(5), b"still")
        cast(Any, joined.transport).loseConnection()

    async def test_targetDown(self) -> None:
        """These agents pick up first: the caller has a stream that ends at once, empty."""
        server = self.server()
        agent = await self.agent(server, await self.downAddress())
        sockets = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            protocol = await self.dial(server)
            await protocol.ended
            self.assertEqual(bytes(protocol.received), b"")
        self.assertEqual(len([entry for entry in agent.log if "local:" in entry]), 3)
        await self.nothingLeft(server, sockets)


class Port:
    """Where a Go server listens, as our agent's stand takes it."""

    def __init__(self, url: str, form: str) -> None:
        self.url = url
        self.form = form


class GoServerChecks(GoCase):
    """What holds for our agent at a server of either era, over either control form."""

    era: str
    form: str

    async def pair(self, address: str) -> tuple[GoServer, Agent]:
        """A server and our agent, connected."""
        server = GoServer(reactor, self.era, token="token")
        port = reactor.listenTCP(0, server, interface="127.0.0.1")
        target: ITarget = LocalTarget(reactor, parseTarget(address))
        agent = Agent(
            cast(Any, Port(f"http://127.0.0.1:{port.getHost().port}", self.form)),
            {"service": target},
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(self.end(server, port, agent)))
        await agent.connect()
        self.assertEqual(agent.session.carrier, "hijack" if self.form == "raw" else "websocket")
        self.assertEqual(agent.session.features, frozenset())
        return server, agent

    async def end(self, server: GoServer, port: Any, agent: Agent) -> None:
        await agent.stop()
        for connection in server.connections:
            connection.close()
        await until(
            lambda: all(connection.lost.called for connection in server.connections),
            "the server's sockets are closed",
        )
        await port.stopListening()

    async def upTo(self, connection: ServerConnection, size: int) -> bytes:
        await until(lambda: len(connection.data) >= size, f"{size} bytes")
        return bytes(connection.data)

    async def test_aHundredDials(self) -> None:
        """A hundred at once; also where the server gives any connection to any dial."""
        server, agent = await self.pair(self.service(Echo))
        sockets = len(os.listdir("/proc/self/fd"))

        async def one(server: GoServer, number: int) -> None:
            connection = await server.dial()
            said = sha256(b"%d" % number).digest() * 400
            connection.send(said)
            self.assertEqual(await self.upTo(connection, len(said)), said)
            connection.close()

        await gatherResults(
            [Deferred.fromCoroutine(one(server, number)) for number in range(100)],
            consumeErrors=True,
        )
        await until(lambda: not agent.listener.openStreams, "the agent's streams ended")
        await until(lambda: len(os.listdir("/proc/self/fd")) <= sockets, "the sockets are closed")

    async def test_largeWrites(self) -> None:
        """Writes of 32 KiB, each a frame and an empty last one; five megabytes, and back."""
        server, _ = await self.pair(self.service(Echo))
        connection = await server.dial()
        for at in range(0, len(BODY), COPY):
            connection.send(BODY[at : at + COPY])
        found = await self.upTo(connection, len(BODY))
        self.assertEqual(sha256(found).digest(), sha256(BODY).digest())
        connection.close()

    async def test_bodyThatOnlyItsEndDelimits(self) -> None:
        """The service's last byte arrives before the end does."""
        server, agent = await self.pair(self.service(Body))
        connection = await server.dial()
        await connection.over
        self.assertEqual(sha256(connection.data).digest(), sha256(BODY).digest())
        await until(lambda: not agent.listener.openStreams, "the agent's stream ended")

    async def test_targetDown(self) -> None:
        """The server's dial fails with a reason, since we pick up only what is connected."""
        server, _ = await self.pair(await self.downAddress())
        failures = await gatherResults(
            [self.assertFailure(server.dial(), ConnectionLost) for _ in range(5)]
        )
        for failure in failures:
            self.assertIn("refused", str(failure))
        self.assertEqual(len(server.controls[0].failures), 5)
        self.assertTrue(
            all(
                set(told) <= {"command", "connPath", "err", "reason"}
                for told in server.controls[0].failures
            )
        )

    async def test_theServerGoesAway(self) -> None:
        """1006 on control: the agent knows at once; streams go on; it can come back."""
        server, agent = await self.pair(self.service(Echo))
        joined = await server.dial()
        server.controls[0].close()
        await agent.session.closed
        joined.send(b"still")
        self.assertEqual(await self.upTo(joined, 5), b"still")
        await agent.connect()
        again = await server.dial()
        again.send(b"again")
        self.assertEqual(await self.upTo(again, 5), b"again")
        joined.close()
        again.close()
        await until(lambda: not agent.listener.openStreams, "the agent's streams ended")


class AgentOf2025Tests(GoAgentChecks):
    """November 2025: control by the hijack."""

    era = ERA_2025


class AgentOf2026Tests(GoAgentChecks):
    """August 2026: control over WebSocket."""

    era = ERA_2026


class ServerOf2025Tests(GoServerChecks):
    """November 2025, which takes our raw upgrade for the hijack; no request ids."""

    era, form = ERA_2025, "raw"


class ServerOf2025OverWebSocketTests(GoServerChecks):
    """The same, control over WebSocket."""

    era, form = ERA_2025, "websocket"


class ServerOf2026Tests(GoServerChecks):
    """August 2026, which takes our raw upgrade for the hijack too."""

    era, form = ERA_2026, "raw"


class ServerOf2026OverWebSocketTests(GoServerChecks):
    """The same, control over WebSocket, with its pings."""

    era, form = ERA_2026, "websocket"


# Only with an era are they tests.
del GoAgentChecks, GoServerChecks, GoCase
