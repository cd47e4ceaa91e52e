"""
Callers that do not wait: what they send with their request, over connections that the
agent has parked, whatever way they come in, and wherever their bytes and the agent's are
split.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.frames import CLOSE, Control, EndMark, FrameReader, frame
from tests.api.harness import Server, Wire, request
from tests.api.test_external_agents import Sandbox
from tests.api.test_stream_gateway import TARGETS, stream
from tests.api.test_tunnel import lines, rawUpgrade

FEATURES = "echo, eof, goodbye, pool, raw, targets, tickets"

EARLY = b"early bytes, and more of them"

FIRST = b"what the target says first"

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: ends\r\n\r\n"


class ParkingAgent(Sandbox):
    """
    An agent with one parked connection.

    @ivar got: What the server has sent for the stream of now, its line first.
    @ivar ended: Whether it has ended that.
    """

    def __init__(self, server: Server, key: str, token: str) -> None:
        super().__init__(server, key, token, Revdial_Targets=TARGETS, Revdial_Features=FEATURES)
        self.begin()

    def begin(self) -> None:
        """For the next stream."""
        self.got = b""
        self.ended = False

    def park(self) -> None:
        """Open the connection that the server asks for."""
        tickets = [one["ticket"] for one in lines(self.control) if one["command"] == "park"]
        self.parked, self.parkedWire = self.server.connect()
        self.parked.dataReceived(
            rawUpgrade("/api/v1/revdial", self.token, Revdial_Ticket=tickets[-1])
        )
        head, _, _ = self.parkedWire.value().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        self.reader = FrameReader(masked=False)
        self.parkedWire.clear()

    def read(self) -> None:
        """Take what has come."""
        data = self.parkedWire.value()
        self.parkedWire.clear()
        for one in self.reader.read(memoryview(bytearray(data))):
            if isinstance(one, EndMark):
                self.ended = True
            elif isinstance(one, Control):
                assert one.opcode != CLOSE, one.payload
            else:
                self.got += bytes(one)

    def connected(self, payload: bytes, split: int) -> None:
        """Say that the target is connected, and what it says, in two pieces."""
        line, newline, _ = self.got.partition(b"\n")
        assert newline, f"no dial: {self.got!r}"
        dial = json.loads(line)["dial"]
        answer = json.dumps({"command": "connected", "dial": dial, "seconds": 0.001}) + "\n"
        if split % 2:
            data = frame(answer.encode() + payload, None)
        else:
            data = frame(answer.encode(), None) + (frame(payload, None) if payload else b"")
        split %= len(data)
        for piece in (data[:split], data[split:]):
            self.parked.dataReceived(piece)

    def send(self, payload: bytes, split: int = 0) -> None:
        """The target speaks, in one frame or in two."""
        split %= len(payload)
        for piece in (payload[:split], payload[split:]):
            if piece:
                self.parked.dataReceived(frame(piece, None))

    def end(self) -> None:
        """The target ends."""
        self.parked.dataReceived(frame(b"", None))

    @property
    def payload(self) -> bytes:
        """What is for the target."""
        return self.got.partition(b"\n")[2]


class EarlyBytesTests(SynchronousTestCase):
    """A1: no byte is lost or doubled."""

    def setUp(self) -> None:
        self.server = Server()
        self.operator = self.server.user("ann")
        self.agent = ParkingAgent(self.server, "wolf-1", self.server.runner("wolf-*"))
        # The first dial is dialled back to; then one is asked for.
        caller, _ = self.caller(stream(self.path, self.operator), 1)
        self.agent.pickUp()
        self.server.clock.advance(0)
        for each in (caller, self.agent.data):
            each.connectionLost(Failure(ConnectionDone()))
        self.agent.park()
        self.assertEqual(self.parked(), 1)

    path = "/api/v1/runners/wolf-1/stream?target=api"
    http = "/api/v1/runners/wolf-1/http/api/x"

    def parked(self) -> int:
        return self.server.connections.sizes()["parked"]

    def caller(self, data: bytes, split: int) -> tuple[Any, Wire]:
        """Somebody who sends so much in two pieces."""
        protocol, wire = self.server.connect()
        for piece in (data[:split], data[split:]):
            protocol.dataReceived(piece)
        return protocol, wire

    def over(self, caller: Any, wire: Wire) -> None:
        """Both have ended: the connection is parked again, and used for the next."""
        clock = self.server.clock
        clock.advance(0)
        if wire.disconnecting:
            caller.connectionLost(Failure(ConnectionDone()))
        clock.advance(0)
        self.agent.read()
        self.assertTrue(self.agent.ended, "the agent has not heard of the end")
        self.assertEqual((self.parked(), self.agent.dials()), (1, 1))
        self.assertEqual(self.server.connections.openStreams, 0)

    def raw(self, split: int) -> None:
        agent, clock = self.agent, self.server.clock
        caller, wire = self.caller(stream(self.path, self.operator) + EARLY, split)
        agent.read()
        agent.connected(FIRST, split)
        clock.advance(0)
        agent.read()
        self.assertEqual(agent.payload, EARLY)
        head, _, rest = wire.value().partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 101 "), head)
        self.assertEqual(rest, FIRST)
        caller.dataReceived(b" late")
        caller.readConnectionLost()
        agent.send(b" last")
        agent.end()
        agent.read()
        self.assertEqual(agent.payload, EARLY + b" late")
        self.assertTrue(wire.value().endswith(FIRST + b" last"))
        self.over(caller, wire)

    def test_rawStreams(self) -> None:
        """Bytes behind the request for a raw stream, at every split of both ends' bytes."""
        whole = len(stream(self.path, self.operator) + EARLY)
        for split in range(1, whole):
            self.agent.begin()
            self.raw(split)

    def test_webSocketStreams(self) -> None:
        """Frames behind the request for a WebSocket, at every split."""
        asks = stream(self.path, self.operator, upgrade="websocket", Revdial_Features="eof")
        early = frame(EARLY[:9], b"abcd") + frame(EARLY[9:], b"efgh")
        for split in range(1, len(asks + early)):
            agent = self.agent
            agent.begin()
            caller, wire = self.caller(asks + early, split)
            agent.read()
            agent.connected(FIRST, split)
            self.server.clock.advance(0)
            agent.read()
            self.assertEqual(agent.payload, EARLY, split)
            caller.dataReceived(frame(b"", b"ijkl"))
            agent.end()
            self.server.clock.advance(0)
            found = FrameReader(masked=False).read(
                memoryview(bytearray(wire.value().partition(b"\r\n\r\n")[2]))
            )
            said = b"".join(bytes(one) for one in found if isinstance(one, memoryview))
            ends = [isinstance(one, EndMark) for one in found]
            self.assertEqual((said, ends.count(True)), (FIRST, 1), split)
            caller.dataReceived(frame(b"\x03\xe8", b"mnop", CLOSE))
            self.over(caller, wire)

    def test_requests(self) -> None:
        """A request with a body, by the HTTP gateway, at every split."""
        asks = request("POST", self.http, self.operator, EARLY, {"Connection": "close"})
        for split in range(1, len(asks)):
            agent = self.agent
            agent.begin()
            caller, wire = self.caller(asks, split)
            agent.read()
            # The answer comes when the request is there.
            agent.connected(b"", split)
            agent.read()
            self.assertEqual(agent.payload.partition(b"\r\n\r\n")[2], EARLY, split)
            self.assertTrue(agent.payload.startswith(b"POST /x HTTP/1.1\r\n"), split)
            agent.send(OK, split)
            agent.end()
            self.assertTrue(wire.value().endswith(b"\r\n\r\nok"), wire.value())
            self.over(caller, wire)

    def test_upgrades(self) -> None:
        """Bytes behind a request that is upgraded, by the HTTP gateway, at every split."""
        asks = request(
            "GET", self.http, self.operator, headers={"Connection": "Upgrade", "Upgrade": "ends"}
        )
        for split in range(1, len(asks + EARLY)):
            agent = self.agent
            agent.begin()
            caller, wire = self.caller(asks + EARLY, split)
            agent.read()
            agent.connected(b"", split)
            agent.read()
            self.assertTrue(agent.payload.endswith(b"\r\n\r\n"), "not before the service switches")
            agent.send(SWITCH + FIRST, split)
            self.server.clock.advance(0)
            agent.read()
            self.assertEqual(agent.payload.partition(b"\r\n\r\n")[2], EARLY, split)
            self.assertEqual(wire.value().partition(b"\r\n\r\n")[2], FIRST, split)
            caller.readConnectionLost()
            agent.end()
            self.over(caller, wire)
