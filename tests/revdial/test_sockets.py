"""
The relay on plain sockets: the same promises as the portable one, on real
sockets and a reactor of the test's own, which is turned by hand.
"""

from __future__ import annotations

import random
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Any

from twisted.internet import error
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
)
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from helix_revdial.revdial.data_websocket import DataWebSocketEndpoint
from helix_revdial.revdial.exchange import CarrierURL
from helix_revdial.revdial.relay import RelayEnd, relayPair
from helix_revdial.revdial.socket_loop import useSocketLoop
from helix_revdial.revdial.sockets import DELIVERY, SocketRelays
from helix_revdial.revdial.splices import spliceOf
from helix_revdial.revdial.upgrade import RawUpgradeEndpoint, rawServer
from tests.revdial.wire import HeadThen, dataHead

LIMIT = 20.0


@implementer(IHalfCloseableProtocol)
class Peer(Protocol):
    """One end of a stream, somewhere behind the relay."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.readEnded = False
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def readConnectionLost(self) -> None:
        self.readEnded = True

    def writeConnectionLost(self) -> None:
        """Not of interest."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason

    @property
    def wire(self) -> Any:
        return self.transport


class One(Factory):
    """Builds the one protocol."""

    noisy = False

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build

    def buildProtocol(self, addr: object) -> Any:
        return self._build()


class Bench:
    """
    Two peers with a relay between them.

    @ivar far: Behind a carrier, or a plain connection, of the given form.
    @ivar near: Beside the relay, on TCP or a unix socket.
    """

    def __init__(
        self,
        case: SynchronousTestCase,
        form: str,
        local: str,
        *,
        linger: float = 60.0,
        portable: bool = False,
    ) -> None:
        """
        @param portable: Whether the bytes go by the relay for any transport.
        """
        self.reactor = EPollReactor()
        if local == "tcp":
            # In the one way and in the other.
            useSocketLoop(self.reactor)
        self.case = case
        case.addCleanup(self.clean)
        self.ends: list[RelayEnd] = []
        self.sockets = SocketRelays(self.reactor, size=32 * 1024)
        left, right = relayPair(
            self.reactor,
            linger=linger,
            onEnd=self.ends.append,
            sockets=None if portable else self.sockets,
        )
        self.left = left
        self.far, self.near = Peer(), Peer()
        self._ports: list[Any] = []
        self._directories: list[str] = []
        self._connect(form, left)
        self._join(local, right)
        self.spin(lambda: left._pair.joined, "joined")
        self.pair: Any = left._pair

    def _connect(self, form: str, left: Any) -> None:
        """Connect the far peer and the relay's left half."""
        form, _, position = form.partition("/")
        if form in ("tcp", "unix"):
            self._join(form, left, listening=self.far)
            return
        eof = form.startswith("websocket+eof")
        clock = self.reactor

        def carrier(protocol: Any) -> Any:
            if form == "raw":
                return HeadThen(lambda: rawServer(protocol, clock=clock), replayHead=False)
            return dataHead(protocol, eof=eof, clock=clock)

        accepting, dialling = (left, self.far) if position == "server" else (self.far, left)
        port = self._listen("tcp", lambda: carrier(accepting))
        endpoint = TCP4ClientEndpoint(self.reactor, "127.0.0.1", port.getHost().port)
        url = CarrierURL("127.0.0.1", port.getHost().port, False, "/")
        upgrade: Any = (
            RawUpgradeEndpoint(self.reactor, endpoint, url)
            if form == "raw"
            else DataWebSocketEndpoint(
                self.reactor, endpoint, url, eof=eof, zeroKey=form.endswith("+zero")
            )
        )
        self.now(upgrade.connect(One(lambda: dialling)))

    def _join(self, local: str, half: Any, listening: Peer | None = None) -> None:
        peer = listening or self.near
        port = self._listen(local, lambda: peer)
        endpoint: Any
        if local == "tcp":
            endpoint = TCP4ClientEndpoint(self.reactor, "127.0.0.1", port.getHost().port)
        else:
            endpoint = UNIXClientEndpoint(self.reactor, port.getHost().name)
        self.now(endpoint.connect(One(lambda: half)))
        self.spin(lambda: bool(peer.connected), "accepted")

    def _listen(self, local: str, build: Callable[[], Any]) -> Any:
        endpoint: Any
        if local == "tcp":
            endpoint = TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1")
        else:
            # A path that a unix socket can have: trial's own are too long.
            directory = tempfile.mkdtemp(prefix="relay")
            self._directories.append(directory)
            endpoint = UNIXServerEndpoint(self.reactor, f"{directory}/s")
        port = self.now(endpoint.listen(One(build)))
        self._ports.append(port)
        return port

    def now(self, result: Any) -> Any:
        """Turn the reactor until C{result} is there."""
        found: list[Any] = []
        result.addBoth(found.append)
        self.spin(lambda: bool(found), "a result")
        if isinstance(found[0], Failure):
            found[0].raiseException()
        return found[0]

    def spin(self, until: Callable[[], bool], what: str) -> None:
        """Turn the reactor until something holds."""
        end = time.monotonic() + LIMIT
        while not until():
            if time.monotonic() > end:
                self.case.fail(f"waited {LIMIT} s for: {what}; {self.state()}")
            self.turn()

    def turn(self, delay: float = 0.01) -> None:
        """One turn of the reactor."""
        self.reactor.runUntilCurrent()
        timeout = self.reactor.timeout()
        self.reactor.doIteration(delay if timeout is None else min(delay, timeout))

    def rest(self, turns: int = 30) -> None:
        """Let what can happen at once happen."""
        for _ in range(turns):
            self.turn(0.002)

    def state(self) -> str:
        return (
            f"far got {len(self.far.got)} ended {self.far.readEnded} lost {self.far.lost}; "
            f"near got {len(self.near.got)} ended {self.near.readEnded} lost {self.near.lost}; "
            f"relay {self.ends}"
        )

    def bothLost(self) -> None:
        """Until relay and peers are over; a peer whose peer has ended closes."""

        def over() -> bool:
            for peer in (self.far, self.near):
                if self.ends and peer.readEnded and peer.lost is None:
                    peer.wire.loseConnection()
            return self.far.lost is not None and self.near.lost is not None and bool(self.ends)

        self.spin(over, "the end of everything")

    def clean(self) -> None:
        """Close what is left; no descriptor and no timer of the relay may be."""
        for peer in (self.far, self.near):
            if peer.lost is None and peer.transport is not None:
                peer.wire.abortConnection()
        for port in self._ports:
            port.stopListening()
        self.rest(10)
        for directory in self._directories:
            shutil.rmtree(directory)
        for call in self.reactor.getDelayedCalls():
            call.cancel()
        self.reactor.removeAll()
        self.reactor._poller.close()
        for descriptor in self.reactor._internalReaders:
            descriptor.connectionLost(connectionDone)


FORMS = (
    "tcp",
    "unix",
    "raw/server",
    "raw/client",
    "websocket+eof/server",
    "websocket+eof/client",
    "websocket/server",
    "websocket/client",
)

HALF_CLOSE = tuple(form for form in FORMS if not form.startswith("websocket/"))


class SocketRelayTests(SynchronousTestCase):
    """Every form of connection on the one side, TCP and unix on the other."""

    def each(self, forms: tuple[str, ...] = FORMS) -> list[tuple[str, Bench]]:
        benches = []
        for number, form in enumerate(forms):
            local = ("tcp", "unix")[number % 2]
            benches.append((f"{form} - {local}", Bench(self, form, local)))
        for name, bench in benches:
            self.assertTrue(bench.pair.taken, f"{name}: the sockets were not taken")
        return benches

    def test_bothWays(self) -> None:
        """Bytes go both ways, whole, whatever their sizes; both ends are orderly."""
        for name, bench in self.each(HALF_CLOSE):
            rng = random.Random(1)
            sent = {"far": bytearray(), "near": bytearray()}
            for _ in range(40):
                for side in ("far", "near"):
                    data = rng.randbytes(rng.choice((1, 10, 500, 5_000, 70_000)))
                    sent[side] += data
                    getattr(bench, side).wire.write(data)
                bench.turn()
            for peer in (bench.far, bench.near):
                peer.wire.loseWriteConnection()
            bench.bothLost()
            self.assertEqual(bench.near.got, sent["far"], name)
            self.assertEqual(bench.far.got, sent["near"], name)
            (end,) = bench.ends
            self.assertEqual(end.why, "done", name)
            self.assertEqual((end.fromLeft, end.fromRight), tuple(map(len, sent.values())), name)
            for peer in (bench.far, bench.near):
                assert peer.lost is not None
                self.assertTrue(peer.lost.check(error.ConnectionDone), f"{name}: {peer.lost}")

    def test_halfClose(self) -> None:
        """D1: the end of one direction is forwarded; the other goes on, with data after it."""
        for first, second in (("far", "near"), ("near", "far")):
            for name, bench in self.each(HALF_CLOSE):
                asks, answers = getattr(bench, first), getattr(bench, second)
                asks.wire.write(b"question")
                asks.wire.loseWriteConnection()
                bench.spin(lambda peer=answers: peer.readEnded, f"{name}: the end")  # type: ignore[misc]
                self.assertEqual(answers.got, b"question", name)
                bench.rest(5)
                self.assertIsNone(asks.lost, name)
                answers.wire.write(b"x" * 300_000)
                answers.wire.loseWriteConnection()
                bench.bothLost()
                self.assertEqual(len(asks.got), 300_000, name)
                self.assertEqual(bench.ends[0].why, "done", name)

    def test_closeFlushes(self) -> None:
        """D3: a large answer and then the end: the last byte arrives, on the old wire too."""
        for name, bench in self.each():
            payload = random.Random(2).randbytes(3_000_000)
            bench.far.wire.write(b"GET")
            bench.spin(lambda peer=bench.near: peer.got == b"GET", name)  # type: ignore[misc]
            bench.far.wire.pauseProducing()
            bench.near.wire.write(payload)
            bench.near.wire.loseConnection()
            bench.rest(50)
            bench.far.wire.resumeProducing()
            bench.spin(lambda peer=bench.far: len(peer.got) >= 3_000_000, name)  # type: ignore[misc]
            self.assertEqual(bench.far.got, payload, name)
            if bench.far.lost is None:
                bench.far.wire.loseConnection()
            bench.bothLost()
            self.assertEqual(bench.ends[0].why, "done", f"{name}: {bench.state()}")

    def test_stoppedReader(self) -> None:
        """D4: what a stopped reader costs is bounded, in both directions at once (D6)."""
        for name, bench in self.each():
            for peer in (bench.far, bench.near):
                peer.wire.pauseProducing()
            chunk = bytes(100_000)
            for _ in range(200):
                bench.far.wire.write(chunk)
                bench.near.wire.write(chunk)
            bench.rest(200)
            relay = bench.pair._relay
            for side in relay._sides:
                self.assertLessEqual(side.outbox.held, 33 * 1024, name)
                self.assertFalse(side._isReading and side.other.outbox.waits, name)
            for peer in (bench.far, bench.near):
                peer.wire.resumeProducing()
            bench.spin(
                lambda: len(bench.far.got) == len(bench.near.got) == 200 * len(chunk),  # noqa: B023
                f"{name}: everything",
            )
            self.assertEqual(bench.near.got.count(0), 200 * len(chunk), name)

    def test_abort(self) -> None:
        """A break on one side is a break on the other: a cut stream never looks whole."""
        for first, second in (("far", "near"), ("near", "far")):
            for name, bench in self.each():
                breaks, hears = getattr(bench, first), getattr(bench, second)
                breaks.wire.write(b"half of it")
                bench.spin(lambda peer=hears: bool(peer.got), name)  # type: ignore[misc]
                if "unix" in name:
                    continue  # the kernel has no reset there
                breaks.wire.abortConnection()
                bench.bothLost()
                assert hears.lost is not None
                self.assertFalse(hears.lost.check(error.ConnectionDone), f"{name}: {hears.lost}")
                self.assertEqual(bench.ends[0].why, "broken", name)

    def test_lastWords(self) -> None:
        """
        Who refuses what comes says why, and closes with it unread, which is a reset: what he
        said is passed on although sending to him fails first, and then the break.
        """
        for form in FORMS:
            bench = Bench(self, form, "tcp")
            bench.near.wire.getHandle().send(b"413 no more")
            bench.near.wire.abortConnection()
            # It closes; the relay has not heard of either.
            bench.reactor.runUntilCurrent()
            (side,) = [side for side in bench.pair._relay._sides if side._framing is None][-1:]
            side.guard(side.send, memoryview(bytearray(b"more")))
            bench.bothLost()
            self.assertEqual(bench.far.got, b"413 no more", form)
            self.assertEqual(bench.ends[0].why, "broken", form)
            if form != "unix":
                assert bench.far.lost is not None
                self.assertFalse(bench.far.lost.check(error.ConnectionDone), form)

    def test_cut(self) -> None:
        """F3: whoever owns the stream can cut it; both sides are closed at once."""
        for name, bench in self.each():
            bench.far.wire.write(b"x")
            bench.spin(lambda peer=bench.near: bool(peer.got), name)  # type: ignore[misc]
            bench.left.transport.abortConnection()
            bench.bothLost()
            self.assertEqual(bench.ends[0].why, "broken", name)

    def test_linger(self) -> None:
        """D2: an end and then silence for ever: the pair is dropped; talk keeps it."""
        for form in HALF_CLOSE:
            bench = Bench(self, form, "tcp", linger=0.3)
            bench.far.wire.loseWriteConnection()
            bench.spin(lambda peer=bench.near: peer.readEnded, form)  # type: ignore[misc]
            for _ in range(5):
                began = time.monotonic()
                while time.monotonic() < began + 0.1:
                    bench.turn()
                bench.near.wire.write(b"still here")
            self.assertEqual(bench.ends, [], form)
            bench.bothLost()
            self.assertEqual(bench.ends[0].why, "lingered", form)

    def test_slowReader(self) -> None:
        """
        D2: what the kernel still sends is movement; and who has been sent everything,
        the end included, gets it, though the other direction is given up.
        """
        for form in HALF_CLOSE:
            bench = Bench(self, form, "tcp")
            relay = bench.pair._relay
            side = relay._sides[1]
            # So that the kernel has all, and the reader not.
            side._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1_000_000)
            reader = bench.near.wire
            reader.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            reader.pauseProducing()
            bench.far.wire.write(bytes(300_000))
            bench.far.wire.loseWriteConnection()
            bench.spin(lambda side=side: side.hasSentAll, form)  # type: ignore[misc]

            def silence(bench: Bench = bench, relay: Any = relay) -> bool:
                relay.movedAt -= relay.linger + 1
                bench.sockets._lookAtSilence()
                return bool(bench.ends)

            for _ in range(2):
                self.assertFalse(silence(), form)
                before = side.unsent
                self.assertTrue(before, form)
                reader.resumeProducing()
                bench.spin(lambda side=side, was=before: side.unsent != was, form)  # type: ignore[misc]
                reader.pauseProducing()
            # A reader that stops has ten times as long.
            for _ in range(DELIVERY - 1):
                self.assertFalse(silence(), form)
            bench.spin(silence, form)
            self.assertEqual(bench.ends[0].why, "lingered", form)
            reader.resumeProducing()
            bench.spin(lambda peer=bench.near: peer.readEnded, form)  # type: ignore[misc]
            self.assertEqual(len(bench.near.got), 300_000, form)
            bench.bothLost()

    def test_ping(self) -> None:
        """A ping on a data connection is answered between the payload."""
        bench = Bench(self, "websocket+eof/server", "tcp")
        bench.far.wire.write(b"a")
        answer = bench.far.wire.ping()
        bench.far.wire.write(b"b")
        self.assertLess(bench.now(answer), LIMIT)
        bench.spin(lambda: bench.near.got == b"ab", "the payload")

    def test_zeroKey(self) -> None:
        """A zero key that is agreed lets the agent's bulk go through pipes, and the server's in."""
        for position in ("client", "server"):
            for agreed in ("", "+zero"):
                bench = Bench(self, f"websocket+eof{agreed}/{position}", "tcp")
                giver, taker = bench.near, bench.far
                if position == "server":
                    giver, taker = taker, giver
                giver.wire.write(bytes(300_000))
                bench.spin(lambda peer=taker: len(peer.got) == 300_000, position)  # type: ignore[misc]
                relay = bench.pair._relay
                self.assertEqual(
                    relay._sides[0]._framing.zeroKey, bool(agreed) and position == "client"
                )
                side, relays = relay._sides[1], relay.relays
                splice = spliceOf(side, side.other, relays.pipes, relays.bulk)
                self.assertEqual(splice is not None, bool(agreed) or position != "client")

    def test_badFrames(self) -> None:
        """F10: a peer that breaks the protocol loses its own stream, with a close frame."""
        bench = Bench(self, "websocket+eof/server", "tcp")
        bench.far.wire._frames.transport.write(b"\x81\x80abcd")
        bench.bothLost()
        self.assertEqual(bench.ends[0].why, "broken")
        assert bench.far.lost is not None
        self.assertIn("1003", str(bench.far.lost.value))

    def test_whoHasEndedIsHeard(self) -> None:
        """
        A WebSocket peer that has ended its direction pings on, and is answered; a second mark
        is nothing, payload is a fault, and its close ends the other direction at once.
        """
        for form in ("websocket+eof/client", "websocket+eof/server"):
            for last, code in (("payload", 1002), ("close", 1000), ("fin", None)):
                bench = Bench(self, form, "tcp")
                bench.far.wire.write(b"abc")
                bench.far.wire.loseWriteConnection()
                bench.spin(lambda b=bench: b.near.readEnded, form)  # type: ignore[misc]
                self.assertLess(bench.now(bench.far.wire.ping()), LIMIT)
                frames = bench.far.wire._frames
                frames._sendFrame(2, b"")
                self.assertLess(bench.now(bench.far.wire.ping()), LIMIT)
                bench.near.wire.write(b"late")
                bench.spin(lambda b=bench: b.far.got == b"late", form)  # type: ignore[misc]
                if last == "payload":
                    frames._sendFrame(2, b"x")
                elif last == "close":
                    frames.sendCloseFrame(1000, None)
                else:
                    frames.transport.unregisterProducer()
                    frames.transport.loseConnection()
                bench.spin(lambda b=bench: bool(b.ends), last)  # type: ignore[misc]
                bench.bothLost()
                self.assertEqual(bytes(bench.near.got), b"abc", form)
                self.assertEqual(bench.ends[0].why, "broken" if code == 1002 else "done", last)

    def test_closeFrameEndsBoth(self) -> None:
        """
        A peer's close frame in good order ends both directions, with or without end marks
        (docs/wire.md, 7.1): what came before it arrives, both sides hear an end, and it is
        answered (RFC 6455, 5.5.1).
        """
        for form in ("websocket+eof/client", "websocket+eof/server", "websocket/server"):
            for isBehindAnEnd in (False, True) if "eof" in form else (False,):
                bench = Bench(self, form, "tcp")
                if isBehindAnEnd:
                    bench.near.wire.loseWriteConnection()
                    bench.spin(lambda b=bench: b.far.readEnded, form)  # type: ignore[misc]
                bench.far.wire.write(b"abc")
                bench.far.wire._frames.sendCloseFrame(1000, None)
                bench.bothLost()
                self.assertEqual(bytes(bench.near.got), b"abc", form)
                self.assertEqual(bench.ends[0].why, "done", form)
                for peer in (bench.near, bench.far):
                    assert peer.lost is not None
                    self.assertIsInstance(peer.lost.value, error.ConnectionDone, form)

    def test_serverSpeaksFirst(self) -> None:
        """C6: what a service says before it is asked arrives."""
        for form in FORMS:
            bench = Bench(self, form, "tcp")
            bench.near.wire.write(b"SSH-2.0-x\r\n")
            bench.spin(lambda b=bench: b.far.got == b"SSH-2.0-x\r\n", form)  # type: ignore[misc]

    def test_nothingIsLeft(self) -> None:
        """After the end no descriptor and no timer is registered."""
        for name, bench in self.each():
            bench.far.wire.write(b"x")
            bench.far.wire.loseConnection()
            bench.spin(
                lambda peer=bench.near: peer.readEnded or peer.lost is not None,  # type: ignore[misc]
                name,
            )
            bench.near.wire.loseConnection()
            bench.bothLost()
            bench.rest(5)
            relays = bench.pair.sockets
            watched = set(bench.reactor.getReaders()) | set(bench.reactor.getWriters())
            self.assertEqual(watched & {relays.poll}, set(), name)
            self.assertEqual(
                [call for call in bench.reactor.getDelayedCalls() if "relay" in repr(call)],
                [],
                name,
            )
            self.assertEqual(relays.poll._watched, {}, name)


class InterleavingTests(SynchronousTestCase):
    """Any order of writes, pauses, ends and breaks, on every form."""

    portable = False

    def test_anyInterleaving(self) -> None:
        """
        What arrives is a prefix of what was sent, and all of it where the end arrived; both
        learn the end.
        """
        for seed in range(32):
            rng = random.Random(seed)
            form = HALF_CLOSE[seed % len(HALF_CLOSE)]
            local = rng.choice(("tcp", "unix"))
            bench = Bench(self, form, local, portable=self.portable)
            # The kernel has no reset there: what was cut may look whole.
            breaks = rng.random() < 0.5 and "unix" not in (form, local)
            peers = {"far": bench.far, "near": bench.near}
            sent = {"far": bytearray(), "near": bytearray()}
            ended: set[str] = set()
            for _ in range(60):
                side = rng.choice(("far", "near"))
                peer = peers[side]
                move = rng.choice(("write", "write", "pause", "resume", "turn", "turn", "end"))
                if move == "write" and side not in ended:
                    data = rng.randbytes(rng.choice((1, 100, 20_000, 150_000)))
                    sent[side] += data
                    peer.wire.write(data)
                elif move == "pause":
                    peer.wire.pauseProducing()
                elif move == "resume":
                    peer.wire.resumeProducing()
                elif move == "end" and rng.random() < 0.1 and side not in ended:
                    ended.add(side)
                    peer.wire.loseWriteConnection()
                elif move == "end" and breaks and rng.random() < 0.2:
                    self.breaks(bench, side, sent, ended, f"seed {seed} {form} {local}")
                    break
                else:
                    bench.turn(0.001)
                self.assertTrue(sent["far"].startswith(bench.near.got), f"seed {seed} {form}")
                self.assertTrue(sent["near"].startswith(bench.far.got), f"seed {seed} {form}")
            else:
                for side, peer in peers.items():
                    peer.wire.resumeProducing()
                    if side not in ended:
                        peer.wire.loseWriteConnection()
                bench.bothLost()
                self.assertEqual(bench.near.got, sent["far"], f"seed {seed} {form}")
                self.assertEqual(bench.far.got, sent["near"], f"seed {seed} {form}")
                self.assertEqual(bench.ends[0].why, "done", f"seed {seed} {form}")
                # Counted on every path.
                self.assertEqual(
                    (bench.ends[0].fromLeft, bench.ends[0].fromRight),
                    (len(sent["far"]), len(sent["near"])),
                )

    def breaks(
        self, bench: Bench, side: str, sent: dict[str, bytearray], ended: set[str], name: str
    ) -> None:
        """One side breaks its connection: the other learns it, and takes nothing for an end."""
        peers = {"far": bench.far, "near": bench.near}
        broken = peers.pop(side)
        [other] = peers.values()
        if other.lost is None:
            other.wire.resumeProducing()
        broken.wire.abortConnection()
        bench.bothLost()
        self.assertTrue(sent["far"].startswith(bench.near.got), name)
        self.assertTrue(sent["near"].startswith(bench.far.got), name)
        assert other.lost is not None
        if other.readEnded or other.lost.check(error.ConnectionDone):
            self.assertIn(side, ended, f"{name}: an end that nobody sent")
            self.assertEqual(other.got, sent[side], f"{name}: an early end")


class PortableInterleavingTests(InterleavingTests):
    """The same by the relay for any transport."""

    portable = True
