"""Both ends of a WebSocket carrier in memory, and one end against bytes by hand."""

from __future__ import annotations

import struct
from typing import Any

from twisted.internet import error
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial import websocket
from helix_revdial.revdial.exchange import CarrierURL
from helix_revdial.revdial.websocket import WebSocketEndpoint, webSocketServer
from helix_revdial.revdial.websocket_transport import FAIL_TIMEOUT
from tests.revdial.wire import HalfRecorder, HeadThen, Recorder, Wire, WireEndpoint, dataHead

URL = CarrierURL("cp.example", 8080, False, "/api/v1/revdial?runnerid=wolf-1")

REQUEST = (
    b"GET /api/v1/revdial HTTP/1.1\r\nHost: cp.example\r\nConnection: keep-alive, Upgrade\r\n"
    b"Upgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True) -> bytes:
    """One frame as a client sends it, by hand."""
    head = bytes([(0x80 if fin else 0) | opcode])
    bit = 0x80 if masked else 0
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 65536:
        head += bytes([bit | 126]) + struct.pack("!H", len(payload))
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", len(payload))
    if not masked:
        return head + payload
    key = b"\x11\x22\x33\x44"
    mask = key * (len(payload) // 4 + 1)
    return head + key + bytes(a ^ b for a, b in zip(payload, mask, strict=False))


def frames(data: bytes) -> list[tuple[bool, int, bytes]]:
    """Take unmasked frames apart: (fin, opcode, payload)."""
    found = []
    while data:
        fin, opcode, size = bool(data[0] & 0x80), data[0] & 0x0F, data[1]
        assert size < 128, "masked"
        start = 2
        if size == 126:
            size, start = struct.unpack("!H", data[2:4])[0], 4
        elif size == 127:
            size, start = struct.unpack("!Q", data[2:10])[0], 10
        found.append((fin, opcode, data[start : start + size]))
        data = data[start + size :]
    return found


class WireCase(SynchronousTestCase):
    """
    Two ends over a connection in memory.

    @ivar wire: The connection; its left is the client's.
    @ivar failures: What the server's end said in place of a stream.
    """

    wire: Wire

    def setUp(self) -> None:
        self.clock = Clock()
        self.failures: list[Failure] = []

    def settle(self, size: int = 65536) -> None:
        """Move everything that can move."""
        self.wire.settle(size, self.clock)

    def nothingIsLeft(self) -> None:
        """Both ends are gone, and no timer remains."""
        self.assertFalse(self.wire.left.connected)
        self.assertFalse(self.wire.right.connected)
        self.assertEqual(self.clock.getDelayedCalls(), [])


def serverHead(server: Any, clock: Clock, *, eof: bool = False, **more: Any) -> HeadThen:
    return HeadThen(lambda: webSocketServer(server, eof=eof, clock=clock, **more), replayHead=True)


def dataServerHead(server: Any, clock: Clock, *, eof: bool = False, **more: Any) -> HeadThen:
    return dataHead(server, eof=eof, clock=clock, **more)


class PairCase(WireCase):
    """
    Our client and our server, over a WebSocket in memory.

    @cvar dialling: The client's endpoint.
    @cvar serverHead: Makes the server's end.
    """

    dialling: Any = WebSocketEndpoint
    serverHead: Any = staticmethod(serverHead)

    def pair(
        self,
        client: Any = None,
        server: Any = None,
        *,
        eof: bool = True,
        responseHeaders: Any = (),
        headers: Any = (),
        settle: bool = True,
    ) -> None:
        """Connect; the client's side of C{self.wire} is its left."""
        self.client = client or HalfRecorder()
        self.server = server or HalfRecorder()
        self.endpoint = WireEndpoint(
            lambda: self.serverHead(
                self.server,
                self.clock,
                eof=eof,
                responseHeaders=responseHeaders,
                onFailure=self.failures.append,
            )
        )
        endpoint = self.dialling(self.clock, self.endpoint, URL, headers, eof=eof)
        self.connected = endpoint.connect(Factory.forProtocol(lambda: self.client))
        self.wire = self.endpoint.wires[0]
        if settle:
            self.settle()
            self.assertIs(self.successResultOf(self.connected), self.client)


class Greeter(HalfRecorder):
    """Speaks first."""

    def connectionMade(self) -> None:
        super().connectionMade()
        self.wire.write(b"220 ready\r\n")


class NotingProducer:
    """Notes what it is told."""

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


def same(client: Recorder) -> Recorder:
    return client


def answerTo(request: bytes) -> bytes:
    wire = Wire(Recorder(), serverHead(Recorder(), Clock())).connect()
    wire.right.protocol.dataReceived(request)
    return bytes(wire.right.out)


def acceptOf(answer: bytes) -> bytes:
    return answer.split(b"Sec-WebSocket-Accept: ")[1].split(b"\r\n")[0]


class RawCase(SynchronousTestCase):
    """Our server against bytes by hand."""

    serverHead: Any = staticmethod(serverHead)

    def serve(self, *, eof: bool = False, maxFrame: int = websocket.MAX_FRAME) -> None:
        """Do the handshake; C{self.wire.right} is the server's transport."""
        self.clock = Clock()
        self.server = HalfRecorder()
        self.peer = Recorder()
        self.wire = Wire(
            self.peer, self.serverHead(self.server, self.clock, eof=eof, maxFrame=maxFrame)
        ).connect()
        self.wire.left.write(REQUEST)
        self.wire.settle()
        self.assertTrue(self.peer.received.startswith(b"HTTP/1.1 101 "), self.peer.received)
        del self.peer.received[:]

    def send(self, *parts: bytes, size: int = 65536) -> list[tuple[bool, int, bytes]]:
        """Send bytes; what the server answers."""
        self.wire.left.write(b"".join(parts))
        self.wire.settle(size, self.clock)
        return frames(bytes(self.peer.received))

    def refused(self, code: int, *parts: bytes) -> None:
        """The server closes with C{code}, tells the protocol, and leaves nothing."""
        answer = self.send(*parts)
        self.assertEqual(answer[0][1], 8, answer)
        self.assertEqual(struct.unpack("!H", answer[0][2][:2])[0], code)
        self.assertEqual(len(answer), 1)
        self.clock.advance(FAIL_TIMEOUT)
        self.wire.settle(clock=self.clock)
        self.assertIsInstance(self.server.reason, error.ConnectionLost)
        self.assertFalse(self.wire.right.connected)
        self.assertEqual(self.clock.getDelayedCalls(), [])
