"""
Large bodies, slow readers and many dials through processes: nothing is lost,
memory stays within what docs/operating.md states, and nothing is left.

C{HELIX_TEST_LONG=1} moves 1 GiB each way instead of 64 MiB.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from hashlib import sha256

import trustme

from .fleet import (
    LIMIT,
    LONG,
    FleetCase,
    Program,
    Server,
    Session,
    desktop,
    echo,
    freePort,
    inParallel,
    receive,
    until,
)
from .gopeer import GoPeer

MIB = 1024 * 1024
SIZE = 1024 * MIB if LONG else 64 * MIB
"""Bytes each way."""

PAUSES = 4
"""How often a slow reader stops reading, for L{PAUSE} seconds, on its way through."""

PAUSE = 1.0 if LONG else 0.25

LATE = 3.0 if LONG else 0.5
"""Seconds for which a reader does not read at all."""

BURST = 20_000_000
"""Bytes that are followed by a close at once."""

STREAM_MEMORY = 8 * 1024
"""kB that one stream may cost a process at most, whatever flows: docs/operating.md."""

BLOCK = random.Random(1).randbytes(256 * 1024)


def pour(connection: socket.socket, size: int, seed: int) -> bytes:
    """
    Send C{size} bytes.

    @return: Their digest.
    """
    digest = sha256()
    for number in range(size // len(BLOCK)):
        piece = struct.pack(">II", seed, number) + BLOCK[8:]
        digest.update(piece)
        connection.sendall(piece)
    return digest.digest()


def drink(connection: socket.socket, size: int) -> bytes:
    """
    Read C{size} bytes, slowly.

    @return: Their digest.
    """
    digest = sha256()
    left = size
    stops = [size * part // PAUSES for part in range(PAUSES)]
    while left:
        if stops and left <= stops[-1]:
            stops.pop()
            time.sleep(PAUSE)
        piece = connection.recv(min(left, 256 * 1024))
        if not piece:
            raise ConnectionError(f"the stream ended {left} bytes early")
        digest.update(piece)
        left -= len(piece)
    return digest.digest()


def exact(connection: socket.socket, size: int) -> bytes:
    """Exactly C{size} bytes."""
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionError(f"the stream ended after {len(data)} of {size} bytes")
        data += piece
    return data


def bothWays(connection: socket.socket, seed: int) -> tuple[bytes, bytes]:
    """
    Pour and drink at the same time.

    @return: The digests of what was sent and what was received.
    """
    sent: list[bytes] = []
    pouring = threading.Thread(target=lambda: sent.append(pour(connection, SIZE, seed)))
    pouring.start()
    received = drink(connection, SIZE)
    pouring.join()
    return sent[0], received


def mirror(connection: socket.socket) -> None:
    """Sends as much as it gets, then both digests, and waits for the end."""
    sent, received = bothWays(connection, 2)
    connection.sendall(sent + received)
    connection.recv(1)


def burst(connection: socket.socket) -> None:
    """Sends and closes at once."""
    for at in range(0, BURST, len(BLOCK)):
        connection.sendall(BLOCK[: min(len(BLOCK), BURST - at)])


class Collected:
    """What L{collect} got last."""

    result: list[int] = []


def collect(connection: socket.socket) -> None:
    """Waits, then reads to the end."""
    time.sleep(LATE)
    size = 0
    while piece := connection.recv(256 * 1024):
        size += len(piece)
    Collected.result.append(size)


Agents = Callable[[Server, Session, Callable[[socket.socket], None]], Program | None]


class BodyCase(FleetCase):
    """One carrier; the subclasses say which."""

    CARRIER = "raw"

    def serve(self) -> Server:
        """A server."""
        return self.server()

    def serves(
        self, server: Server, session: Session, *targets: Callable[[socket.socket], None]
    ) -> Program | None:
        """An agent; C{None} if it is no process of ours."""
        return self.agent(server, session.key, session.token, *targets)

    def dial(self, server: Server, session: Session, target: str) -> socket.socket:
        answer, stream = server.dial(session.key, target)
        self.assertIsNone(answer["error"], answer)
        self.assertEqual(answer["carrier"], self.CARRIER)
        stream.settimeout(120)
        return stream

    def large(self) -> None:
        """D4, D6: both directions at once, both readers slow: equal, and memory bounded."""
        server = self.serve()
        session = self.session(server)
        agent = self.serves(server, session, mirror, burst, collect)
        programs = [server, *([] if agent is None else [agent])]
        for program in programs:
            program.settle()
        before = [program.status("VmRSS") for program in programs]
        began = time.monotonic()
        with self.dial(server, session, "mirror") as stream:
            sent, received = bothWays(stream, 1)
            theirSent, theirReceived = struct.unpack("32s32s", exact(stream, 64))
        took = time.monotonic() - began
        self.assertEqual((sent, received), (theirReceived, theirSent))
        grown = [
            program.status("VmHWM") - rss for program, rss in zip(programs, before, strict=True)
        ]
        if LONG:
            print(
                f"\n{type(self).__name__}: {SIZE // MIB} MiB each way in {took:.1f} s,"
                f" {2 * SIZE / MIB / took:.0f} MiB/s; at rest {before} kB, grown by {grown} kB"
            )
        for program, kilobytes in zip(programs, grown, strict=True):
            self.assertLess(kilobytes, STREAM_MEMORY, f"{program.name} grew from {before} kB")
            self.asBefore(program)
        self.closes(server, session, agent)

    def closes(self, server: Server, session: Session, agent: Program | None) -> None:
        """D3: 20 MB and a close at once, either way, to a reader that comes later: complete."""
        with self.dial(server, session, "burst") as stream:
            time.sleep(LATE)
            self.assertEqual(len(receive(stream)), BURST)
        if agent is None:
            self.asBefore(server)
            return
        Collected.result = []
        with self.dial(server, session, "collect") as stream:
            burst(stream)
        until(lambda: Collected.result, "the reader reached the end")
        self.assertEqual(Collected.result, [BURST])
        self.asBefore(server)


class RawTests(BodyCase):
    """Raw bytes."""

    def test_large(self) -> None:
        """D3, D4, D6: slow readers both ways, and a close behind the last byte: nothing is lost."""
        self.large()


class WebSocketTests(BodyCase):
    """WebSocket, as behind something that does not let raw through."""

    CARRIER = "websocket"

    def serves(
        self, server: Server, session: Session, *targets: Callable[[socket.socket], None]
    ) -> Program | None:
        words = ["targets", "echo", "eof", "tickets", "goodbye"]
        limits = {"helix_revdial.revdial.client.ServerPath": {"features": words}}
        return self.agent(server, session.key, session.token, *targets, limits=limits)

    def test_large(self) -> None:
        """D3, D4, D6: slow readers both ways, and a close behind the last byte: nothing is lost."""
        self.large()


class OldPeerTests(BodyCase):
    """WebSocket as the Go programs speak it, without anything of ours."""

    CARRIER = "websocket"

    def serves(
        self, server: Server, session: Session, *targets: Callable[[socket.socket], None]
    ) -> Program | None:
        self.locals = dict(self.named(target).split("=") for target in targets)
        self.peer = GoPeer(server.host, server.port, session.key, session.token)
        self.addCleanup(self.peer.stop)
        until(lambda: server.look()["table"]["active"], "the old peer is registered")
        # The hijack form has its pause before anything is said.
        until(lambda: "Dialer._noCarrier" not in server.look()["timers"], "its carrier is up")
        return None

    def dial(self, server: Server, session: Session, target: str) -> socket.socket:
        # It knows one local service at a time.
        self.peer.local = self.locals[target]
        answer, stream = server.dial(session.key)
        self.assertIsNone(answer["error"], answer)
        stream.settimeout(120)
        return stream

    def test_large(self) -> None:
        """D3, D4, D6: slow readers both ways, and a close behind the last byte: nothing is lost."""
        self.large()


class TLSTests(BodyCase):
    """Over TLS, which means WebSocket."""

    CARRIER = "websocket"

    def serve(self) -> Server:
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        self.authority = self.directory / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        key, certificate = self.directory / "key.pem", self.directory / "certificate.pem"
        issued.private_key_pem.write_to_path(str(key))
        issued.cert_chain_pems[0].write_to_path(str(certificate))
        self.port = freePort()
        return self.server(
            doors=f'[[listen]]\nendpoint = "tcp:{self.port}:interface=127.0.0.1"\n'
            f'tls.certificate = "{certificate}"\ntls.key = "{key}"\n'
        )

    def serves(
        self, server: Server, session: Session, *targets: Callable[[socket.socket], None]
    ) -> Program | None:
        return self.agent(
            server,
            session.key,
            session.token,
            *targets,
            url=f"https://localhost:{self.port}",
            flags=(f"--ca-file={self.authority}",),
        )

    def test_large(self) -> None:
        """D3, D4, D6: slow readers both ways, and a close behind the last byte: nothing is lost."""
        self.large()


class ManyTests(FleetCase):
    """Many dials."""

    def test_atOnce(self) -> None:
        """C2: a hundred at once, each with its own stream."""
        server = self.server()
        session = self.session(server)
        agent = self.agent(server, session.key, session.token, desktop, echo)
        self.screenshot(server, session)

        def one(number: int) -> float:
            began = time.monotonic()
            answer, stream = server.dial(session.key, "echo")
            took = time.monotonic() - began
            with stream:
                self.assertIsNone(answer["error"], answer)
                for word in (b"%d" % number, b"x" * 10_000 + b"%d" % number):
                    self.echoes(stream, word)
            return took

        with self.nothingLeft(server, agent):
            failed = [each for each in inParallel(100, one) if isinstance(each, Exception)]
            self.assertEqual(failed, [])
        self.assertEqual(server.get("/api/v1/admin/revdial/status")["pending_dials_total"], 0)

    def test_cancelled(self) -> None:
        """C12: a thousand dials cancelled at random points leave nothing, at either end."""
        server = self.server(tunnel__max_pending_dials=2000)
        session = self.session(server)
        agent = self.agent(server, session.key, session.token, desktop, echo)
        self.screenshot(server, session)
        chance = random.Random(12)
        # Any machine and any load: some of these are too short, some are not.
        delays = [10 ** chance.uniform(-4, 1) for _ in range(1000)]
        outcomes: list[str] = []

        def some(worker: int) -> None:
            for number in range(worker, 1000, 20):
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(server.door)
                connection.sendall(
                    b'{"do": "dial", "runner": "%s", "target": "echo"}\n' % session.key.encode()
                )
                connection.settimeout(delays[number])
                try:
                    outcomes.append("connected" if connection.recv(10) else "failed")
                except TimeoutError:
                    outcomes.append("cancelled")
                connection.close()

        with self.nothingLeft(server, agent):
            self.assertEqual(inParallel(20, some), [None] * 20)
            self.assertEqual(len(outcomes), 1000)
            kinds = {kind: outcomes.count(kind) for kind in set(outcomes)}
            self.assertEqual(set(kinds), {"connected", "cancelled"}, kinds)
            self.assertGreater(min(kinds.values()), 20, kinds)
        self.screenshot(server, session)

    def test_screenshots(self) -> None:
        """Fifty screenshots a second for five seconds: all answered, nothing left."""
        server = self.server()
        session = self.session(server)
        agent = self.agent(server, session.key, session.token, desktop)
        self.screenshot(server, session)
        seconds, rate, workers = 5.0 if LONG else 2.0, 50, 5
        began = time.monotonic()
        times: list[float] = []

        def some(worker: int) -> None:
            for number in range(worker, int(seconds * rate), workers):
                time.sleep(max(0.0, began + number / rate - time.monotonic()))
                times.append(self.screenshot(server, session))

        with self.nothingLeft(server, agent):
            failed = [each for each in inParallel(workers, some) if each is not None]
            took = time.monotonic() - began
            self.assertEqual(failed, [])
        self.assertEqual(len(times), int(seconds * rate))
        self.assertLess(took, seconds + (2 if LONG else LIMIT))
        times.sort()
        if LONG:
            print(
                f"\n{len(times)} screenshots in {took:.1f} s: median {times[len(times) // 2]:.4f},"
                f" 99 % {times[len(times) * 99 // 100]:.4f} s"
            )
