"""
Many agents lose one server in the same second: how soon are they back, and what does it
cost the server?

Starts a server, connects C{--agents} of our own agents to it from this one process (each
with its own control connection, its own policy for waiting, and nothing else), kills the
server, starts it again after C{--away} seconds, and measures:

  - when each agent was registered again, counted from the moment at which the server
    listened again;
  - registrations by the second;
  - the server's processor time in each half second.

    python benchmarks/storm.py --agents 2000

The result is one JSON object on standard output.  Both processes need a descriptor for
each agent.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater, react

from helix_revdial.agent.reconnect import ReconnectPolicy
from helix_revdial.revdial.client import Refused, ServerPath, ServerURL
from helix_revdial.revdial.descriptors import raiseDescriptorLimit
from helix_revdial.revdial.listener import Listener
from helix_revdial.revdial.monotonic import useMonotonicTime

SAMPLE = 0.5
"""Seconds between two looks at the server's processor time."""

TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """The server's process, which can be killed and started again on the same port."""

    def __init__(self, settings: list[str]) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="storm-"))
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port: int = found.getsockname()[1]
        self._settings = settings
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start it; it is not listening yet."""
        flags = [part for setting in self._settings for part in ("--set", setting)]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", "from twisted.scripts.twistd import run; run()"),
                    *("-n", "--pidfile=", "--logfile=-"),
                    "helix-revdial-server",
                    f"--state-directory={self.directory / 'state'}",
                    f"--listen=tcp:{self.port}:interface=127.0.0.1:backlog=4096",
                    *flags,
                ],
                stdout=log,
                stderr=log,
            )

    def listens(self) -> bool:
        """Whether requests are answered."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=1):
                return True
        except OSError:
            if self.process.poll() is not None:
                raise SystemExit((self.directory / "log").read_text()[-3000:]) from None
            return False

    def kill(self) -> None:
        """End it without a word."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def processorTime(self) -> float:
        """Seconds so far."""
        try:
            text = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return 0.0
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def megabytes(self) -> float:
        """Resident memory at its highest."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition("VmHWM:")[2].split()[0]) / 1024

    def runnerToken(self) -> str:
        """A token for all agents."""
        admin = (self.directory / "state" / "admin.token").read_text().strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/v1/tokens",
            json.dumps({"kind": "runner", "name": "storm", "patterns": ["wolf-*"]}).encode(),
            {"Authorization": f"Bearer {admin}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(json.load(answer)["token"])


class Storm:
    """The agents, and what they saw."""

    def __init__(self, reactor: Any, server: Server, token: str, agents: int) -> None:
        self._reactor = reactor
        self._agents = agents
        self._paths = [
            ServerPath(
                reactor,
                ServerURL.parse(f"http://127.0.0.1:{server.port}"),
                lambda: token,
                key=f"wolf-{number}",
            )
            for number in range(agents)
        ]
        self.connected = 0
        self.joined: list[float] = []
        self.refused = 0
        self.failed = 0
        self.all: Deferred[None] = Deferred()

    def start(self) -> None:
        """Let every agent connect, and connect again whenever it is lost."""
        for path in self._paths:
            Deferred.fromCoroutine(self._run(path)).addErrback(self._broken)

    def _broken(self, failure: Any) -> None:
        if not self.all.called:
            self.all.errback(failure)

    async def _run(self, path: ServerPath) -> None:
        reactor = self._reactor
        policy = ReconnectPolicy(random.random)
        listener = Listener(reactor, path, {})
        while True:
            try:
                session = await path.connectControl(listener)
            except Refused as refused:
                self.refused += 1
                wait = policy.attemptFailed(refused.retryAfter)
            except Exception:
                self.failed += 1
                wait = policy.attemptFailed()
            else:
                self.connected += 1
                self.joined.append(time.monotonic())
                if self.connected == self._agents and not self.all.called:
                    self.all.callback(None)
                closed = await session.closed
                self.connected -= 1
                wait = policy.connectionEnded(
                    # They had held for long, as agents have that lose their server.
                    max(closed.held, 60.0),
                    retryAfter=closed.retryAfter,
                )
            await deferLater(reactor, wait)

    def again(self) -> Deferred[None]:
        """Fires when all are connected, the next time."""
        self.all = Deferred()
        self.joined.clear()
        self.refused = self.failed = 0
        return self.all


async def measure(reactor: Any, arguments: argparse.Namespace) -> None:
    """Do it, and print the result."""
    server = Server(arguments.set)
    server.start()
    try:
        await _until(reactor, server.listens)
        storm = Storm(reactor, server, server.runnerToken(), arguments.agents)
        began = time.monotonic()
        storm.start()
        await storm.all
        first = time.monotonic() - began
        await deferLater(reactor, 2.0)

        back = storm.again()
        back.addTimeout(arguments.limit, reactor)
        server.kill()
        await deferLater(reactor, arguments.away)
        server.start()
        await _until(reactor, server.listens)
        listening = time.monotonic()
        samples: list[float] = []
        last = [time.monotonic(), server.processorTime()]

        def sample() -> None:
            now, used = time.monotonic(), server.processorTime()
            samples.append((used - last[1]) / max(now - last[0], 1e-3))
            last[:] = now, used

        loop = LoopingCall(sample)
        loop.start(SAMPLE, now=False)
        await back
        loop.stop()
        sample()
        rejoined = sorted(when - listening for when in storm.joined)
        seconds = Counter(int(each) for each in rejoined)
        result = {
            "agents": arguments.agents,
            "firstConnectSeconds": round(first, 2),
            "rejoinSeconds": {
                "p50": round(rejoined[len(rejoined) // 2], 2),
                "p99": round(rejoined[int(len(rejoined) * 0.99) - 1], 2),
                "max": round(rejoined[-1], 2),
            },
            "registrationsPerSecondPeak": max(seconds.values()),
            "refusedAttempts": storm.refused,
            "failedAttempts": storm.failed,
            "serverProcessorPeakPercent": round(100 * max(samples)),
            "serverProcessorMeanPercent": round(100 * sum(samples) / len(samples)),
            "serverMegabytes": round(server.megabytes(), 1),
        }
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    finally:
        server.kill()
        shutil.rmtree(server.directory, ignore_errors=True)


async def _until(reactor: Any, true: Any, limit: float = 30.0) -> None:
    end = time.monotonic() + limit
    while not true():
        if time.monotonic() > end:
            raise SystemExit("the server does not listen")
        await deferLater(reactor, 0.05)


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description="Many agents lose one server at once.")
    parser.add_argument("--agents", type=int, default=2000)
    parser.add_argument("--away", type=float, default=3.0, help="seconds without a server")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for all to be back")
    parser.add_argument(
        "--set", action="append", default=[], help="a setting of the server, SECTION.KEY=VALUE"
    )
    arguments = parser.parse_args()
    available = raiseDescriptorLimit()
    if available < arguments.agents + 200:
        parser.error(f"{available} descriptors are too few; raise ulimit -n")
    from twisted.internet import reactor

    useMonotonicTime(reactor)
    react(lambda clock: Deferred.fromCoroutine(measure(clock, arguments)))


if __name__ == "__main__":
    main()
