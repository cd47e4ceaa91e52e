"""
The REST service beside one of FastAPI, uvicorn and SQLite that does the same work, in
one run, in turn.

    python -m benchmarks.rest [--rounds N] [--seconds S] [--only WORKLOADS] [--idle CLIENTS]

Needs C{pip install -e '.[bench]'}.  Each workload is put on both in each round, one after
the other, and in another order each round.  Figures are medians of the rounds; ratios
are medians of each round's own ratio.  The callers share the machine, so a rate is what
they leave over.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .processes import Failed, Program, freePort, memoryKiB, processorSeconds, untilListening
from .rest_load import TASK

WORKLOADS: dict[str, dict[str, Any]] = {
    "post1": {"workload": "post", "connections": 1},
    "post32": {"workload": "post", "connections": 32},
    "keyed32": {"workload": "keyed", "connections": 32},
    "list1": {"workload": "list", "connections": 1},
    "list32": {"workload": "list", "connections": 32},
    "fanout200": {"workload": "fanout", "readers": 200, "lines": 20},
}
"""What is measured; C{keyed} has an C{Idempotency-Key} with each call."""


class Service:
    """
    One service under measurement.

    @ivar session: One of its sessions, whose events are followed.
    """

    name: str
    program: Program
    port: int
    source: int
    token: str

    def begin(self) -> None:
        """Wait until it serves, and make the session."""
        untilListening(self.port, self.program)
        made = self.ask("/api/v1/tasks", TASK)
        self.session = made["id"]

    def ask(self, path: str, body: object = None) -> Any:
        """One call."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def settings(self) -> dict[str, Any]:
        """What callers have to know."""
        found = {
            "port": self.port,
            "source": self.source,
            "token": self.token,
            "session": self.session,
        }
        if self.name == "helix":
            found["since"] = self.ask(f"/api/v1/sessions/{self.session}")["lastSeq"]
        return found


class Ours(Service):
    """The control plane."""

    name = "helix"

    def __init__(self, directory: Path) -> None:
        self.port, self.source = freePort(), freePort()
        state = directory / "state"
        config = directory / "server.toml"
        config.write_text(
            f'[[listen]]\nendpoint = "tcp:{self.port}:interface=127.0.0.1:backlog=4096"\n'
            "[rate_limits]\nuser_per_second = 0.0\n[tunnel]\nmax_runners = 10\n"
        )
        self.program = Program(
            self.name,
            [
                *(sys.executable, "-m", "benchmarks.rest_server", str(self.source)),
                *(f"--state-directory={state}", f"--config={config}"),
            ],
            directory,
        )
        untilListening(self.port, self.program)
        untilListening(self.source, self.program)
        self.token = (state / "admin.token").read_text().strip()
        self.begin()


class Theirs(Service):
    """L{benchmarks.rest_fastapi}."""

    name = "fastapi"

    def __init__(self, directory: Path) -> None:
        self.port = self.source = freePort()
        self.token = "0123456789abcdef0123456789abcdef"
        self.program = Program(
            self.name,
            [
                *(sys.executable, "-m", "benchmarks.rest_fastapi", str(self.port)),
                *(str(directory / "fastapi.sqlite"), self.token),
            ],
            directory,
        )
        self.begin()


def measure(service: Service, workload: dict[str, Any], seconds: float) -> dict[str, float]:
    """@raise Failed: It did not work."""
    settings = {**service.settings(), **workload, "seconds": seconds}
    before = processorSeconds([service.program.pid])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rest_load", workload["workload"], json.dumps(settings)],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
    )
    if done.returncode:
        raise Failed(f"{service.name}: {done.stderr[-1000:]}\n{service.program.tail()}")
    found: dict[str, float] = json.loads(done.stdout)
    spent = processorSeconds([service.program.pid]) - before
    # The callers' warm-up is in neither the rate nor, about, here.
    found["cpu"] = spent / max(found["rate"] * (seconds + 0.3), 1) * 1e6
    return found


def idle(service: Service, clients: int) -> None:
    """Print what streams that wait cost."""
    before = memoryKiB([service.program.pid])
    settings = {**service.settings(), "readers": clients}
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.rest_load", "idle", json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as load:
        assert load.stdout is not None
        line = load.stdout.readline()
        if not line:
            raise Failed(f"{service.name}: {service.program.tail()}")
        grown = (memoryKiB([service.program.pid]) - before) / json.loads(line)["held"]
        print(f"{service.name}: {clients} idle readers, {grown:.1f} KiB each", flush=True)
        load.communicate("")


def table(found: dict[str, list[dict[str, dict[str, float]]]], names: Sequence[str]) -> str:
    """Markdown: for each workload and service the medians, and our rate's ratio."""
    lines = ["| | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for name in names:
        cells = []
        for rounds in found.values():
            rate, p50, p99, cpu = (
                statistics.median(each[name][what] for each in rounds)
                for what in ("rate", "p50", "p99", "cpu")
            )
            ratio = ""
            if name == "helix" and "fastapi" in names:
                one = statistics.median(
                    each["helix"]["rate"] / each["fastapi"]["rate"] for each in rounds
                )
                ratio = f" (**{one:.2f}**)"
            cells.append(f"{rate:.0f}{ratio}; {p50 / 1e3:.1f} / {p99 / 1e3:.1f} [{cpu:.0f}]")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """
    Measure.

    @return: The status of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rest", description="Measure the REST service beside FastAPI."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each window")
    parser.add_argument("--only", default="", help="workloads, separated by commas")
    parser.add_argument("--service", choices=("helix", "fastapi"), help="one of them alone")
    parser.add_argument("--idle", type=int, default=0, help="idle readers to measure as well")
    asked = parser.parse_args()
    chosen = {
        name: settings
        for name, settings in WORKLOADS.items()
        if not asked.only or name in asked.only.split(",")
    }
    found: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as made:
        services: list[Service] = []
        try:
            for kind in (Ours, Theirs):
                if asked.service in (None, kind.name):
                    services.append(kind(Path(made)))
            for number in range(asked.rounds):
                for name, workload in chosen.items():
                    turn = number % len(services)
                    results = {}
                    for service in (*services[turn:], *services[:turn]):
                        results[service.name] = measure(service, workload, asked.seconds)
                        told = {key: round(value) for key, value in results[service.name].items()}
                        print(f"{name:10} {service.name:8} {told}", file=sys.stderr, flush=True)
                    found[name].append(results)
            print("Calls (or events) a second; p50 / p99 in ms [CPU us of the service each]\n")
            print(table(found, [service.name for service in services]), flush=True)
            for service in services if asked.idle else ():
                idle(service, asked.idle)
        finally:
            for service in services:
                service.program.stop()
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except Failed as failed:
        raise SystemExit(str(failed)) from None
