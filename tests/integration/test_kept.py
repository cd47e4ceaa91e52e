"""Control connections that go from one server to the next, on real sockets, byte for byte."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from helix_revdial.revdial.errors import HeldByAnother, NotConnected
from helix_revdial.revdial.features import ALL
from helix_revdial.revdial.kept import Released, adopt, release

from .tunnels import Agent, Collector, Echo, Server, listen, quiet, reactor, until

KEEP_ALIVE = b'{"command":"keep-alive","echo":"%s"}\n'


class KeptTests(TestCase):
    timeout = 30

    def server(self, form: str = "raw") -> Server:
        server = Server(form)
        self.addCleanup(server.stop)
        return server

    def connect(self, server: Server, *, offer: bool = True) -> socket.socket:
        """An agent of ten lines: its socket, after the answer to its registration."""
        port: Any = server.port.getHost()
        agent = socket.create_connection(("127.0.0.1", port.port))
        self.addCleanup(agent.close)
        agent.setblocking(False)
        lines = [b"GET /api/v1/revdial?runnerid=wolf-1 HTTP/1.1", b"Host: x"]
        if offer:
            lines += [
                b"Connection: Upgrade",
                b"Upgrade: revdial",
                b"Revdial-Features: " + ", ".join(sorted(ALL)).encode(),
            ]
        else:
            lines.append(b"Connection: Upgrade")
        agent.sendall(b"\r\n".join(lines) + b"\r\n\r\n")
        return agent

    async def read(self, agent: socket.socket, until_: bytes) -> bytes:
        """What comes, up to and with C{until_}."""
        found = bytearray()

        def more() -> bool:
            try:
                data = agent.recv(65536)
            except BlockingIOError:
                return False
            found.extend(data)
            return until_ in found or not data

        await until(more, f"{until_!r} in {bytes(found)!r}")
        return bytes(found)

    async def released(self, server: Server) -> tuple[Released, socket.socket]:
        """The one connection that C{server} lets go of, and its socket for another."""
        await until(lambda: server.connections.details(), "a registration")
        await until(
            lambda: server.connections.details()[0].carrier in ("raw", "hijack"), "a carrier"
        )
        await deferLater(reactor, 0.05)
        [one] = release(server.connections, 10)
        self.assertEqual(server.connections.details(), [])
        return one, socket.socket(fileno=os.dup(one.descriptor))

    async def test_lineThatIsCut(self) -> None:
        """
        A line that was begun before the hand-over and ended after it is one line,
        wherever it is cut; and what is in the kernel meanwhile is read.
        """
        for place in (0, 1, 20, len(KEEP_ALIVE % b"x") - 1):
            first, second = self.server(), self.server()
            agent = self.connect(first)
            await self.read(agent, b'"keep-alive"')
            line = KEEP_ALIVE % f"cut-{place}".encode()
            agent.sendall(line[:place])
            one, connection = await self.released(first)
            self.assertEqual(len(one.state.pending) > 0, place > 0)
            agent.sendall(line[place:])
            # A process is between the two: what is written down is what there is.
            await adopt(reactor, second.connections, connection, one.state)
            answered = await self.read(agent, b"cut-")
            self.assertEqual(answered.count(b'{"command":"echo","echo":"cut-'), 1, answered)
            await first.stop()
            self.assertEqual(second.connections.status("wolf-1"), "connected")
            await second.stop()

    async def test_hijacked(self) -> None:
        """The connection of an agent of 2025 goes on the same way, without a head."""
        first, second = self.server("old"), self.server("old")
        agent = self.connect(first, offer=False)
        await self.read(agent, b'"keep-alive"')
        one, connection = await self.released(first)
        self.assertEqual((one.state.carrier, one.state.offered), ("hijack", False))
        await adopt(reactor, second.connections, connection, one.state)
        data = await self.read(agent, b'"keep-alive"')
        self.assertTrue(data.startswith(b'{"command":"keep-alive"}\n'), data)

    async def test_dialsAfterwards(self) -> None:
        """The next server dials through it, and asks under its own generation."""
        first, second = self.server(), self.server()
        agent = self.connect(first)
        await self.read(agent, b'"keep-alive"')
        one, connection = await self.released(first)
        registration = await adopt(reactor, second.connections, connection, one.state)
        self.assertEqual(registration.connectedSince, one.state.connectedSince)
        dialling = second.connections.endpoint("wolf-1").connect(quiet(Collector))
        dialling.addErrback(lambda _: None)
        data = await self.read(agent, b"conn-ready")
        [ready] = [json.loads(line) for line in data.splitlines() if b"conn-ready" in line]
        self.assertIn("ticket", ready)

    async def test_dialsUnderWay(self) -> None:
        """A dial that an agent was asked for and has not answered fails at once."""
        first = self.server()
        agent = self.connect(first)
        await self.read(agent, b'"keep-alive"')
        dialling = first.connections.endpoint("wolf-1").connect(quiet(Collector))
        await self.read(agent, b"conn-ready")
        _, connection = await self.released(first)
        connection.close()
        error: Any = await self.assertFailure(dialling, NotConnected)
        self.assertEqual(error.retryAfter, 1.0)

    async def test_nameIsAnothers(self) -> None:
        """A4: a name that another owner has by now is not taken over."""
        first, second = self.server(), self.server()
        agent = self.connect(first)
        await self.read(agent, b'"keep-alive"')
        one, connection = await self.released(first)
        await second.connections.register(
            "wolf-1", "family:b", "family:b", features=ALL, offered=True, peer="x"
        )
        with self.assertRaises(HeldByAnother):
            await adopt(reactor, second.connections, connection, one.state)
        self.assertEqual(connection.fileno(), -1, "the descriptor leaks")

    async def test_agentIsGone(self) -> None:
        """An agent that went away meanwhile leaves nothing registered for long."""
        first, second = self.server(), self.server()
        agent = self.connect(first)
        await self.read(agent, b'"keep-alive"')
        one, connection = await self.released(first)
        agent.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        agent.close()
        await deferLater(reactor, 0.05)
        with self.assertRaises(OSError):
            await adopt(reactor, second.connections, connection, one.state)
        await until(lambda: second.connections.status("wolf-1") != "connected", "its end")

    async def test_socketsOnly(self) -> None:
        """A WebSocket has more state than a socket: it is not kept, but closed as ever."""
        server = self.server("websocket")
        port, _ = listen(Echo)
        self.addCleanup(port.stopListening)
        agent = await Agent(server, {}).connect()
        self.addCleanup(agent.stop)
        self.assertEqual(release(server.connections, 10), [])
        self.assertEqual(server.connections.status("wolf-1"), "connected")

    async def test_most(self) -> None:
        """No more are let go of than can be kept."""
        server = self.server()
        agent = self.connect(server)
        await self.read(agent, b'"keep-alive"')
        self.assertEqual(release(server.connections, 0), [])
        self.assertEqual(server.connections.status("wolf-1"), "connected")

    async def test_nothingIsSentMeanwhile(self) -> None:
        """Between the processes the connection is silent, and it is not closed."""
        first = self.server()
        agent = self.connect(first)
        await self.read(agent, b'"keep-alive"')
        _, connection = await self.released(first)
        await first.stop()
        agent.sendall(KEEP_ALIVE % b"later")
        await deferLater(reactor, 0.1)
        self.assertRaises(BlockingIOError, agent.recv, 100)
        self.assertEqual(connection.recv(1000), KEEP_ALIVE % b"later")
        connection.close()
