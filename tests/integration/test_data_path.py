"""
Many streams and bad ones, through a server and an agent that are processes: who pays
for a peer that stops reading, that goes away, that comes in a crowd, or that is far.

C{HELIX_TEST_LONG} makes the numbers those of the scenarios.
"""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections import deque
from typing import Any

from .fleet import LONG, FleetCase, echo, inParallel, reset, until
from .test_proxy import web

BODY = bytes(range(256)) * 256

DELAY = 0.1
"""Seconds that a far path takes each way."""


def fountain(connection: socket.socket) -> None:
    """Sends for as long as somebody takes it."""
    while True:
        connection.sendall(BODY)


def download(connection: socket.socket) -> None:
    """Sends as much as it is asked for."""
    size = int(connection.recv(20))
    for _ in range(size // len(BODY)):
        connection.sendall(BODY)


def brisk(connection: socket.socket) -> None:
    """A web server that keeps no connection for long."""
    connection.settimeout(0.5)
    web(connection)


class FarPath:
    """
    A path whose bytes take C{DELAY} seconds each way, however many they are.

    @ivar port: Where it begins.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._socket.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._socket.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to))
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                held: deque[tuple[float, bytes]] = deque()
                threading.Thread(target=self._take, args=(source, held), daemon=True).start()
                threading.Thread(target=self._give, args=(sink, held), daemon=True).start()

    def _take(self, source: socket.socket, held: deque[tuple[float, bytes]]) -> None:
        data = b"x"
        while data:
            try:
                data = source.recv(262_144)
            except OSError:
                data = b""
            held.append((time.monotonic() + DELAY, data))

    def _give(self, sink: socket.socket, held: deque[tuple[float, bytes]]) -> None:
        try:
            while True:
                while not held:
                    time.sleep(0.001)
                due, data = held.popleft()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)
        except OSError:
            pass

    def stop(self) -> None:
        """Close all."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for one in self._open:
            one.close()


class DataPathTests(FleetCase):
    """A server, an agent, and services."""

    def begin(self, *targets: Any, **words: Any) -> None:
        self.fleet = self.server(
            limits__streams_per_user=10_000, gateways__requests_per_user=10_000
        )
        runner = self.token(self.fleet, kind="runner", patterns=["wolf-*"])
        self.wolf = self.agent(self.fleet, "wolf-1", runner, *targets, **words)
        self.operator = self.token(self.fleet, kind="user", user="ann", role="operator")

    def stream(self, target: str) -> socket.socket:
        """A stream, by the stream gateway."""
        connection = self.fleet.connect()
        connection.sendall(
            f"GET /api/v1/runners/wolf-1/stream?target={target} HTTP/1.1\r\nHost: a\r\n"
            f"Authorization: Bearer {self.operator}\r\n"
            "Connection: Upgrade\r\nUpgrade: revdial\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = connection.recv(1)
            self.assertTrue(piece, head)
            head += piece
        self.assertTrue(head.startswith(b"HTTP/1.1 101 "), head)
        return connection

    def p99(self, streams: list[socket.socket], rounds: int) -> float:
        """What a word and its echo take, of all streams in turn."""
        taken = []
        for _ in range(rounds):
            for stream in streams:
                began = time.monotonic()
                self.echoes(stream, b"x" * 64)
                taken.append(time.monotonic() - began)
        return statistics.quantiles(taken, n=100)[98]

    def test_aStoppedReader(self) -> None:
        """
        D5: readers that have stopped cost the live streams of the same agent nothing,
        and the processes a bounded buffer each.
        """
        self.begin(echo, fountain)
        live = [self.stream("echo") for _ in range(500 if LONG else 100)]
        before = self.p99(live, 4)
        memory = self.fleet.status("VmRSS") + self.wolf.status("VmRSS")
        stopped = [self.stream("fountain") for _ in range(5)]
        for stream in stopped:
            stream.recv(1)
        with_ = self.p99(live, 4)
        grown = self.fleet.status("VmRSS") + self.wolf.status("VmRSS") - memory
        # On busy cores the one measurement may be unlucky, but not by these.
        self.assertLess(with_, 10 * before + 1.0, f"{before * 1000:.1f} ms before")
        self.assertLess(grown, 5 * 2048, "kB for five streams that nobody reads")
        for stream in live + stopped:
            stream.close()

    def test_abortedDownloads(self) -> None:
        """D9: downloads that are broken off, over and over, leave nothing."""
        self.begin(fountain, web)

        def one(number: int) -> None:
            if number % 2:
                with self.fleet.connect() as caller:
                    caller.sendall(
                        "GET /api/v1/runners/wolf-1/http/web/large HTTP/1.1\r\nHost: a\r\n"
                        f"Authorization: Bearer {self.operator}\r\n\r\n".encode()
                    )
                    caller.recv(100_000)
                    reset(caller)
            else:
                stream = self.stream("fountain")
                stream.recv(100_000)
                reset(stream)

        for result in inParallel(10, one):
            self.assertIsNone(result)
        with self.nothingLeft(self.fleet, self.wolf):
            memory = {each: each.status("VmRSS") for each in (self.fleet, self.wolf)}
            for _ in range(1000 if LONG else 10):
                for result in inParallel(10, one):
                    self.assertIsNone(result)
        for program, size in memory.items():
            self.assertLess(program.status("VmRSS") - size, 16_384, f"kB more in {program.name}")

    def test_aBurst(self) -> None:
        """D10: after a burst of requests a process is what it was, and as fast."""
        self.begin(brisk)

        def burst(number: int) -> None:
            with self.fleet.connect() as caller:
                for _ in range(5000 if LONG else 50):
                    caller.sendall(
                        "GET /api/v1/runners/wolf-1/http/brisk/x HTTP/1.1\r\nHost: a\r\n"
                        f"Authorization: Bearer {self.operator}\r\n\r\n".encode()
                    )
                    data = b""
                    while b"/x 127.0.0.1" not in data:
                        piece = caller.recv(65536)
                        assert piece, data
                        data += piece

        for result in inParallel(20, burst):
            self.assertIsNone(result)
        memory = self.fleet.status("VmRSS")
        self.quiet()
        with self.nothingLeft(self.fleet, self.wolf):
            for result in inParallel(20, burst):
                self.assertIsNone(result)
            self.quiet()
        self.assertLess(self.fleet.status("VmRSS") - memory, 16_384, "kB more")

    def test_aBurstOfDials(self) -> None:
        """
        C10: more dials at once than connections are parked: each gets its stream, by
        another way if need be; and so does the next crowd.
        """
        self.SETTINGS = {**self.SETTINGS, "pool.per_runner": "16"}
        self.begin(echo)
        count = 500 if LONG else 100

        def one(number: int) -> None:
            with self.stream("echo") as stream:
                self.echoes(stream, b"%d" % number)

        for _ in range(3):
            for result in inParallel(count, one):
                self.assertIsNone(result)
            until(
                lambda: self.fleet.get("/api/v1/admin/ledger")["tables"]["parked"] > 0,
                "connections are parked again",
            )
        counts = self.fleet.get("/api/v1/admin/ledger")["pending_dials"]
        self.assertEqual(sum(counts.values()), 0, counts)

    def asked(self, token: str, count: int) -> list[float]:
        """The seconds of each of C{count} requests that are answered with 200."""
        taken = []
        for _ in range(count):
            began = time.monotonic()
            status, _ = self.fleet.request("GET", "/api/v1/runners/wolf-1/http/web/x", token)
            if status == 200:
                taken.append(time.monotonic() - began)
        return taken

    def test_aFlood(self) -> None:
        """E7: one user's flood gets as much as its user may have; another's requests are served."""
        self.fleet = self.server(gateways__requests_per_user=8)
        runner = self.token(self.fleet, kind="runner", patterns=["wolf-*"])
        self.agent(self.fleet, "wolf-1", runner, web)
        tokens = {
            name: self.token(self.fleet, kind="user", user=name, role="operator")
            for name in ("ann", "eve")
        }
        alone = self.asked(tokens["ann"], 50)
        over = threading.Event()

        def flood() -> None:
            while not over.is_set():
                self.asked(tokens["eve"], 1)

        flooding = [threading.Thread(target=flood, daemon=True) for _ in range(16)]
        for thread in flooding:
            thread.start()
        try:
            beside = self.asked(tokens["ann"], 50)
        finally:
            over.set()
            for thread in flooding:
                thread.join()
        self.assertEqual((len(alone), len(beside)), (50, 50), "ann was refused something")
        # The flood's own clients are threads of this process: they cost time here, too.
        self.assertLess(statistics.median(beside), 10 * statistics.median(alone) + 2)

    def quiet(self) -> None:
        """Until no connection to a service waits for another request."""
        until(lambda: self.fleet.get("/api/v1/admin/ledger")["streams"] == 0, "none waits")

    def far(self, features: list[str] | None) -> None:
        """20 MB from far away."""
        size = 20 * 1024 * 1024
        self.fleet = self.server()
        path = FarPath(self.fleet.port)
        self.addCleanup(path.stop)
        runner = self.token(self.fleet, kind="runner", patterns=["wolf-*"])
        self.operator = self.token(self.fleet, kind="user", user="ann", role="operator")
        limits = {"helix_revdial.revdial.client.ServerPath": {"features": features}}
        self.agent(
            self.fleet,
            "wolf-1",
            runner,
            download,
            url=f"http://127.0.0.1:{path.port}",
            limits=limits if features else None,
        )
        with self.stream("download") as stream:
            stream.sendall(b"%d" % size)
            left = size
            began = time.monotonic()
            while left:
                piece = stream.recv(1 << 20)
                self.assertTrue(piece, f"{left} bytes are missing")
                left -= len(piece)
            taken = time.monotonic() - began
        self.assertLess(taken, size / 262_144 * 2 * DELAY, "seconds")

    def test_aFarAgent(self) -> None:
        """
        D8: on a path of 200 ms no window of ours is the limit: 20 MB by one stream take
        less time than a window of 256 KiB would.
        """
        self.far(None)

    def test_aFarAgentByWebSocket(self) -> None:
        """D8: the same by WebSocket frames."""
        self.far(["targets", "echo", "eof", "tickets", "goodbye"])
