"""
One workload against one tunnel: what the callers saw, and what both ends paid.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from .processes import Failed, Program, memoryKiB, processorSeconds
from .tunnels import HelixServer, Surroundings, Tunnel

LIMIT = 60.0
"""Seconds beyond its window that a workload may take."""


@dataclass(frozen=True)
class Workload:
    """
    What is put on a tunnel.

    @ivar name: Its word in tables and results.
    @ivar title: What it is, for people.
    @ivar kind: That of L{benchmarks.load}.
    @ivar settings: What L{benchmarks.load} is told besides.
    """

    name: str
    title: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)


WORKLOADS = (
    Workload("up1", "bulk up, 1 stream", "bulk", {"streams": 1, "direction": "up"}),
    Workload("down1", "bulk down, 1 stream", "bulk", {"streams": 1, "direction": "down"}),
    Workload("up50", "bulk up, 50 streams", "bulk", {"streams": 50, "direction": "up"}),
    Workload("down50", "bulk down, 50 streams", "bulk", {"streams": 50, "direction": "down"}),
    Workload("dial1", "dials, one at a time", "dials", {"concurrency": 1}),
    Workload("dial8", "dials, 8 at a time", "dials", {"concurrency": 8}),
    Workload("dial32", "dials, 32 at a time", "dials", {"concurrency": 32}),
    Workload("http32", "small HTTP, 32 connections", "http", {"connections": 32}),
    Workload("pp64", "64-byte ping-pong", "pingpong", {"size": 64}),
)
"""Everything that takes a window of time; memory is measured apart."""


def measure(tunnel: Tunnel, target: int, workload: Workload, seconds: float) -> dict[str, float]:
    """
    Do it once.

    @return: C{rate} (MiB/s, or operations a second), C{cpu} (seconds per GiB, or
        microseconds per operation, of both ends) with C{cpuNear} and C{cpuFar};
        C{p50} and C{p99} in microseconds, C{failed} and C{stuck}, where there are
        such.
    @raise Failed: The callers, or an end, gave up.
    """
    near, far = tunnel.nearPids(), tunnel.farPids()
    before = processorSeconds(near), processorSeconds(far)
    if workload.kind == "http" and shutil.which("wrk"):
        found = _wrk(tunnel.port, int(workload.settings["connections"]), seconds)
    else:
        settings = {**workload.settings, "port": tunnel.port, "target": target, "seconds": seconds}
        found = _load(tunnel, workload, settings, seconds)
    used = processorSeconds(near) - before[0], processorSeconds(far) - before[1]
    if "bytes" in found:
        each = 2**30 / max(found.pop("bytes"), 1.0)
    else:
        each = 1e6 / max(found.pop("operations"), 1.0)
    return {
        **found,
        "cpu": (used[0] + used[1]) * each,
        "cpuNear": used[0] * each,
        "cpuFar": used[1] * each,
    }


def _load(
    tunnel: Tunnel, workload: Workload, settings: dict[str, Any], seconds: float
) -> dict[str, float]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.load", workload.kind, json.dumps(settings)],
            capture_output=True,
            text=True,
            timeout=seconds + LIMIT,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{tunnel.name}: {workload.title} does not end") from None
    if done.returncode:
        for program in (*tunnel.near, *tunnel.far):
            program.check()
        raise Failed(f"{tunnel.name}: {workload.title}: {done.stderr[-1000:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


def _wrk(port: int, connections: int, seconds: float) -> dict[str, float]:
    """
    Small requests, by a program made for it.

    wrk counts whole seconds: the window is one second at least.
    """
    done = subprocess.run(
        [
            *("wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency"),
            f"http://127.0.0.1:{port}/",
        ],
        capture_output=True,
        text=True,
        timeout=seconds + LIMIT,
    )
    text = done.stdout
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", text)
    count = re.search(r"([0-9]+) requests in", text)
    if rate is None or count is None:
        raise Failed(f"wrk: {text[-500:]}{done.stderr[-500:]}")
    found = {"rate": float(rate.group(1)), "operations": float(count.group(1))}
    for share in ("50", "99"):
        value = re.search(rf"\b{share}%\s+([0-9.]+)(us|ms|s)", text)
        if value is not None:
            found[f"p{share}"] = float(value.group(1)) * _UNITS[value.group(2)]
    errors = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text
    )
    found["failed"] = float(sum(map(int, errors.groups()))) if errors is not None else 0.0
    return found


def idleStreams(tunnel: Tunnel, target: int, streams: int) -> dict[str, float]:
    """
    What streams cost that do nothing.

    @return: C{near} and C{far}, KiB of each end for each stream.
    """
    settings = json.dumps({"port": tunnel.port, "target": target, "streams": streams})
    before = memoryKiB(tunnel.nearPids()), memoryKiB(tunnel.farPids())
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load", "idle", settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as callers:
        assert callers.stdout is not None
        assert callers.stdin is not None
        if not callers.stdout.readline():
            raise Failed(f"{tunnel.name}: {streams} streams cannot be opened")
        time.sleep(0.5)
        after = memoryKiB(tunnel.nearPids()), memoryKiB(tunnel.farPids())
        callers.stdin.close()
    time.sleep(0.5)
    return {
        "near": (after[0] - before[0]) / streams,
        "far": (after[1] - before[1]) / streams,
    }


def idleAgents(around: Surroundings, agents: int, carrier: str) -> float:
    """
    What agents cost this project's server that do nothing.

    @return: KiB of the server for each agent beyond the first.
    """
    name = f"idle-{carrier}-{agents}"
    server = HelixServer(name, around, "sockets")
    started: list[Program] = [server.program]

    def connected(count: int) -> int:
        program = Program(
            f"{name}-{count}",
            [
                *(sys.executable, "-m", "benchmarks.idle_agents", server.url(server.port)),
                *(str(server.tokenFile), str(count), carrier),
            ],
            around.directory,
        )
        started.append(program)
        until = time.monotonic() + 30 + count / 20
        while "connected" not in program.tail():
            program.check()
            if time.monotonic() > until:
                raise Failed(f"{count} agents do not connect:\n{program.tail()}")
            time.sleep(0.1)
        time.sleep(1.0)
        return memoryKiB([server.program.pid])

    try:
        one = connected(1)
        started.pop().stop()
        many = connected(agents)
        return (many - one) / (agents - 1)
    finally:
        for program in reversed(started):
            program.stop()
