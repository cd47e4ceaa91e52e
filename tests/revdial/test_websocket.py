"""Tests for L{helix_revdial.revdial.websocket} and its transport."""

from __future__ import annotations

import os
import random
import struct
from functools import partial
from typing import Any

import txaio
from autobahn.websocket import protocol as autobahnProtocol
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from helix_revdial.revdial import websocket
from helix_revdial.revdial.carrier import ClosedByPeer
from helix_revdial.revdial.exchange import CarrierURL, MalformedAnswer, UpgradeRefused
from helix_revdial.revdial.interfaces import ICarrierTransport
from helix_revdial.revdial.websocket import WebSocketEndpoint, requireNVX, webSocketServer
from helix_revdial.revdial.websocket_transport import CLOSE_TIMEOUT, DROP_TIMEOUT, FAIL_TIMEOUT
from tests.revdial.wire import HalfRecorder, HeadThen, Recorder, Wire, WireEndpoint

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


class PairCase(SynchronousTestCase):
    """Our client and our server, over a connection in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.failures: list[Failure] = []

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
            lambda: HeadThen(
                lambda: webSocketServer(
                    self.server,
                    eof=eof,
                    responseHeaders=responseHeaders,
                    clock=self.clock,
                    onFailure=self.failures.append,
                ),
                replayHead=True,
            )
        )
        endpoint = WebSocketEndpoint(self.clock, self.endpoint, URL, headers, eof=eof)
        self.connected = endpoint.connect(Factory.forProtocol(lambda: self.client))
        self.wire = self.endpoint.wires[0]
        if settle:
            self.settle()
            self.assertIs(self.successResultOf(self.connected), self.client)

    def settle(self, size: int = 65536) -> None:
        """Move everything that can move."""
        self.wire.settle(size, self.clock)

    def nothingIsLeft(self) -> None:
        """Both ends are gone, and no timer remains."""
        self.assertFalse(self.wire.left.connected)
        self.assertFalse(self.wire.right.connected)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class StreamTests(PairCase):
    """A byte stream in messages."""

    def test_transportsSayWhatTheyAre(self) -> None:
        """Both transports provide the carrier's interface, and say what they can."""
        self.pair(responseHeaders=[(b"Revdial-Features", b"eof, raw")])
        for recorder in (self.client, self.server):
            self.assertTrue(verifyObject(ICarrierTransport, recorder.wire))
            self.assertEqual(recorder.wire.carrier, "websocket")
            self.assertTrue(recorder.wire.halfClose)
        self.assertIn((b"revdial-features", b"eof, raw"), self.client.wire.responseHeaders)
        self.assertEqual(self.server.wire.responseHeaders, ())
        self.assertEqual(self.client.wire.getPeer().host, "192.0.2.1")

    def test_bytesArriveWhole(self) -> None:
        """Any amount, both ways, in any chunks on the wire, is counted and arrives."""
        self.pair()
        body = os.urandom(700_001)
        for chunk in (body[:1], body[1:70_000], body[70_000:]):
            self.client.wire.write(chunk)
            self.server.wire.writeSequence([chunk[:5], chunk[5:]])
        self.settle(4099)
        self.assertEqual(bytes(self.server.received), body)
        self.assertEqual(bytes(self.client.received), body)
        self.assertEqual(self.client.wire.bytesSent, len(body))
        self.assertEqual(self.client.wire.bytesReceived, len(body))
        self.client.wire.loseConnection()
        self.settle()
        self.nothingIsLeft()

    def test_messagesAreOfAtMost64KiB(self) -> None:
        """A large write is cut; a sequence is one message."""
        self.pair()
        self.server.wire.write(bytes(65536 * 2 + 1))
        self.server.wire.writeSequence([b"a", b"b", b"c"])
        sent = frames(bytes(self.wire.right.out))
        self.assertEqual([len(payload) for _, _, payload in sent], [65536, 65536, 1, 3])
        self.assertEqual({(fin, opcode) for fin, opcode, _ in sent}, {(True, 2)})

    def test_oneFullMessageDoesNotFillTheWriteBuffer(self) -> None:
        """The socket's limit leaves room for a message and its header."""
        self.pair()
        paused: list[str] = []
        self.client.wire.registerProducer(_Producer(paused), True)
        self.client.wire.write(bytes(65536))
        self.assertEqual(paused, [])
        self.client.wire.write(bytes(100))
        self.assertEqual(paused, ["pause"])

    def test_bytesWithTheHandshakeAreKeptAtEverySplit(self) -> None:
        """
        C5, C6: Bytes that follow the 101, or the request, in one segment reach the
        protocol, wherever the segment is cut; a server may speak first.
        """
        self.pair(server=_Greeter(), settle=False)
        request = bytes(self.wire.left.out)
        del self.wire.left.out[:]
        self.wire.right.protocol.dataReceived(request)
        answer = bytes(self.wire.right.out)
        self.assertIn(b"220 ready", answer)
        accept = _acceptOf(answer)
        for split in range(1, len(answer)):
            self.pair(settle=False)
            own = _acceptOf(_answerTo(bytes(self.wire.left.out)))
            mine = answer.replace(accept, own)
            self.wire.left.protocol.dataReceived(mine[:split])
            self.wire.left.protocol.dataReceived(mine[split:])
            self.assertEqual(bytes(self.client.received), b"220 ready\r\n", f"split at {split}")

    def test_bytesWithTheRequestAreKeptAtEverySplit(self) -> None:
        """C5: Frames that follow the request in one segment reach the protocol."""
        stream = REQUEST + frame(2, b"hello") + frame(2, b" world")
        for split in range(1, len(stream)):
            server = Recorder()
            wire = Wire(Recorder(), _head(server, self.clock)).connect()
            wire.right.protocol.dataReceived(stream[:split])
            wire.right.protocol.dataReceived(stream[split:])
            self.assertEqual(bytes(server.received), b"hello world", f"split at {split}")

    @settings(deadline=None, max_examples=25)
    @given(st.lists(st.integers(0, 70_000), max_size=4), st.integers(500, 70_000))
    def test_anyWritesInAnyChunks(self, writes: list[int], chunk: int) -> None:
        """Integrity, whatever is written and however TCP cuts it."""
        self.setUp()
        self.pair()
        source = random.Random(7)
        bodies = {recorder: bytearray() for recorder in (self.client, self.server)}
        for size in writes:
            for recorder, body in bodies.items():
                data = source.randbytes(size)
                body += data
                recorder.wire.write(data)
        for recorder in bodies:
            recorder.wire.loseWriteConnection()
        self.settle(chunk)
        self.assertEqual(self.server.received, bodies[self.client])
        self.assertEqual(self.client.received, bodies[self.server])
        self.assertEqual(self.client.heard[-2:], ["end", "lost"])
        self.assertIsInstance(self.client.reason, error.ConnectionDone)
        self.assertIsInstance(self.server.reason, error.ConnectionDone)
        self.nothingIsLeft()


class _Greeter(HalfRecorder):
    """Speaks first."""

    def connectionMade(self) -> None:
        super().connectionMade()
        self.wire.write(b"220 ready\r\n")


class _Producer:
    """Notes what it is told."""

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


def _same(client: Recorder) -> Recorder:
    return client


def _head(server: Any, clock: Clock, *, eof: bool = False, **more: Any) -> HeadThen:
    return HeadThen(lambda: webSocketServer(server, eof=eof, clock=clock, **more), replayHead=True)


def _answerTo(request: bytes) -> bytes:
    wire = Wire(Recorder(), _head(Recorder(), Clock())).connect()
    wire.right.protocol.dataReceived(request)
    return bytes(wire.right.out)


def _acceptOf(answer: bytes) -> bytes:
    return answer.split(b"Sec-WebSocket-Accept: ")[1].split(b"\r\n")[0]


class RawCase(SynchronousTestCase):
    """Our server against bytes by hand."""

    def serve(self, *, eof: bool = False, maxFrame: int = websocket.MAX_FRAME) -> None:
        """Do the handshake; C{self.wire.right} is the server's transport."""
        self.clock = Clock()
        self.server = HalfRecorder()
        self.peer = Recorder()
        self.wire = Wire(
            self.peer, _head(self.server, self.clock, eof=eof, maxFrame=maxFrame)
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


class FrameTests(RawCase):
    """D20: Frames of every shape."""

    def test_fragmentsAreOneStream(self) -> None:
        """Go's agents send 4 KiB fragments and empty final ones; nothing is an end."""
        self.serve()
        self.send(
            frame(2, b"a" * 4096, fin=False),
            frame(0, b"b" * 4096, fin=False),
            frame(0, b"", fin=True),
            frame(2, b"c"),
            frame(2, b"", fin=False),
            frame(0, b"", fin=True),
            size=1,
        )
        self.assertEqual(bytes(self.server.received), b"a" * 4096 + b"b" * 4096 + b"c")
        self.assertEqual(self.server.heard, ["made", "data"])

    def test_aFragmentIsPassedOnBeforeItsMessageEnds(self) -> None:
        """Half a frame, of a message that never ends, reaches the protocol at once."""
        self.serve()
        self.send(frame(2, bytes(100_000), fin=False)[:50_014])
        self.assertEqual(len(self.server.received), 50_000)

    def test_aPingInsideAMessageIsAnswered(self) -> None:
        """An interleaved ping gets its pong, and parts nothing."""
        self.serve()
        answer = self.send(frame(2, b"one", fin=False), frame(9, b"alive?"), frame(0, b"two"))
        self.assertEqual(answer, [(True, 10, b"alive?")])
        self.assertEqual(bytes(self.server.received), b"onetwo")

    def test_oneByteFrames(self) -> None:
        """The smallest frames make up the same stream."""
        self.serve()
        self.send(b"".join(frame(2, bytes([n])) for n in range(256)))
        self.assertEqual(bytes(self.server.received), bytes(range(256)))

    def test_aFrameOfTheLimitIsTakenAndOneByteMoreIsNot(self) -> None:
        """A frame of exactly the limit passes; its successor closes with 1009."""
        self.serve(maxFrame=100_000)
        self.send(frame(2, bytes(100_000)))
        self.assertEqual(len(self.server.received), 100_000)
        self.refused(1009, frame(2, bytes(100_001)))
        self.assertEqual(len(self.server.received), 100_000)

    def test_aFrameOf16MiBIsNeverHeldInMemory(self) -> None:
        """The default limit is 16 MiB, and its bytes are passed on as they come."""
        self.serve()
        head = b"\x82\xff" + struct.pack("!Q", 16 * 1024 * 1024) + b"\0\0\0\0"
        self.send(head)
        for _ in range(256):
            self.send(bytes(65536))
        self.assertEqual(len(self.server.received), 16 * 1024 * 1024)
        client = self.wire.right.protocol.successor
        self.assertEqual(len(client.data), 0)
        self.assertFalse(hasattr(client, "frame_data"))
        self.refused(1009, b"\x82\xff" + struct.pack("!Q", 16 * 1024 * 1024 + 1) + b"\0\0\0\0")

    def test_aTextFrameIsRefused(self) -> None:
        """D19: A text message closes this connection with 1003."""
        self.serve()
        self.send(frame(2, b"before"))
        self.refused(1003, frame(1, b"text"), frame(2, b"after"))
        self.assertEqual(bytes(self.server.received), b"before")

    def test_anUnmaskedFrameIsRefused(self) -> None:
        """RFC 6455 section 5.1: a client that does not mask is closed with 1002."""
        self.serve()
        self.refused(1002, frame(2, b"bare", masked=False))
        self.assertEqual(bytes(self.server.received), b"")

    def test_malformedFramesAreRefused(self) -> None:
        """F10: Whatever breaks the protocol costs its own connection only."""
        for name, bad in {
            "reserved opcode": frame(3, b"x"),
            "reserved control": frame(11, b"x"),
            "reserved bits": b"\xf2" + frame(2, b"x")[1:],
            "continuation of nothing": frame(0, b"x"),
            "two messages at once": frame(2, b"x", fin=False) + frame(2, b"y"),
            "fragmented ping": frame(9, b"x", fin=False),
            "long ping": frame(9, bytes(126)),
            "close of one byte": frame(8, b"x"),
            "bad close code": frame(8, struct.pack("!H", 1005)),
            "length not minimal": b"\x82\xfe\x00\x01\0\0\0\0x",
            "length over 2^63": b"\x82\xff" + b"\xff" * 8 + b"\0\0\0\0",
        }.items():
            self.serve()
            answer = self.send(bad)
            code = struct.unpack("!H", answer[0][2][:2])[0] if answer else 0
            self.assertIn(code, (1002, 1009), name)
            self.clock.advance(FAIL_TIMEOUT)
            self.wire.settle(clock=self.clock)
            self.assertIsInstance(self.server.reason, error.ConnectionLost, name)
            self.assertEqual(self.clock.getDelayedCalls(), [], name)

    @settings(deadline=None, max_examples=60)
    @given(st.binary(max_size=300), st.integers(1, 40))
    def test_noBytesBreakMoreThanTheirConnection(self, noise: bytes, size: int) -> None:
        """F10: Random bytes are a stream or a clean end, never an exception."""
        self.serve()
        self.send(noise, size=size)
        self.peer.wire.loseConnection()
        self.wire.settle(clock=self.clock)
        self.clock.pump([FAIL_TIMEOUT, CLOSE_TIMEOUT, CLOSE_TIMEOUT])
        self.wire.settle(clock=self.clock)
        self.assertEqual(self.server.heard.count("lost"), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aBrokenPeerThatGoesOnSendingIsDroppedInTime(self) -> None:
        """After a refusal nothing is kept, and the socket goes after a second."""
        self.serve()
        self.send(frame(1, b"text"))
        server = self.wire.right.protocol.successor
        for _ in range(20):
            self.send(bytes(65536))
        self.assertEqual(len(server.data), 0)
        self.assertTrue(self.wire.right.connected)
        self.clock.advance(FAIL_TIMEOUT)
        self.wire.settle(clock=self.clock)
        self.assertFalse(self.wire.right.connected)

    def test_pingsDoNotFillMemory(self) -> None:
        """
        A peer that pings and does not read gets one pong, for the last ping, when it
        reads again (RFC 6455 section 5.5.3).
        """
        self.serve()
        self.peer.wire.pauseProducing()
        self.server.wire.write(bytes(200_000))
        self.wire.left.write(b"".join(frame(9, b"%04d" % n + bytes(100)) for n in range(2000)))
        self.wire.settle(clock=self.clock)
        self.assertLess(self.wire.right.highWater, 200_000 + 1000)
        self.peer.wire.resumeProducing()
        self.wire.settle(clock=self.clock)
        pongs = [data for _, opcode, data in frames(bytes(self.peer.received)) if opcode == 10]
        self.assertEqual(pongs, [b"1999" + bytes(100)])


class EndMarkTests(RawCase):
    """The end of one direction, where it is agreed and where it is not."""

    def test_anEmptyMessageIsTheEndWhereAgreed(self) -> None:
        """With C{eof}: FIN, binary, no payload, no fragments."""
        self.serve(eof=True)
        self.send(frame(2, b"last"), frame(2))
        self.assertEqual(self.server.heard, ["made", "data", "end"])

    def test_emptyFragmentsAreNoEndEvenWhereAgreed(self) -> None:
        """Empty frames of a fragmented message stay nothing."""
        self.serve(eof=True)
        self.send(frame(2, fin=False), frame(0), frame(2, b"x", fin=False), frame(0), frame(9))
        self.assertEqual(self.server.heard, ["made", "data"])

    def test_anEmptyMessageIsNothingWhereNotAgreed(self) -> None:
        """Without C{eof} an old peer may send empty messages."""
        self.serve()
        self.send(frame(2), frame(2, b"x"), frame(2))
        self.assertEqual(self.server.heard, ["made", "data"])
        self.assertFalse(self.server.wire.halfClose)

    def test_dataAfterTheEndIsRefused(self) -> None:
        """D1: What ended cannot go on: 1002."""
        self.serve(eof=True)
        self.refused(1002, frame(2), frame(2, b"more"))

    def test_dataAfterTheEndDoesNotHoldTheSocket(self) -> None:
        """A peer that goes on sending is dropped as soon as one that stops."""
        self.serve(eof=True)
        self.send(frame(2), frame(2, b"more"))
        for _ in range(9):
            self.clock.advance(FAIL_TIMEOUT / 8)
            self.send(frame(2, b"and more"))
        self.wire.settle(clock=self.clock)
        self.assertFalse(self.wire.right.connected)
        self.assertIsInstance(self.server.reason, error.ConnectionLost)

    def test_aFinIsAnEndWithoutEof(self) -> None:
        """Go's agents leave by closing TCP: after whole messages that is an end."""
        self.serve()
        self.send(frame(2, b"all"))
        self.peer.wire.loseConnection()
        self.wire.settle(clock=self.clock)
        self.assertIsInstance(self.server.reason, error.ConnectionDone)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aFinInsideAFrameOrMessageIsALoss(self) -> None:
        """D3: A stream that stops in the middle is never taken for a whole one."""
        for cut in (frame(2, b"half a frame")[:-3], frame(2, b"part", fin=False), b"\x82"):
            self.serve()
            self.send(cut)
            self.peer.wire.loseConnection()
            self.wire.settle(clock=self.clock)
            self.assertIsInstance(self.server.reason, error.ConnectionLost)

    def test_aFinWithoutTheEndMarkIsALossWhereItIsAgreed(self) -> None:
        """D3: Our own peers always say that they end; one that did not was cut off."""
        self.serve(eof=True)
        self.send(frame(2, b"all?"))
        self.peer.wire.loseConnection()
        self.wire.settle(clock=self.clock)
        self.assertIsInstance(self.server.reason, error.ConnectionLost)

    def test_aResetIsALoss(self) -> None:
        """RST is never an end."""
        self.serve()
        self.send(frame(2, b"all"))
        self.peer.wire.abortConnection()
        self.assertIsInstance(self.server.reason, error.ConnectionLost)

    def test_theCloseFrameSaysWhy(self) -> None:
        """An application's close code and text reach the protocol's reason."""
        self.serve()
        answer = self.send(frame(8, struct.pack("!H", 4000) + b"superseded"))
        self.wire.settle(clock=self.clock)
        self.assertEqual(answer, [(True, 8, struct.pack("!H", 1000))])
        self.assertIsInstance(self.server.reason, ClosedByPeer)
        self.assertEqual((self.server.reason.code, self.server.reason.reason), (4000, "superseded"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_anErrorsCloseFrameIsALoss(self) -> None:
        """A peer that closes because something broke (1011) did not end in good order."""
        self.serve()
        self.send(frame(8, struct.pack("!H", 1011)))
        self.wire.settle(clock=self.clock)
        self.assertIsInstance(self.server.reason, error.ConnectionLost)


class HalfCloseTests(PairCase):
    """D1: Half-close between our own ends."""

    def test_theOtherDirectionGoesOn(self) -> None:
        """After one end, data flows the other way; after both, 1000."""
        self.pair()
        self.client.wire.write(b"request")
        self.client.wire.loseWriteConnection()
        self.client.wire.write(b"too late")
        self.settle()
        self.assertEqual(self.server.heard, ["made", "data", "end"])
        self.assertEqual(bytes(self.server.received), b"request")
        self.server.wire.write(b"reply" * 50_000)
        self.server.wire.loseWriteConnection()
        self.settle()
        self.assertEqual(bytes(self.client.received), b"reply" * 50_000)
        for recorder in (self.client, self.server):
            self.assertEqual(recorder.heard, ["made", "data", "end", "lost"])
            self.assertIsInstance(recorder.reason, error.ConnectionDone)
        self.nothingIsLeft()

    def test_bothAtOnce(self) -> None:
        """Two ends, and then two close frames, that cross each other."""
        self.pair()
        self.client.wire.loseWriteConnection()
        self.server.wire.loseWriteConnection()
        self.settle(1)
        for recorder in (self.client, self.server):
            self.assertEqual(recorder.heard, ["made", "end", "lost"])
            self.assertIsInstance(recorder.reason, error.ConnectionDone)
        self.nothingIsLeft()

    def test_aProtocolThatCannotHearItIsClosedAfterAFlush(self) -> None:
        """Without IHalfCloseableProtocol the end is the end of the connection."""
        server = Recorder()
        self.pair(server=server)
        server.wire.write(bytes(300_000))
        self.client.wire.loseWriteConnection()
        self.settle()
        self.assertEqual(len(self.client.received), 300_000)
        self.assertIsInstance(server.reason, error.ConnectionDone)
        self.assertIsInstance(self.client.reason, error.ConnectionDone)
        self.nothingIsLeft()

    def test_withoutEofItIsAClose(self) -> None:
        """On the old wire the end of one direction is the end of both."""
        self.pair(eof=False)
        self.client.wire.write(b"request")
        self.client.wire.loseWriteConnection()
        self.settle()
        self.assertEqual(bytes(self.server.received), b"request")
        self.assertIsInstance(self.server.reason, error.ConnectionDone)
        self.nothingIsLeft()


class CloseTests(PairCase):
    """Closing, and what it never loses."""

    def test_aSlowReaderGetsEverything(self) -> None:
        """
        D3: 20 MB, then a close, and a reader that stops for minutes: it gets every
        byte and a clean end.  The limit on the handshake starts after the data.
        """
        self.pair()
        body = os.urandom(1 << 20) * 20
        self.wire.left.pauseProducing()
        self.server.wire.write(body)
        self.server.wire.loseConnection()
        self.settle()
        for _ in range(10):
            self.clock.advance(60)
        self.wire.left.resumeProducing()
        self.settle()
        self.assertEqual(len(self.client.received), len(body))
        self.assertEqual(bytes(self.client.received), body)
        self.assertIsInstance(self.client.reason, error.ConnectionDone)
        self.nothingIsLeft()

    def test_aClosingSideStillReadsToSeeTheAnswer(self) -> None:
        """A side that paused, and then closes, goes on reading, and drops what comes."""
        self.pair()
        self.server.wire.pauseProducing()
        self.client.wire.write(bytes(1_000_000))
        self.server.wire.loseConnection()
        self.settle()
        self.assertEqual(len(self.server.received), 0)
        self.assertIsInstance(self.server.reason, error.ConnectionDone)
        self.nothingIsLeft()

    def test_aPeerThatNeverAnswersIsLeftInTime(self) -> None:
        """The limit on the closing handshake, and a close in good order at it."""
        self.pair(eof=False)
        self.server.wire.write(b"last words")
        self.server.wire.loseConnection()
        self.wire.move(self.wire.right)
        self.wire.left.pauseProducing()
        self.clock.advance(CLOSE_TIMEOUT - 0.1)
        self.assertIsNone(self.server.reason)
        self.clock.advance(0.2)
        self.wire.move(self.wire.right)
        self.assertIsInstance(self.server.reason, error.ConnectionDone)
        self.assertEqual(bytes(self.client.received), b"last words")

    def test_aClientDoesNotWaitForTheServerToDrop(self) -> None:
        """When a server answers the close but keeps TCP, the client goes after a second."""
        self.pair()
        self.wire.right.loseConnection = lambda: None  # type: ignore[method-assign]
        self.client.wire.loseConnection()
        self.settle()
        self.assertIsNone(self.client.reason)
        self.clock.advance(DROP_TIMEOUT)
        self.settle()
        self.assertIsInstance(self.client.reason, error.ConnectionDone)

    def test_aProducerIsTakenAwayBeforeTheClose(self) -> None:
        """TLS closes only when no producer is left; nothing may write after the end."""
        self.pair()
        told: list[str] = []
        self.client.wire.registerProducer(_Producer(told), True)
        self.client.wire.write(bytes(300_000))
        self.client.wire.loseConnection()
        self.client.wire.write(b"too late")
        self.settle()
        self.assertEqual(len(self.server.received), 300_000)
        self.assertIsNone(self.wire.left.producer)
        self.nothingIsLeft()

    def test_anAbortIsALoss(self) -> None:
        """D1: A reset is told apart from an end, on both sides, at once."""
        self.pair()
        self.client.wire.write(bytes(1000))
        self.client.wire.abortConnection()
        self.settle()
        self.assertIsInstance(self.client.reason, error.ConnectionAborted)
        self.assertIsInstance(self.server.reason, error.ConnectionLost)
        self.nothingIsLeft()

    def test_closeWithSaysWhy(self) -> None:
        """A code of our own reaches the other side's reason."""
        self.pair()
        self.server.wire.closeWith(4001, "revoked")
        self.settle()
        self.assertEqual((self.client.reason.code, self.client.reason.reason), (4001, "revoked"))
        self.assertIsInstance(self.server.reason, error.ConnectionDone)
        self.nothingIsLeft()

    def test_codesThatAreNotOursAreRefused(self) -> None:
        """Only 1000 and 4000 to 4999 are for protocols to say."""
        self.pair()
        for code in (999, 1002, 3999, 5000):
            self.assertRaises(ValueError, self.server.wire.closeWith, code, "")
        self.server.wire.closeWith(4999, "\N{GREEK SMALL LETTER OMEGA}" * 100)
        self.settle()
        self.assertEqual(self.client.reason.reason, "\N{GREEK SMALL LETTER OMEGA}" * 61)

    def test_aProtocolThatRaisesCostsItsOwnConnection(self) -> None:
        """An exception in connectionMade drops the connection and is logged."""

        class Faulty(Recorder):
            def connectionMade(self) -> None:
                super().connectionMade()
                raise ZeroDivisionError

        self.pair(client=Faulty())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIsInstance(self.server.reason, error.ConnectionLost)
        self.nothingIsLeft()

    def test_callsAfterTheEndDoNothing(self) -> None:
        """Late calls of a protocol are harmless, and a late producer is stopped."""
        self.pair()
        wire = self.client.wire
        wire.loseConnection()
        self.settle()
        told: list[str] = []
        wire.registerProducer(_Producer(told), True)
        wire.unregisterProducer()
        wire.write(b"late")
        wire.writeSequence([b"late"])
        wire.loseWriteConnection()
        wire.loseConnection()
        wire.abortConnection()
        wire.pauseProducing()
        wire.resumeProducing()
        wire.stopProducing()
        self.failureResultOf(wire.ping(), error.ConnectionLost)
        self.assertEqual(told, ["stop"])
        self.nothingIsLeft()


class PauseTests(PairCase):
    """Stopping a reader, at any moment."""

    def test_aPausedProtocolHearsNothing(self) -> None:
        """
        What had been read when the protocol paused is held, within one read, and
        delivered after it resumed, in a later turn.
        """
        self.pair()
        self.client.onData = lambda data: self.client.wire.pauseProducing()
        for _ in range(30):
            self.server.wire.write(b"x" * 1000)
        self.server.wire.write(bytes(1_000_000))
        self.settle()
        self.assertEqual(len(self.client.received), 1000)
        self.assertFalse(self.wire.left.reading)
        parser = self.wire.left.protocol._successor
        self.assertLessEqual(len(parser.data), 65536)
        self.client.wire.resumeProducing()
        self.assertEqual(len(self.client.received), 1000, "delivered inside resumeProducing")
        self.clock.advance(0)
        self.assertEqual(len(self.client.received), 2000)
        self.client.onData = None
        self.client.wire.resumeProducing()
        self.settle()
        self.assertEqual(len(self.client.received), 1_030_000)

    def test_pauseAndResumeInsideADelivery(self) -> None:
        """A protocol may change its mind while it is given bytes."""
        self.pair()

        def waver(data: bytes) -> None:
            self.client.wire.pauseProducing()
            self.client.wire.resumeProducing()
            self.client.wire.pauseProducing()
            self.client.wire.resumeProducing()

        self.client.onData = waver
        body = os.urandom(200_000)
        for start in range(0, len(body), 777):
            self.server.wire.write(body[start : start + 777])
        self.settle()
        self.assertEqual(bytes(self.client.received), body)

    def test_pausedInConnectionMade(self) -> None:
        """C5: What came with the handshake waits for a protocol that starts paused."""

        class Later(HalfRecorder):
            def connectionMade(self) -> None:
                super().connectionMade()
                self.wire.pauseProducing()

        self.pair(client=Later(), server=_Greeter())
        self.assertEqual(bytes(self.client.received), b"")
        self.client.wire.resumeProducing()
        self.settle()
        self.assertEqual(bytes(self.client.received), b"220 ready\r\n")

    def test_aCleanEndWaitsForWhatIsHeld(self) -> None:
        """
        D3: Where TCP's end is seen while bytes are held (TLS does that), the bytes
        come first, then the end.
        """
        self.pair(eof=False)
        self.client.onData = lambda data: self.client.wire.pauseProducing()
        self.server.wire.write(b"first")
        self.server.wire.write(b"second")
        self.settle()
        self.assertEqual(bytes(self.client.received), b"first")
        self.wire.left.lose(Failure(error.ConnectionDone()))
        self.assertEqual(self.client.heard, ["made", "data"])
        self.client.wire.write(b"to nobody")
        self.client.onData = None
        self.client.wire.resumeProducing()
        self.clock.advance(0)
        self.assertEqual(bytes(self.client.received), b"firstsecond")
        self.assertIsInstance(self.client.reason, error.ConnectionDone)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aLossDoesNotWait(self) -> None:
        """D12: A broken connection is told at once, also to a paused protocol."""
        self.pair()
        self.client.onData = lambda data: self.client.wire.pauseProducing()
        self.server.wire.write(b"first")
        self.server.wire.write(b"second")
        self.settle()
        self.server.wire.abortConnection()
        self.assertIsInstance(self.client.reason, error.ConnectionLost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_anExceptionInAHeldDeliveryDropsTheConnection(self) -> None:
        """Delivered from a timer, a fault still costs the connection, and is logged."""
        self.pair()
        self.client.onData = lambda data: self.client.wire.pauseProducing()
        self.server.wire.write(b"first")
        self.server.wire.write(b"second")
        self.settle()

        def faulty(data: bytes) -> None:
            raise ZeroDivisionError

        self.client.onData = faulty
        self.client.wire.resumeProducing()
        self.settle()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIsInstance(self.server.reason, error.ConnectionLost)
        self.nothingIsLeft()


class ProducerTests(PairCase):
    """Stopping a writer."""

    def test_aPushProducerFeelsTheReader(self) -> None:
        """D4: It is paused when the write buffer is full, and resumed when it is empty."""
        self.pair()
        told: list[str] = []
        self.server.wire.registerProducer(_Producer(told), True)
        self.assertRaises(RuntimeError, self.server.wire.registerProducer, _Producer(told), True)
        self.wire.left.pauseProducing()
        self.server.wire.write(bytes(100_000))
        self.assertEqual(told[0], "pause")
        self.wire.left.resumeProducing()
        self.settle()
        self.assertEqual(told[-1], "resume")
        self.server.wire.unregisterProducer()
        self.server.wire.write(bytes(1_000_000))
        self.settle()
        self.assertEqual(told.count("resume"), 1)

    def test_aPushProducerOnAFullBufferIsPausedAtOnce(self) -> None:
        """A producer that comes late does not add to a full buffer."""
        self.pair()
        self.server.wire.write(bytes(200_000))
        told: list[str] = []
        self.server.wire.registerProducer(_Producer(told), True)
        self.assertEqual(told, ["pause"])
        self.settle()
        self.assertEqual(told, ["pause", "resume"])

    def test_aPullProducerIsAskedForEachPiece(self) -> None:
        """A pull producer is driven as on TCP."""
        self.pair()
        pieces = [b"one", b"two", b"three"]
        wire = self.server.wire

        class Pull:
            def resumeProducing(self) -> None:
                wire.write(pieces.pop(0))
                if not pieces:
                    wire.unregisterProducer()

            def stopProducing(self) -> None:
                raise AssertionError("not stopped")

        wire.registerProducer(Pull(), False)
        self.assertEqual(len(pieces), 2)
        self.settle()
        self.assertEqual(bytes(self.client.received), b"onetwothree")
        told: list[str] = []
        wire.registerProducer(_Producer(told), True)
        wire.write(bytes(100_000))
        self.assertEqual(told, ["pause"])

    def test_aProducerIsStoppedWhenTheConnectionIsLost(self) -> None:
        """As on Twisted's own transports."""
        self.pair()
        told: list[str] = []
        self.server.wire.registerProducer(_Producer(told), True)
        self.client.wire.abortConnection()
        self.assertEqual(told, ["stop"])


class PingTests(PairCase):
    """Signs of life."""

    def test_theRoundTripIsMeasured(self) -> None:
        """It fires with the seconds between a ping and its pong."""
        self.pair()
        first, second = self.client.wire.ping(), self.client.wire.ping()
        self.assertNoResult(first)
        self.clock.advance(0.25)
        self.settle()
        self.assertEqual(self.successResultOf(first), 0.25)
        self.assertEqual(self.successResultOf(second), 0.25)

    def test_waitingPingsFailWithTheConnection(self) -> None:
        """Each ping is answered or fails; none waits for ever."""
        self.pair()
        waiting = [self.client.wire.ping() for _ in range(16)]
        self.failureResultOf(self.client.wire.ping(), error.ConnectionLost)
        self.server.wire.abortConnection()
        for ping in waiting:
            self.failureResultOf(ping, error.ConnectionLost)


class HandshakeTests(PairCase):
    """Requests and answers that are not as they should be."""

    def test_theRequestSaysWhoWeAre(self) -> None:
        """Path, host, agent and the caller's fields; neither compression nor subprotocol."""
        self.pair(headers=[(b"Authorization", b"Bearer T"), (b"X-A", b"1"), (b"X-A", b"2")])
        request = self.wire.right.protocol.head
        self.assertTrue(request.startswith(b"GET /api/v1/revdial?runnerid=wolf-1 HTTP/1.1\r\n"))
        self.assertIn(b"\r\nHost: cp.example:8080\r\n", request)
        self.assertIn(b"\r\nUser-Agent: helix-revdial/", request)
        self.assertIn(b"\r\nAuthorization: Bearer T\r\n", request)
        self.assertIn(b"\r\nX-A: 1, 2\r\n", request)
        self.assertNotIn(b"Extensions", request)
        self.assertNotIn(b"Protocol", request)

    def test_headersCannotBeInjected(self) -> None:
        """A value with a line break is refused; the error does not repeat it."""
        for header in (
            (b"Authorization", b"Bearer secret\r\nX: y"),
            (b"Authorization", b"Bearer secret\n"),
            (b"Authorization", b"Bearer secret\0"),
            (b"Authorization", b"Bearer s\xe9cret"),
            (b"X:secret", b"y"),
            (b"X secret", b"y"),
            (b"Host", b"secret"),
            (b"Sec-WebSocket-Key", b"secret"),
        ):
            caught = self.assertRaises(
                ValueError, WebSocketEndpoint, self.clock, None, URL, [header], eof=True
            )
            self.assertNotIn("Bearer", str(caught))
        self.assertRaises(
            ValueError,
            webSocketServer,
            Recorder(),
            eof=True,
            clock=self.clock,
            responseHeaders=[(b"Revdial-Features", b"raw\r\n\r\nHTTP/1.1 200 OK")],
        )

    def test_compressionIsNotAccepted(self) -> None:
        """F11: A client that offers permessage-deflate gets a 101 without it."""
        server = Recorder()
        wire = Wire(Recorder(), _head(server, self.clock)).connect()
        wire.left.write(REQUEST[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
        wire.settle()
        self.assertNotIn(b"Extensions", wire.left.protocol.received)
        self.assertEqual(server.heard, ["made"])

    def test_aBadRequestIsTold(self) -> None:
        """A handshake that fails reaches C{onFailure}, never the protocol."""
        for bad in (
            REQUEST.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"),
            REQUEST.replace(b"Version: 13", b"Version: 8"),
            REQUEST.replace(b"Host: cp.example\r\n", b""),
        ):
            server = Recorder()
            failures: list[Failure] = []
            wire = Wire(Recorder(), _head(server, self.clock, onFailure=failures.append)).connect()
            wire.left.write(bad)
            wire.settle()
            self.assertTrue(wire.left.protocol.received.startswith(b"HTTP/1.1 400 "))
            self.assertEqual(server.heard, [])
            self.assertEqual(len(failures), 1)
            self.assertTrue(failures[0].check(error.ConnectionLost))
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aHeadThatIsNeverReplayedIsTold(self) -> None:
        """The opening has a limit, in time and in size."""
        for late in (True, False):
            server = Recorder()
            failures: list[Failure] = []
            protocol = webSocketServer(
                server, eof=False, clock=self.clock, openTimeout=3.0, onFailure=failures.append
            )
            wire = Wire(Recorder(), protocol).connect()
            wire.left.write(b"GET / HTTP/1.1\r\nX: " + bytes(10 if late else 70_000))
            wire.settle()
            self.clock.advance(3.0)
            self.assertEqual(len(failures), 1)
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.assertFalse(wire.right.connected)

    def test_aLossDuringTheHandshakeIsTold(self) -> None:
        """The connection may end before the head is whole."""
        server = Recorder()
        failures: list[Failure] = []
        protocol = webSocketServer(server, eof=False, clock=self.clock, onFailure=failures.append)
        wire = Wire(Recorder(), protocol).connect()
        wire.left.loseConnection()
        wire.settle()
        self.assertEqual(server.heard, [])
        self.assertEqual(len(failures), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def answered(self, answer: bytes) -> Failure:
        """Our client's failure, for a server that answers C{answer}."""
        endpoint = WireEndpoint(Recorder)
        connected = WebSocketEndpoint(self.clock, endpoint, URL, eof=True).connect(
            Factory.forProtocol(Recorder)
        )
        wire = endpoint.wires[0]
        accept = _acceptOf(_answerTo(bytes(wire.left.out)))
        wire.right.write(answer.replace(b"ACCEPT", accept))
        wire.settle(clock=self.clock)
        failure: Failure = self.failureResultOf(connected)
        self.assertFalse(wire.left.connected)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return failure

    def test_aWrongAcceptIsRefused(self) -> None:
        """A 101 has to prove that it read our key, and switch to what we asked for."""
        right = (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: ACCEPT\r\n"
        )
        for wrong in (
            right.replace(b"ACCEPT", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") + b"\r\n",
            right.replace(b"Sec-WebSocket-Accept: ACCEPT\r\n", b"") + b"\r\n",
            right.replace(b"Upgrade: websocket", b"Upgrade: revdial") + b"\r\n",
            right + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
            right + b"Sec-WebSocket-Protocol: chat\r\n\r\n",
            right + b"Sec-WebSocket-Protocol: \xff\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        ):
            self.answered(wrong).trap(MalformedAnswer)

    def test_aRefusalIsTold(self) -> None:
        """Any other status is the server's word; redirects are not followed (F4)."""
        for status in (301, 401, 404, 426, 500, 200):
            failure = self.answered(
                b"HTTP/1.1 %d Because\r\nLocation: http://evil.example/\r\n"
                b"Content-Length: 4\r\n\r\nbody" % status
            )
            failure.trap(UpgradeRefused)
            refusal: Any = failure.value
            self.assertEqual((refusal.status, refusal.body), (status, b"body"))

    def test_itWaitsUntilItMayAsk(self) -> None:
        """C{ready} holds the request back, not the connection."""
        ready: Deferred[None] = Deferred()
        endpoint = WireEndpoint(lambda: _head(Recorder(), self.clock))
        connected = WebSocketEndpoint(self.clock, endpoint, URL, eof=False, ready=ready).connect(
            Factory.forProtocol(Recorder)
        )
        wire = endpoint.wires[0]
        self.clock.advance(3600)
        self.assertEqual(bytes(wire.left.out), b"")
        ready.callback(None)
        wire.settle(clock=self.clock)
        self.assertIsNotNone(self.successResultOf(connected))
        wire.left.abortConnection()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class AutobahnTests(SynchronousTestCase):
    """What is set in Autobahn, in one place."""

    def test_masksComeFromTheOperatingSystem(self) -> None:
        """RFC 6455 section 5.3: strong randomness, whatever seeds the random module."""
        self.assertIsInstance(vars(autobahnProtocol)["random"], random.SystemRandom)
        keys = []
        for _ in range(2):
            random.seed(1)
            endpoint = WireEndpoint(lambda: _head(Recorder(), Clock()))
            client = Recorder()
            connected = WebSocketEndpoint(Clock(), endpoint, URL, eof=True).connect(
                Factory.forProtocol(partial(_same, client))
            )
            wire = endpoint.wires[0]
            wire.settle()
            self.successResultOf(connected)
            client.wire.write(bytes(4))
            keys.append(bytes(wire.left.out[2:6]))
        self.assertNotEqual(keys[0], keys[1])

    def test_nvxIsRequired(self) -> None:
        """Without native masking nothing starts, and the error says what to do."""
        requireNVX()
        self.patch(websocket, "USES_NVX", False)
        caught = self.assertRaises(RuntimeError, requireNVX)
        self.assertIn("AUTOBAHN_USE_NVX", str(caught))
        self.assertRaises(RuntimeError, webSocketServer, None, eof=True, clock=Clock())

    def test_noReactorIsNeeded(self) -> None:
        """None of Autobahn's timers runs: its loop is never asked for."""
        self.patch(vars(txaio)["config"], "loop", object())
        clock = Clock()
        server = Recorder()
        wire = Wire(Recorder(), _head(server, clock)).connect()
        wire.left.write(REQUEST + frame(2, b"x") + frame(8))
        wire.settle(clock=clock)
        self.assertEqual(server.heard, ["made", "data", "lost"])
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_credentialsAreNotLogged(self) -> None:
        """F1: Autobahn's debug messages, which hold whole heads, go nowhere."""
        from twisted.logger import globalLogPublisher

        events: list[Any] = []
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        setLevel = vars(txaio)["set_global_log_level"]
        setLevel("debug")
        self.addCleanup(setLevel, "info")
        wire = Wire(Recorder(), _head(Recorder(), Clock())).connect()
        wire.left.write(REQUEST[:-2] + b"Authorization: Bearer SECRET\r\n\r\n")
        wire.settle()
        self.assertNotIn("SECRET", repr(events))
