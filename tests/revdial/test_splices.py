"""
Tests for L{helix_revdial.revdial.splices}: bulk through pipes, on real sockets.
"""

from __future__ import annotations

import errno
import os
import random
import socket
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.frames import MAX_HEAD, PING, PONG, FrameReader, frame
from helix_revdial.revdial.pipes import Pipe, Pipes, openPipe
from helix_revdial.revdial.socket_outbox import Outbox
from helix_revdial.revdial.splices import Bulk
from tests.revdial.socket_pairs import FORMS, TINY, Peer, Room, Stream, descriptors

ZERO = bytes(4)
KEY = b"\x11\x22\x33\x44"


class Counted(Pipe):
    """A pipe that says what went through it, and can refuse."""

    filled: list[int]
    fillFails: OSError | None = None
    drainFails: OSError | None = None

    def fill(self, descriptor: int, most: int) -> int:
        if self.fillFails is not None:
            raise self.fillFails
        got = super().fill(descriptor, most)
        self.filled.append(got)
        return got

    def drain(self, descriptor: int) -> int:
        if self.drainFails is not None:
            raise self.drainFails
        return super().drain(descriptor)


class Counting:
    """Makes such pipes."""

    def __init__(self) -> None:
        self.filled: list[int] = []
        self.fillFails: OSError | None = None
        self.drainFails: OSError | None = None

    def __call__(self) -> Pipe | None:
        pipe = Counted(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        pipe.filled = self.filled
        pipe.fillFails = self.fillFails
        pipe.drainFails = self.drainFails
        return pipe

    @property
    def bytes(self) -> int:
        """Bytes that went through pipes."""
        return sum(self.filled)


class SpliceCase(SynchronousTestCase):
    """Rooms that are cleaned up."""

    def setUp(self) -> None:
        self.counting = Counting()

    def room(self, **words: Any) -> Room:
        words.setdefault("make", self.counting)
        room = Room(**words)
        self.addCleanup(room.clean)
        return room

    def through(self, room: Room, stream: Stream, payload: bytes, *, source: int) -> None:
        """Send C{payload} one way, and see it arrive."""
        giver, taker = stream.peers[source], stream.peers[1 - source]
        before = len(taker.got)
        giver.write(payload)
        room.spin(lambda: len(taker.got) - before >= len(payload), "the payload")
        self.assertEqual(taker.got[before:], payload)

    def finish(self, room: Room, stream: Stream) -> None:
        """Both ends say that they are done; all has arrived, and nothing is left."""
        for peer in stream.peers:
            if not peer.saidEnd:
                peer.end()
        room.spin(lambda: stream.over and stream.heard, "the end")
        self.assertEqual([each.why for each in stream.ended], ["done"])
        for peer, other in (stream.peers, stream.peers[::-1]):
            self.assertEqual(peer.sent, other.got)
            self.assertTrue(peer.ended)
        self.assertEqual(stream.counted, [len(peer.sent) for peer in stream.peers])


class WhereTests(SpliceCase):
    """Where bytes go through pipes, and where they do not."""

    def spliced(self, left: str, right: str, key: bytes) -> tuple[bool, bool]:
        """Whether bulk goes through pipes: from the left, from the right."""
        found = []
        for source in (0, 1):
            room = self.room()
            stream = room.stream(left, right, key=key)
            self.counting.filled.clear()
            self.through(room, stream, random.Random(1).randbytes(500_000), source=source)
            found.append(self.counting.bytes > 400_000)
            self.finish(room, stream)
            self.assertEqual((room.pipes.open, room.pipes.inUse), (0, 0))
        return found[0], found[1]

    def test_raw(self) -> None:
        """Both ways between plain sockets, TCP and unix."""
        for left in ("tcp", "unix"):
            for right in ("tcp", "unix"):
                self.assertEqual(self.spliced(left, right, KEY), (True, True), f"{left} {right}")

    def test_webSocket(self) -> None:
        """What a server sends has no mask: it goes through pipes at both ends, and only that."""
        self.assertEqual(self.spliced("server", "tcp", KEY), (False, True))
        self.assertEqual(self.spliced("client", "unix", KEY), (True, False))

    def test_zeroKey(self) -> None:
        """With a zero key agreed, both ways."""
        self.assertEqual(self.spliced("server", "tcp", ZERO), (True, True))
        self.assertEqual(self.spliced("client", "tcp", ZERO), (True, True))

    def test_zeroKeyIsForPipes(self) -> None:
        """What goes through the buffer is masked with a random key all the same."""
        room = self.room(bulk=Bulk())
        stream = room.stream("client", "tcp", key=ZERO)
        near = stream.peers[0]
        heads = bytearray()
        near._received = heads.__iadd__  # type: ignore[assignment]
        stream.peers[1].write(b"x" * 100)
        room.spin(lambda: len(heads) >= 106, "a frame")
        self.assertNotEqual(bytes(heads[2:6]), ZERO)
        self.assertEqual(self.counting.filled, [])

    def test_off(self) -> None:
        """It can be switched off; where the platform has none it is."""
        room = self.room(splice=False)
        self.assertIsNone(room.relays.pipes)
        stream = room.stream()
        self.through(room, stream, bytes(500_000), source=0)
        self.finish(room, stream)
        self.assertEqual(self.counting.filled, [])


class WhenTests(SpliceCase):
    """Bulk goes through pipes, small messages through the buffer."""

    def test_smallMessages(self) -> None:
        """A ping-pong never opens a pipe."""
        room = self.room(bulk=Bulk())
        stream = room.stream()
        for _ in range(50):
            for source in (0, 1):
                self.through(room, stream, b"x" * 64, source=source)
        self.assertEqual(room.pipes.open, 0)
        self.finish(room, stream)

    def test_bulkAndBack(self) -> None:
        """It is entered after large reads, and left with a small one."""
        bulk = Bulk(large=4096, reads=2, small=2048, atOnce=65536, quantum=65536)
        for form in FORMS:
            room = self.room(bulk=bulk)
            stream = room.stream("tcp", form, key=ZERO)
            self.counting.filled.clear()
            self.through(room, stream, bytes(400_000), source=0)
            self.assertGreater(self.counting.bytes, 200_000, form)
            self.through(room, stream, b"x", source=0)
            self.counting.filled.clear()
            for _ in range(10):
                self.through(room, stream, b"x" * 64, source=0)
            self.assertEqual(self.counting.filled, [], form)
            self.finish(room, stream)

    def test_smallFramesBehindLargeOnes(self) -> None:
        """A WebSocket whose frames become small leaves the pipes, at any size of the rest."""
        bulk = Bulk(large=4096, reads=1, small=2048, atOnce=16384, quantum=65536)
        for rest in (1, 2047, 2048, 2049):
            room = self.room(bulk=bulk)
            stream = room.stream("client", "tcp")
            peer = stream.peers[0]
            for _ in range(5):
                peer.write(bytes(2 * 16384 + rest))
            for _ in range(20):
                peer.write(b"x" * 100)
            self.finish(room, stream)


class BoundTests(SpliceCase):
    """What a direction may hold, and what it may take of the others' time."""

    def test_stoppedReader(self) -> None:
        """D4: what lies in memory and in the pipe of a stopped reader is bounded."""
        for form in FORMS:
            room = self.room()
            stream = room.stream("tcp", form, key=ZERO)
            giver, taker = stream.peers
            giver.write(random.Random(3).randbytes(2_000_000))
            for _ in range(300):
                giver.push()
                room.turn()
            held = stream.relay._sides[1].outbox.held
            self.assertGreater(held, 0, form)
            self.assertLessEqual(held, TINY.atOnce + MAX_HEAD, form)
            self.assertFalse(stream.relay._sides[0]._isReading, form)
            self.assertLessEqual(room.pipes.inUse, 1, form)
            self.finish(room, stream)
            self.assertEqual(len(taker.got), 2_000_000, form)

    def test_fair(self) -> None:
        """One turn moves a quantum and a pipe at most, however much there is."""
        bulk = Bulk(large=1, reads=1, small=1, atOnce=4096, quantum=8192)
        room = self.room(bulk=bulk)
        stream = room.stream("unix", "unix")
        giver, taker = stream.peers
        giver.write(bytes(1000))
        room.spin(lambda: len(taker.got) == 1000, "the first")
        for _ in range(20):
            giver.write(bytes(50_000))
            before = stream.counted[0]
            room.turn()
            taker.pull()
            self.assertLessEqual(stream.counted[0] - before, 8192 + 4096)
        self.finish(room, stream)

    def test_fairThroughTheBuffer(self) -> None:
        """One turn moves one read of each stream at most, beside others that have their turn."""
        for form in FORMS:
            room = self.room(splice=False, size=8192)
            flood, small = room.stream("unix", form), room.stream("unix", form)
            giver, taker = flood.peers
            for turn in range(20):
                giver.write(bytes(50_000))
                small.peers[0].write(b"x")
                before = flood.counted[0]
                room.turn()
                taker.pull()
                self.assertLessEqual(flood.counted[0] - before, 8192, form)
                self.assertGreaterEqual(small.counted[0], turn, form)
            self.finish(room, flood)
            self.finish(room, small)

    def test_pipesAreShared(self) -> None:
        """A pipe is held only while bytes are in it: one serves many streams."""
        room = self.room(limit=1)
        streams = [room.stream() for _ in range(5)]
        for turn in range(20):
            for number, stream in enumerate(streams):
                self.through(room, stream, bytes([number, turn]) * 5_000, source=turn % 2)
            self.assertEqual(room.pipes.inUse, 0)
        self.assertEqual(room.pipes.open, 1)
        for stream in streams:
            self.finish(room, stream)

    def test_noPipes(self) -> None:
        """Without pipes everything goes through the buffer, as ever."""
        for form in FORMS:
            room = self.room(make=lambda: None)
            stream = room.stream("tcp", form, key=ZERO)
            for source in (0, 1):
                self.through(room, stream, random.Random(4).randbytes(300_000), source=source)
            self.finish(room, stream)

    def test_descriptorsWithoutSplice(self) -> None:
        """Where the kernel refuses, in or out, the buffer goes on where the pipe stopped."""
        for word in ("fillFails", "drainFails"):
            for number in (errno.EINVAL, errno.EPERM):
                for form in FORMS:
                    name = f"{word} {errno.errorcode[number]} {form}"
                    self.counting = Counting()
                    setattr(self.counting, word, OSError(number, "no"))
                    room = self.room()
                    stream = room.stream("tcp", form, key=ZERO)
                    self.through(room, stream, random.Random(4).randbytes(300_000), source=0)
                    self.assertLessEqual(len(self.counting.filled), 1, name)
                    self.finish(room, stream)

    def test_nothingIsLeft(self) -> None:
        """Streams that end, in whatever way, leave no pipe and no descriptor."""
        room = self.room(limit=4)
        room.turn()
        before = descriptors()
        for number in range(24):
            stream = room.stream("tcp", FORMS[number % 4], key=ZERO)
            stream.peers[0].write(bytes(300_000))
            for _ in range(10):
                room.turn()
            if number % 3:
                stream.peers[number % 2].reset()
            else:
                stream.relay.abort()
            room.spin(lambda s=stream: s.over, "the end")  # type: ignore[misc]
            for peer in stream.peers:
                peer.close()
        self.assertEqual((room.pipes.open, room.pipes.inUse), (0, 0))
        # The epoll of the relays stays.
        self.assertLessEqual(descriptors() - before, 1)


class BreakTests(SpliceCase):
    """One stream's end is no other's."""

    def test_neverAnothersBytes(self) -> None:
        """
        Streams that die with bytes in a pipe, beside streams that live on with the same few
        pipes: each reader gets what was written for it.
        """
        room = self.room(limit=2)
        living = [room.stream("tcp", form, key=ZERO) for form in FORMS]
        source = random.Random(5)
        for turn in range(40):
            dying = room.stream(key=ZERO)
            dying.peers[0].write(b"\xee" * 200_000)
            for _ in range(source.randrange(8)):
                room.turn()
            for number, stream in enumerate(living):
                for peer in stream.peers:
                    peer.write(bytes([number]) * source.randrange(1, 30_000))
                    peer.pull()
            dying.peers[source.randrange(2)].reset()
            room.spin(lambda s=dying: s.over, f"the end of the {turn}th")  # type: ignore[misc]
            for peer in dying.peers:
                peer.close()
            room.streams.remove(dying)
            self.assertLessEqual(room.pipes.open, 2)
        for number, stream in enumerate(living):
            self.finish(room, stream)
            for peer in stream.peers:
                self.assertEqual(set(peer.got), {number})

    def test_failureIsItsOwn(self) -> None:
        """A pipe that fails in a way that nobody expects ends its stream, and no other."""
        room = self.room()
        other = room.stream()
        self.through(room, other, bytes(200_000), source=0)
        self.counting.fillFails = OSError(errno.EIO, "no such luck")
        room.pipes.close()
        stream = room.stream()
        stream.peers[0].write(bytes(200_000))
        room.spin(lambda: stream.over, "the end")
        self.assertEqual([each.why for each in stream.ended], ["broken"])
        self.counting.fillFails = None
        room.pipes.close()
        self.through(room, other, bytes(200_000), source=1)
        self.finish(room, other)

    def test_endBehindWhatFillsTheSocket(self) -> None:
        """D3: an end that is read together with bytes that the other socket does not take."""
        for form in ("server", "client"):
            waited = 0
            for size in range(1000, 31_000, 1000):
                room = self.room(splice=size % 2000 > 0)
                stream = room.stream(form, "tcp")
                giver, taker = stream.peers
                right = stream.relay._sides[1]
                # Its reader stands still, until so much is in the kernel that there is no room;
                # then it makes a little.
                while not right.outbox.waits:
                    giver.write(bytes(1000))
                    room.turn()
                while right.outbox.waits:
                    taker.pull(1000)
                    room.turn()
                giver.write(random.Random(8).randbytes(size))
                giver.end()
                room.turn()
                waited += right._endWaits
                self.finish(room, stream)
            self.assertGreater(waited, 0, form)

    def test_pongsAreBetweenFrames(self) -> None:
        """A ping while a frame's payload lies in a pipe does not tear that frame."""
        for form, masked in (("server", False), ("client", True)):
            room = self.room()
            stream = room.stream(form, "tcp", key=ZERO)
            caller, plain = stream.peers
            plain.write(bytes(1_000_000))
            for turn in range(40):
                plain.push()
                caller._out += frame(b"?%d" % turn, caller._key, PING)
                caller.push()
                room.turn()
            self.assertGreater(stream.relay._sides[0].outbox.held, 0, form)
            reader = FrameReader(masked=masked)
            seen: list[int] = []
            received = caller._received

            def look(data: bytearray) -> None:
                for one in reader.read(memoryview(bytearray(data))):  # noqa: B023
                    if getattr(one, "opcode", None) == PONG:
                        seen.append(1)  # noqa: B023
                received(data)  # noqa: B023

            caller._received = look  # type: ignore[method-assign]
            room.spin(lambda: len(caller.got) == 1_000_000, "the payload")  # noqa: B023
            self.finish(room, stream)


class OutboxTests(SynchronousTestCase):
    """What waits for a socket that is full."""

    def setUp(self) -> None:
        self.target, self.taker = socket.socketpair()
        self.giver, self.source = socket.socketpair()
        for each in (self.target, self.taker, self.giver, self.source):
            each.setblocking(False)
            self.addCleanup(each.close)
        self.pipes = Pipes(Clock(), make=lambda: openPipe(65536))
        self.addCleanup(self.pipes.close)
        self.outbox = Outbox(self.target, self.pipes)

    def pipe(self, payload: bytes) -> Pipe:
        """A pipe of ours, filled."""
        pipe = self.pipes.take()
        assert pipe is not None
        self.giver.send(payload)
        pipe.fill(self.source.fileno(), len(payload))
        return pipe

    def fill(self) -> int:
        """Send until nothing is taken any more."""
        size = 0
        while not self.outbox.waits:
            self.outbox.send(memoryview(b"." * 10_000))
            size += 10_000
        return size

    def everything(self) -> bytes:
        """Receive until nothing waits."""
        got = b""
        while True:
            try:
                got += self.taker.recv(65536)
            except BlockingIOError:
                if not self.outbox.waits:
                    return got
                self.outbox.flush()

    def test_order(self) -> None:
        """Memory, a head, its pipe, and what is to follow: they leave in the order they came."""
        size = self.fill()
        self.outbox.splice(b"<head>", self.pipe(b"payload " * 500))
        self.assertEqual(self.pipes.inUse, 1)
        self.outbox.sendPieces([memoryview(b"behind"), memoryview(b" it")], 9)
        self.assertEqual(self.pipes.inUse, 0)
        self.outbox.splice(b"<again>", self.pipe(b"more"))
        held = self.outbox.held
        got = self.everything()
        self.assertGreaterEqual(len(got), held)
        self.assertEqual(got, b"." * size + b"<head>" + b"payload " * 500 + b"behind it<again>more")
        self.assertEqual((self.outbox.held, self.pipes.inUse), (0, 0))

    def test_pipeBehindAPipe(self) -> None:
        """There is one pipe at a time: the earlier one's bytes go to memory."""
        size = self.fill()
        for number in range(3):
            self.outbox.splice(b"%d" % number, self.pipe(b"abc"))
            self.assertEqual(self.pipes.inUse, 1)
        self.assertEqual(self.everything(), b"." * size + b"0abc1abc2abc")

    def test_clear(self) -> None:
        """What is dropped is dropped with its pipe."""
        self.fill()
        self.outbox.splice(b"<head>", self.pipe(b"payload"))
        self.outbox.clear()
        self.assertEqual((self.outbox.held, self.outbox.waits), (0, False))
        self.assertEqual((self.pipes.inUse, self.pipes.open), (0, 0))


class SpliceMachine(RuleBasedStateMachine):
    """
    Streams of all forms over few pipes; their peers do what they like, in any order.

    The model is what each peer has written and whether it has ended in good order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.source = random.Random(1)
        self.streams: list[Stream] = []
        self.room: Room

    @initialize(
        limit=st.sampled_from([0, 1, 2, 64]),
        bulk=st.sampled_from([TINY, Bulk(large=2048, small=512, atOnce=8192, quantum=8192)]),
        forms=st.lists(
            st.tuples(
                st.sampled_from(FORMS),
                st.sampled_from(FORMS),
                st.sampled_from([ZERO, KEY]),
            ),
            min_size=1,
            max_size=3,
        ),
    )
    def begin(self, limit: int, bulk: Bulk, forms: list[tuple[str, str, bytes]]) -> None:
        self.room = Room(limit=limit, bulk=bulk)
        for left, right, key in forms:
            self.streams.append(self.room.stream(left, right, key=key))
        self.cut: set[int] = set()

    def peer(self, which: int) -> tuple[int, Peer]:
        number = which // 2 % len(self.streams)
        return number, self.streams[number].peers[which % 2]

    @rule(which=st.integers(0, 5), size=st.sampled_from([1, 100, 5_000, 60_000, 300_000]))
    def write(self, which: int, size: int) -> None:
        _, peer = self.peer(which)
        if not (peer.saidEnd or peer.closed):
            peer.write(self.source.randbytes(size))

    @rule(which=st.integers(0, 5))
    def push(self, which: int) -> None:
        self.peer(which)[1].push()

    @rule(which=st.integers(0, 5), most=st.sampled_from([1, 3_000, 1_000_000]))
    def pull(self, which: int, most: int) -> None:
        self.peer(which)[1].pull(most)

    @rule(which=st.integers(0, 5))
    def end(self, which: int) -> None:
        _, peer = self.peer(which)
        if not (peer.saidEnd or peer.closed):
            peer.end()

    @rule(which=st.integers(0, 5), sure=st.integers(0, 3))
    def reset(self, which: int, sure: int) -> None:
        number, peer = self.peer(which)
        if not sure:
            self.cut.add(number)
            peer.reset()

    @rule(which=st.integers(0, 5), sure=st.integers(0, 3))
    def leave(self, which: int, sure: int) -> None:
        number, peer = self.peer(which)
        if not sure and peer.role is not None and not peer.saidEnd:
            self.cut.add(number)
            peer.leave()

    @rule(turns=st.integers(1, 10))
    def turn(self, turns: int) -> None:
        for _ in range(turns):
            self.room.turn()

    @invariant()
    def whatArrivedIsABeginning(self) -> None:
        for stream in self.streams:
            for giver, taker in (stream.peers, stream.peers[::-1]):
                assert giver.sent.startswith(taker.got), stream.state()

    @invariant()
    def anEndMeansAll(self) -> None:
        for number, stream in enumerate(self.streams):
            for giver, taker in (stream.peers, stream.peers[::-1]):
                # A break looks like an end on a unix socket: there is no reset.
                if taker.ended and not (number in self.cut and taker.isUnix):
                    assert giver.saidEnd, f"an end that nobody sent: {stream.state()}"
                    assert taker.got == giver.sent, f"an early end: {stream.state()}"

    @invariant()
    def itIsBounded(self) -> None:
        for stream in self.streams:
            for side in stream.relay._sides:
                assert side.outbox.held <= self.room.relays.size + 64 * MAX_HEAD, stream.state()

    def teardown(self) -> None:
        if not self.streams:
            return
        room = self.room
        try:
            for number, stream in enumerate(self.streams):
                for peer in stream.peers:
                    if not (peer.saidEnd or peer.closed):
                        peer.end()
                room.spin(lambda s=stream: s.over and s.heard, "an end")  # type: ignore[misc]
                self.whatArrivedIsABeginning()
                self.anEndMeansAll()
                if number not in self.cut:
                    assert [each.why for each in stream.ended] == ["done"], stream.state()
                    assert stream.counted == [len(peer.sent) for peer in stream.peers]
                    for giver, taker in (stream.peers, stream.peers[::-1]):
                        assert taker.ended, stream.state()
                        assert taker.got == giver.sent, stream.state()
            assert (room.pipes.open, room.pipes.inUse) == (0, 0), "pipes are left"
        finally:
            room.clean()


class SpliceMachineTests(SynchronousTestCase):
    """Run the machine."""

    def test_anyInterleaving(self) -> None:
        """
        D1, D3, D4: bytes that arrive are a beginning of what was sent, all of it where the
        end arrived; both sides learn the end; all pipes come back.
        """
        run_state_machine_as_test(
            SpliceMachine,
            settings=settings(deadline=None, max_examples=60, stateful_step_count=40),
        )


class RealPipeTests(SpliceCase):
    """With pipes as large as they are in earnest."""

    def test_bulk(self) -> None:
        """Several MiB each way at once, through the buffer first and then through pipes."""
        room = self.room(bulk=Bulk(large=1024), make=openPipe)
        stream = room.stream("tcp", "client", key=ZERO)
        for peer in stream.peers:
            peer.write(random.Random(6).randbytes(3_000_000))
        self.finish(room, stream)
