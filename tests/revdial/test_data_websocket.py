"""
Tests for L{helix_revdial.revdial.data_websocket} and L{helix_revdial.revdial.switching}.

What a WebSocket carrier promises is tested once, and runs here on the ends that streams
have, there on Autobahn's.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.data_websocket import DataWebSocketEndpoint, dataServer
from helix_revdial.revdial.exchange import MalformedAnswer, UpgradeRefused
from helix_revdial.revdial.switching import acceptKey, askHead, switchHead
from tests.revdial import (
    test_websocket_closing,
    test_websocket_frames,
    test_websocket_transport,
)
from tests.revdial.pairs import (
    REQUEST,
    URL,
    PairCase,
    RawCase,
    WireCase,
    dataServerHead,
    frame,
)
from tests.revdial.wire import HalfRecorder, Recorder, Wire, WireEndpoint, dataHead


class _DataPair(PairCase):
    dialling: Any = DataWebSocketEndpoint
    serverHead: Any = staticmethod(dataServerHead)


class _DataRaw(RawCase):
    serverHead: Any = staticmethod(dataServerHead)


class StreamTests(_DataPair, test_websocket_transport.StreamTests):
    """What the stream promises."""


class PauseTests(_DataPair, test_websocket_transport.PauseTests):
    """What it promises while paused."""


class ProducerTests(_DataPair, test_websocket_transport.ProducerTests):
    """What it promises to producers."""


class PingTests(_DataPair, test_websocket_transport.PingTests):
    """What it promises of pings."""


class HalfCloseTests(_DataPair, test_websocket_closing.HalfCloseTests):
    """How one direction ends."""


class CloseTests(_DataPair, test_websocket_closing.CloseTests):
    """How both end."""


class FrameTests(_DataRaw, test_websocket_frames.FrameTests):
    """Frames of every shape."""


class EndMarkTests(_DataRaw, test_websocket_frames.EndMarkTests):
    """The end mark."""


class HandshakeTests(WireCase):
    """The upgrade by hand."""

    def answered(self, answer: bytes) -> Failure:
        """Our client's failure, for a server that answers C{answer}."""
        endpoint = WireEndpoint(Recorder)
        connected = DataWebSocketEndpoint(self.clock, endpoint, URL, eof=True).connect(
            Factory.forProtocol(Recorder)
        )
        wire = endpoint.wires[0]
        key = bytes(wire.left.out).split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
        wire.right.write(answer.replace(b"ACCEPT", acceptKey(key)))
        wire.settle(clock=self.clock)
        failure: Failure = self.failureResultOf(connected)
        self.assertFalse(wire.left.connected)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return failure

    def test_theExampleOfTheRFC(self) -> None:
        """RFC 6455, section 1.3: this key has that answer."""
        self.assertEqual(acceptKey(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")

    def test_aWrongAcceptIsRefused(self) -> None:
        """A 101 has to prove that it read our key, and switch to what we asked for."""
        right = (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: ACCEPT\r\n"
        )
        for wrong in (
            right.replace(b"ACCEPT", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") + b"\r\n",
            right.replace(b"Sec-WebSocket-Accept: ACCEPT\r\n", b"") + b"\r\n",
            right + b"Sec-WebSocket-Accept: ACCEPT\r\n\r\n",
            right.replace(b"Upgrade: websocket", b"Upgrade: revdial") + b"\r\n",
            right.replace(b"Connection: Upgrade", b"Connection: keep-alive") + b"\r\n",
            right + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
            right + b"Sec-WebSocket-Protocol: chat\r\n\r\n",
            right + b"Sec-WebSocket-Protocol: \xff\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        ):
            self.answered(wrong).trap(MalformedAnswer)

    def test_otherWritingsOfItAreTaken(self) -> None:
        """Letters, order and fields of its own are the server's to choose."""
        client = HalfRecorder()
        endpoint = WireEndpoint(Recorder)
        connected = DataWebSocketEndpoint(self.clock, endpoint, URL, eof=True).connect(
            Factory.forProtocol(lambda: client)
        )
        wire = endpoint.wires[0]
        key = bytes(wire.left.out).split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
        wire.right.write(
            b"HTTP/1.1 101 OK\r\nServer: other\r\nSEC-WEBSOCKET-ACCEPT:%s\r\n"
            b"connection: keep-alive, UPGRADE\r\nupgrade: WebSocket\r\n\r\n"
            % acceptKey(key)
            + frame(2, b"first", masked=False)
        )
        wire.settle(1, self.clock)
        self.assertIs(self.successResultOf(connected), client)
        self.assertEqual(bytes(client.received), b"first")

    def test_aRefusalIsTold(self) -> None:
        """Any other status is the server's word; redirects are not followed (F4)."""
        for status in (301, 401, 404, 426, 500, 200):
            failure = self.answered(
                b"HTTP/1.1 %d Because\r\nLocation: http://evil.example/\r\n"
                b"Content-Length: 4\r\n\r\nbody" % status
            )
            failure.trap(UpgradeRefused)

    def test_eachHandshakeHasItsOwnKey(self) -> None:
        """One endpoint, many exchanges: no key is used twice; what the target took is said."""
        keys = set()
        ready: Deferred[float] = Deferred()
        for _ in range(3):
            wires = WireEndpoint(Recorder)
            endpoint = DataWebSocketEndpoint(self.clock, wires, URL, eof=True, ready=ready)
            endpoint.connect(Factory.forProtocol(Recorder)).addErrback(lambda failure: None)
            if not ready.called:
                ready.callback(0.25)
            head = bytes(wires.wires[0].left.out)
            self.assertIn(b"\r\nRevdial-Timing: target=0.250000\r\n\r\n", head)
            self.assertEqual(head.count(b"\r\n\r\n"), 1)
            keys.add(head.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0])
            wires.wires[0].left.abortConnection()
        self.assertEqual(len(keys), 3)

    def test_headersCannotBeInjected(self) -> None:
        """A value with a line break is refused at both ends."""
        bad = [(b"X-A", b"secret\r\nX: y")]
        self.assertRaises(ValueError, DataWebSocketEndpoint, self.clock, None, URL, bad, eof=True)
        self.assertRaises(
            ValueError,
            dataServer,
            Recorder(),
            key=b"k",
            eof=True,
            clock=self.clock,
            responseHeaders=bad,
        )
        self.assertRaises(ValueError, switchHead, None, [(b"Upgrade", b"other")])
        self.assertNotIn(b"Extensions", askHead(URL, (), webSocket=True))

    def test_compressionIsNotAccepted(self) -> None:
        """F11: A client that offers permessage-deflate gets a 101 without it."""
        server = Recorder()
        wire = Wire(Recorder(), dataHead(server, eof=True, clock=self.clock)).connect()
        wire.left.write(REQUEST[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
        wire.settle()
        self.assertNotIn(b"Extensions", wire.left.protocol.received)
        self.assertEqual(server.heard, ["made"])

    def test_aConnectionThatIsGoneIsTold(self) -> None:
        """What ends before it was connected reaches C{onFailure}, never the protocol."""
        server, failures = Recorder(), list[Failure]()
        carrier: Any = dataServer(
            server, key=b"k", eof=True, clock=self.clock, onFailure=failures.append
        )
        carrier.connectionLost(Failure(Exception("gone")))
        self.assertEqual((server.heard, len(failures)), ([], 1))


class BrokenTests(SynchronousTestCase):
    """A peer that breaks the framing."""

    def test_whatCameBeforeIsPassedOn(self) -> None:
        """The frames before a wrong one are heard, in one read or in many."""
        for size in (1, 65536):
            clock, server = Clock(), HalfRecorder()
            wire = Wire(Recorder(), dataHead(server, eof=True, clock=clock)).connect()
            wire.left.write(REQUEST + frame(2, b"good") + frame(2, b"bad", masked=False))
            wire.settle(size, clock)
            self.assertEqual(bytes(server.received), b"good", size)
            self.assertIn(b"an unmasked frame", bytes(wire.left.protocol.received))
            clock.advance(20)
            wire.settle(size, clock)
            self.assertEqual(clock.getDelayedCalls(), [])

    def test_aPausedProtocolHearsNothing(self) -> None:
        """What was read while it was paused waits, a wrong frame behind it too."""

        class Slow(HalfRecorder):
            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                self.wire.pauseProducing()

        clock, server = Clock(), Slow()
        wire = Wire(Recorder(), dataHead(server, eof=True, clock=clock)).connect()
        wire.left.write(REQUEST + frame(2, b"one") + frame(2, b"two") + frame(1, b"text"))
        wire.settle(clock=clock)
        self.assertEqual(bytes(server.received), b"one")
        server.wire.resumeProducing()
        wire.settle(clock=clock)
        self.assertEqual(bytes(server.received), b"onetwo")
        self.assertNotIn(b"binary messages only", bytes(wire.left.protocol.received))
        server.wire.resumeProducing()
        wire.settle(clock=clock)
        self.assertIn(b"binary messages only", bytes(wire.left.protocol.received))
        clock.advance(20)
        wire.settle(clock=clock)
        self.assertEqual(clock.getDelayedCalls(), [])
