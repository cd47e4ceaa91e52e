"""
What only shows in the long run: a bulk stream whose reader stops and starts beside
hundreds of live streams, and short streams without end.

C{HELIX_TEST_LONG} makes the numbers 10 GiB, 500 and a million, and prints what was
seen; C{docs/performance.md} has it.
"""

from __future__ import annotations

import itertools
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import trustme

from .bulk_ends import BLOCK
from .fleet import LIMIT, LONG, FleetCase, Program, echo, freePort, until
from .scripted import ROOT
from .short_streams import ShortStreams

SIZE = (10 << 30) if LONG else (96 << 20)
"""Bytes of the bulk stream."""

LIVE = 500 if LONG else 60

STOPS = 20 if LONG else 4
"""How often the bulk stream's reader stops."""

SHORT = 1_000_000 if LONG else 2_000

BOUND = 8 * 1024
"""kB that one stream may cost a process at most, whatever flows: docs/operating.md."""


class BulkEnds:
    """The process that has both ends of the bulk stream; L{tests.integration.bulk_ends}."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.bulk_ends"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        self.port = int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process with the bulk stream ended"
        return line

    def begin(self, command: str) -> None:
        """Give a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    @property
    def isDone(self) -> bool:
        """Whether it has done what it was told."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout.fileno()], [], [], 0)[0])

    def finish(self) -> None:
        """Wait until it is done."""
        assert self._line() == "done\n"

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def percentile(taken: list[float]) -> float:
    """The 99th of a hundred."""
    return statistics.quantiles(taken, n=100)[98]


class LongRunCase(FleetCase):
    """A server with a forward to each target, and an agent."""

    def begin(self, *targets: Any, doors: str = "", **words: Any) -> None:
        self.config = doors
        self.fleet = self.server(
            doors=doors,
            limits__streams_per_user=10_000,
            limits__handshakes_per_second=10_000,
            tunnel__dial_timeout=30,
        )
        runner = self.token(self.fleet, kind="runner", patterns=["wolf-*"])
        self.wolf = self.agent(self.fleet, "wolf-1", runner, *targets, **words)

    def forward(self, port: int, target: str) -> str:
        """The table of a forward."""
        return (
            f'[[forwards.forward]]\nlisten = "tcp:{port}"\nrunner = "wolf-1"\ntarget = "{target}"\n'
        )

    def ports(self, count: int) -> list[int]:
        found: set[int] = set()
        while len(found) < count:
            found.add(freePort())
        return sorted(found)

    def memory(self) -> dict[str, int]:
        """kB of each process."""
        return {each.name: each.status("VmRSS") for each in (self.fleet, self.wolf)}

    def assertFlat(self, before: dict[str, int], what: str, most: int) -> None:
        for name, size in self.memory().items():
            self.assertLess(size - before[name], most, f"kB more in {name} {what}: {before}")


class StoppedReaderTests(LongRunCase):
    """A bulk stream beside live ones, on sockets and through pipes."""

    def agentWords(self) -> dict[str, Any]:
        """What else the agent is given."""
        return {}

    def doors(self) -> str:
        """What else the server has in its file."""
        return ""

    def taken(self, stream: socket.socket) -> float:
        """Milliseconds for a word and its echo."""
        began = time.monotonic()
        self.echoes(stream, b"x" * 64)
        return (time.monotonic() - began) * 1000

    def p99(self, rounds: int = 4) -> float:
        """Of all live streams in turn."""
        return percentile([self.taken(each) for _ in range(rounds) for each in self.live])

    def connected(self, port: int, count: int) -> list[socket.socket]:
        """So many connections."""
        found = []
        for _ in range(count):
            stream = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
            self.addCleanup(stream.close)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            found.append(stream)
        return found

    def test_besideLiveStreams(self) -> None:
        """
        D4, D5: a reader that stops, over and over, loses no byte of what is sent to it, and
        costs a process a bounded buffer, and the live streams of the same agent nothing.
        """
        bulk = BulkEnds()
        self.addCleanup(bulk.stop)
        toBulk, toEcho = self.ports(2)
        self.begin(
            f"bulk=127.0.0.1:{bulk.port}",
            echo,
            doors=f"{self.doors()}[forwards]\nports = "
            f'"{toBulk}-{toEcho}"\n{self.forward(toBulk, "bulk")}{self.forward(toEcho, "echo")}',
            **self.agentWords(),
        )
        self.live = self.connected(toEcho, LIVE)
        # No tunnel is on this way: what it takes is the machine's share.
        direct = self.connected(int(self.named(echo).rpartition(":")[2]), LIVE // 5)
        self.p99(2)
        memory = self.memory()
        before = self.p99()
        bulk.begin(f"open 127.0.0.1 {toBulk}")
        bulk.finish()
        stopped: list[float] = []
        flowing: list[float] = []
        machine: list[float] = []
        grown: list[int] = []
        moving = 0.0
        inTurn = itertools.cycle(zip(itertools.cycle(direct), self.live, strict=False))
        for _ in range(STOPS):
            stopped.append(self.p99(1))
            began = time.monotonic()
            bulk.begin(f"read {SIZE // BLOCK // STOPS}")
            while not bulk.isDone:
                straight, live = next(inTurn)
                flowing.append(self.taken(live))
                machine.append(self.taken(straight))
            bulk.finish()
            moving += time.monotonic() - began
            grown.append(sum(self.memory().values()) - sum(memory.values()))
            self.assertFlat(memory, "for one stream", BOUND)
        # On busy cores the one measurement may be unlucky, but half of them are not.
        usual = statistics.median(stopped)
        self.assertLess(usual, 10 * before + 50, f"ms; {before:.1f} before, {stopped}")
        if LONG:
            # Five processes and as many turns of the scheduler for each word and its echo.
            beside, alone = percentile(flowing), percentile(machine)
            self.assertLess(beside, 10 * alone + 50, f"ms, and {alone:.2f} without a tunnel")
            print(
                f"\n{type(self).__name__}: {SIZE >> 30} GiB in {moving:.0f} s with {STOPS} stops"
                f" beside {LIVE} streams, whose p99 was {before:.2f} ms before,"
                f" {usual:.2f} ms with the reader stopped, {beside:.2f} ms while it read"
                f" (median {statistics.median(flowing):.2f}; without a tunnel {alone:.2f},"
                f" {statistics.median(machine):.2f}; {len(flowing)} times); kB more in both"
                f" processes: {grown}"
            )


class TLSStoppedReaderTests(StoppedReaderTests):
    """The same over TLS, on its socket; only in the long form."""

    def doors(self) -> str:
        authority = trustme.CA()
        self.authority = self.directory / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        chain = self.directory / "chain.pem"
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(chain))
        self.secure = freePort()
        return (
            f'[[listen]]\nendpoint = "tcp:{self.secure}:interface=127.0.0.1"\n'
            f'tls.certificate = "{chain}"\n'
        )

    def agentWords(self) -> dict[str, Any]:
        return {
            "url": f"https://localhost:{self.secure}",
            "flags": (f"--ca-file={self.authority}",),
        }


class ShortStreamsTests(LongRunCase):
    """Streams that move a word each way."""

    # The pool is in the file, where a reload can change it.
    SETTINGS = {
        name: value for name, value in FleetCase.SETTINGS.items() if name != "pool.per_runner"
    }

    def pool(self, most: int) -> None:
        """Have so many connections parked at most, from now on."""
        config = self.directory / "server.toml"
        head, _, _ = config.read_text().partition("[pool]\n")
        said = len(self.fleet.text)
        config.write_text(f"{head}[pool]\nper_runner = {most}\n")
        self.fleet.signal(signal.SIGHUP)
        self.fleet.says("The settings were reloaded", after=said)

    def parked(self) -> int:
        count: int = self.fleet.get("/api/v1/admin/ledger")["tables"]["parked"]
        return count

    def test_nothingIsLeft(self) -> None:
        """
        Short streams, over connections that were parked, ended in every way: each brings its
        own bytes, memory stays flat, and no socket, timer, entry or object is left.
        """
        streams = ShortStreams()
        self.addCleanup(streams.stop)
        (port,) = self.ports(1)
        self.begin(
            f"short=127.0.0.1:{streams.port}",
            doors=f'[forwards]\nports = "{port}-{port}"\n{self.forward(port, "short")}'
            "[pool]\nper_runner = 0\n",
        )
        programs: tuple[Program, ...] = (self.fleet, self.wolf)
        streams.run(port, 200, 32)
        with self.nothingLeft(*programs):
            self.pool(64)
            # What grows at first is what is kept for as long as a process runs.
            streams.run(port, SHORT // 10, 32)
            began, memory, sizes = time.monotonic(), self.memory(), []
            streams.run(port, SHORT, 32, lambda: sizes.append(sum(self.memory().values())))
            took = time.monotonic() - began
            events = self.fleet.get("/api/v1/admin/ledger")
            self.assertFlat(memory, f"after {SHORT} streams", 4096)
            self.pool(0)
            until(lambda: not self.parked(), "none is parked")
        if LONG:
            print(
                f"\n{SHORT} short streams in {took:.0f} s, {SHORT / took:.0f} a second; kB in"
                f" both processes: {sum(memory.values())} at first, then {sizes}\n{events}"
            )


del LongRunCase
if not LONG:
    del TLSStoppedReaderTests
