"""Frames as ranges of memory: held against RFC 6455's examples, Autobahn and any split."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    END_MARK,
    PING,
    PONG,
    TEXT,
    ZERO_KEY,
    Control,
    EndMark,
    FrameError,
    FrameReader,
    closePayload,
    frame,
    frameHead,
    readClose,
)

KEY = b"\x37\xfa\x21\x3d"


def gather(reader: FrameReader, raw: bytes, sizes: list[int]) -> list[object]:
    """Feed C{raw} in pieces; payload joined between what is not payload."""
    found: list[object] = []
    at = 0
    cuts = iter(sizes)
    while at < len(raw):
        piece = bytearray(raw[at : at + max(1, next(cuts, len(raw)))])
        at += len(piece)
        for one in reader.read(memoryview(piece)):
            if isinstance(one, memoryview):
                data = bytes(one)
                if found and isinstance(found[-1], bytes):
                    found[-1] += data
                else:
                    found.append(data)
            else:
                found.append(one)
    return found


def raw(fin: bool, opcode: int, payload: bytes, key: bytes | None) -> bytes:
    """A frame that need not be a whole message."""
    whole = bytearray(frame(payload, key, opcode))
    if not fin:
        whole[0] &= 0x7F
    return bytes(whole)


class ExampleTests(SynchronousTestCase):
    """RFC 6455, 5.7, as far as it has binary and control frames; and what Go sends."""

    def test_maskedPing(self) -> None:
        """A masked pong of the RFC: Hello."""
        reader = FrameReader(masked=True)
        found = gather(reader, bytes.fromhex("8a8537fa213d7f9f4d5158"), [])
        self.assertEqual(found, [Control(PONG, b"Hello")])

    def test_lengths(self) -> None:
        """256 bytes take two length bytes, 64 KiB take eight."""
        self.assertEqual(frameHead(256, None), bytes.fromhex("827e0100"))
        self.assertEqual(frameHead(65536, None), bytes.fromhex("827f0000000000010000"))
        self.assertEqual(frameHead(5, KEY), b"\x82\x85" + KEY)

    def test_goFragments(self) -> None:
        """Go's client: a first frame, continuations, a final one; no end marks among them."""
        wire = (
            raw(False, BINARY, b"a" * 4096, KEY)
            + raw(False, CONTINUATION, b"b" * 4096, KEY)
            + raw(True, CONTINUATION, b"c" * 10, KEY)
        )
        reader = FrameReader(masked=True)
        self.assertEqual(gather(reader, wire, []), [b"a" * 4096 + b"b" * 4096 + b"c" * 10])
        self.assertTrue(reader.whole)

    def test_goEmptyFinalFrame(self) -> None:
        """Go's server: one frame that is not final, then an empty final one: no end mark."""
        wire = raw(False, BINARY, b"x" * 32768, None) + raw(True, CONTINUATION, b"", None)
        self.assertEqual(gather(FrameReader(masked=False), wire, []), [b"x" * 32768])

    def test_endMark(self) -> None:
        """An empty binary message in one frame is the end mark, masked or not."""
        for key in (None, KEY):
            reader = FrameReader(masked=key is not None)
            self.assertEqual(gather(reader, frame(b"", key), []), [END_MARK])

    def test_emptyFragmentsAreNothing(self) -> None:
        """An empty message in two frames is no end mark."""
        wire = raw(False, BINARY, b"", None) + raw(True, CONTINUATION, b"", None)
        self.assertEqual(gather(FrameReader(masked=False), wire, []), [])

    def test_controlBetweenFragments(self) -> None:
        """D20: a ping inside a message, whole, where it stands."""
        wire = (
            raw(False, BINARY, b"one", KEY)
            + frame(b"beat", KEY, PING)
            + raw(True, CONTINUATION, b"two", KEY)
        )
        found = gather(FrameReader(masked=True), wire, [1] * 100)
        self.assertEqual(found, [b"one", Control(PING, b"beat"), b"two"])


class RefusalTests(SynchronousTestCase):
    """What breaks the protocol, and the close code that says so."""

    def refused(self, wire: bytes, code: int, masked: bool = True) -> None:
        for sizes in ([], [1] * len(wire)):
            reader = FrameReader(masked=masked, maxFrame=1000)
            with self.assertRaises(FrameError) as caught:
                gather(reader, wire + bytes(20), sizes)
            self.assertEqual(caught.exception.code, code, str(caught.exception))

    def test_refusals(self) -> None:
        """F10, D19: each of them, whole and byte by byte."""
        self.refused(frame(b"hi", KEY, TEXT), 1003)
        self.refused(frame(b"hi", None), 1002)
        self.refused(frame(b"hi", KEY), 1002, masked=False)
        self.refused(frame(b"x" * 1001, KEY), 1009)
        self.refused(raw(True, CONTINUATION, b"x", KEY), 1002)
        self.refused(raw(False, BINARY, b"x", KEY) + frame(b"y", KEY), 1002)
        self.refused(raw(False, PING, b"x", KEY), 1002)
        self.refused(frame(b"x", KEY, 0xB), 1002)
        self.refused(frame(b"x", KEY, 0x3), 1002)
        self.refused(b"\xc2\x80" + KEY, 1002)
        self.refused(b"\x82\xfe\x00\x01" + KEY + b"x", 1002)
        self.refused(b"\x82\xff" + (1).to_bytes(8, "big") + KEY + b"x", 1002)
        self.refused(b"\x89\xfe\x00\x80" + KEY, 1002)

    def test_limitIsOnTheAnnouncement(self) -> None:
        """A frame over the limit is refused before a byte of it is taken."""
        reader = FrameReader(masked=False, maxFrame=10)
        with self.assertRaises(FrameError):
            reader.read(memoryview(bytearray(b"\x82\x7f" + (2**62).to_bytes(8, "big") + bytes(9))))


class PropertyTests(SynchronousTestCase):
    """Any messages, any fragments, any split."""

    def test_anyStream(self) -> None:
        """Payload, control frames and end marks come out as they went in."""
        piece = st.tuples(
            st.sampled_from(["data", "fragments", "ping", "end", "empty"]), st.binary(max_size=400)
        )

        @settings(deadline=None, max_examples=150)
        @given(
            st.booleans(), st.lists(piece, max_size=8), st.lists(st.integers(1, 500), max_size=30)
        )
        def check(masked: bool, pieces: list[tuple[str, bytes]], sizes: list[int]) -> None:
            key = KEY if masked else None
            wire, expected = b"", list[object]()

            def expect(data: bytes) -> None:
                if data and expected and isinstance(expected[-1], bytes):
                    expected[-1] += data
                elif data:
                    expected.append(data)

            for kind, data in pieces:
                if kind == "data":
                    wire += frame(data, key)
                    if data:
                        expect(data)
                    else:
                        expected.append(END_MARK)
                elif kind == "fragments":
                    half = len(data) // 2
                    wire += raw(False, BINARY, data[:half], key)
                    wire += raw(True, CONTINUATION, data[half:], key)
                    expect(data)
                elif kind == "ping":
                    wire += frame(data[:125], key, PING)
                    expected.append(Control(PING, data[:125]))
                elif kind == "end":
                    wire += frame(b"", key)
                    expected.append(END_MARK)
                else:
                    wire += raw(False, BINARY, b"", key) + raw(True, CONTINUATION, b"", key)
            reader = FrameReader(masked=masked)
            self.assertEqual(gather(reader, wire, sizes), expected)
            self.assertTrue(reader.whole)

        check()

    def test_plainGoesAnotherWay(self) -> None:
        """Payload without a mask, or with a zero key, may go past the reader, at any split."""
        piece = st.tuples(
            st.sampled_from([None, "zero", "random"]), st.booleans(), st.binary(max_size=400)
        )

        @settings(deadline=None, max_examples=150)
        @given(
            st.booleans(), st.lists(piece, max_size=8), st.lists(st.integers(1, 500), max_size=30)
        )
        def check(
            masked: bool, pieces: list[tuple[str | None, bool, bytes]], sizes: list[int]
        ) -> None:
            wire, expected, pings = b"", b"", 0
            for mask, ping, data in pieces:
                key = None if not masked else bytes(4) if mask == "zero" else KEY
                if ping:
                    wire += frame(data[:125], key, PING)
                    pings += 1
                else:
                    wire += frame(data, key)
                    expected += data
            reader, got, controls, at = FrameReader(masked=masked), b"", 0, 0
            for size in [*sizes, *[7] * len(wire)]:
                if reader.plain:
                    self.assertTrue(reader.isPlain)
                    passed = wire[at : at + min(size, reader.plain)]
                    got += passed
                    at += len(passed)
                    if passed:
                        reader.passed(len(passed))
                    continue
                for one in reader.read(memoryview(bytearray(wire[at : at + size]))):
                    if isinstance(one, memoryview):
                        got += one
                    elif isinstance(one, Control):
                        controls += 1
                at += size
            self.assertEqual((got, controls), (expected, pings))
            self.assertTrue(reader.whole)
            self.assertTrue(reader.between)

        check()

    def test_anyBytes(self) -> None:
        """F10: any bytes give payload or a L{FrameError}, never anything else."""

        @settings(deadline=None, max_examples=200)
        @given(st.booleans(), st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=20))
        def check(masked: bool, wire: bytes, sizes: list[int]) -> None:
            reader = FrameReader(masked=masked, maxFrame=5000)
            try:
                found = gather(reader, wire, sizes)
            except FrameError as error:
                self.assertIn(error.code, (1002, 1003, 1009))
            else:
                for one in found:
                    self.assertIsInstance(one, bytes | Control | EndMark)

        check()

    def test_notWhole(self) -> None:
        """A stream that is cut anywhere inside a message is known not to be whole."""
        wire = raw(False, BINARY, b"one", KEY) + raw(True, CONTINUATION, b"two", KEY)
        for cut in range(1, len(wire)):
            reader = FrameReader(masked=True)
            gather(reader, wire[:cut], [])
            self.assertFalse(reader.whole, cut)


class SingleTests(SynchronousTestCase):
    """L{FrameReader.single}."""

    @settings(deadline=None, max_examples=200)
    @given(
        st.sampled_from((0, 1, 125, 126, 127, 512, 513, 65535, 65536)) | st.integers(0, 300),
        st.sampled_from((0x82, 0x02, 0x81, 0x80, 0x89, 0xC2)),
        st.integers(-1, 1),
        st.sampled_from((None, KEY, ZERO_KEY)),
        st.booleans(),
        st.booleans(),
    )
    def test_theSameAsRead(
        self, length: int, first: int, more: int, key: bytes | None, wrong: bool, begun: bool
    ) -> None:
        """It is used where L{FrameReader.read} would find one range of payload, and finds that."""
        payload = random.Random(length).randbytes(length)
        wire = bytearray(frame(payload, key))
        wire[0] = first
        wire = wire[:more] if more < 0 else wire + bytes(more)
        masked = (key is None) is wrong
        reader, other = FrameReader(masked=masked), FrameReader(masked=masked)
        if begun:
            for each in (reader, other):
                each.read(memoryview(bytearray(frame(b"abc", KEY if masked else None)))[:3])
        mine, theirs = bytearray(wire), bytearray(wire)
        head = reader.single(memoryview(mine))
        if head:
            self.assertEqual(other.read(memoryview(theirs)), [memoryview(theirs)[head:]])
            self.assertEqual((mine[head:], theirs[head:]), (payload, payload))
            self.assertEqual((reader.whole, reader.between), (True, True))
            self.assertEqual(reader.isPlain, other.isPlain)
        else:
            self.assertEqual(mine, wire, "it was changed")
            if not (begun or wrong or more) and first == 0x82 and 0 < length < 65536:
                self.fail("it is one message in one frame")


class CloseTests(SynchronousTestCase):
    """Close frames."""

    def test_roundTrip(self) -> None:
        """Code and reason, the reason cut between characters."""
        self.assertEqual(readClose(closePayload(4000, "superseded")), (4000, "superseded"))
        code, reason = readClose(closePayload(1000, "é" * 100))
        self.assertEqual((code, reason), (1000, "é" * 61))
        self.assertEqual(readClose(b""), (1000, ""))

    def test_unreadable(self) -> None:
        """Half a code, codes that are not for the wire, a reason that is no text."""
        for payload, code in ((b"\x03", 1002), (b"\x03\xed", 1002), (b"\x03\xe8\xff", 1007)):
            with self.assertRaises(FrameError) as caught:
                readClose(payload)
            self.assertEqual(caught.exception.code, code)

    def test_controlFramesOfClose(self) -> None:
        """A close frame comes out whole."""
        wire = frame(closePayload(1001, "bye"), KEY, CLOSE)
        (found,) = gather(FrameReader(masked=True), wire, [3])
        assert isinstance(found, Control)
        self.assertEqual((found.opcode, readClose(found.payload)), (CLOSE, (1001, "bye")))
