"""Tests for L{helix_revdial.revdial.websocket_stream}: frames, messages and the end mark."""

from __future__ import annotations

import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet import error

from helix_revdial.revdial.carrier import ClosedByPeer
from helix_revdial.revdial.websocket_transport import CLOSE_TIMEOUT, FAIL_TIMEOUT
from tests.revdial.pairs import RawCase, frame, frames


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
        self.assertEqual(len(client.unparsed()), 0)
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

    # It runs on the ends of two implementations.
    @settings(
        deadline=None,
        max_examples=60,
        suppress_health_check=[HealthCheck.differing_executors],
    )
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
        self.assertEqual(len(server.unparsed()), 0)
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
