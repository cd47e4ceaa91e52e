"""
Measures this project beside other tunnels, in one run, in turn.

    python -m benchmarks [--rounds N] [--seconds S] [--delay MS] [--tls] [--pin] [--short] …

Every workload is put on every tunnel in each round, one after the other and in
another order each round, so that what the machine does meanwhile meets them all.
Figures are medians of the rounds; ratios are medians of each round's ratio.  Load,
target and both ends share the machine: a rate is what is left after the load's own
share, and the processor time of both ends is the sturdier figure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .measures import WORKLOADS, Workload, idleAgents, idleStreams, measure
from .processes import Failed, Program, freePort, untilListening
from .report import markdown, svg
from .results import Results, fallen, lastRatios
from .tunnels import Missing, Named, Surroundings, Tunnel, haproxy, helix, ssh

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BASELINE = HERE / "baseline.json"

Start = Callable[[Surroundings], Tunnel]

TUNNELS: dict[str, Start] = {
    "haproxy": partial(haproxy, "haproxy"),
    "raw": partial(helix, "raw", carrier="raw", path="sockets"),
    "websocket": partial(helix, "websocket", carrier="websocket", path="sockets"),
    "zero-key": partial(helix, "zero-key", carrier="websocket", path="sockets", zeroKey=True),
    "copied": partial(helix, "copied", carrier="raw", path="copied"),
    "portable": partial(helix, "portable", carrier="raw", path="portable"),
    "ssh": partial(ssh, "ssh"),
}
"""What is compared where nothing else is said."""

SHORT_TUNNELS = ("haproxy", "raw")
SHORT_WORKLOADS = ("up1", "down1", "down50")
SHORT_ROUNDS = 5
SHORT_SECONDS = 0.4
SHORT_REPEATS = 2
"""How often what is lost is measured once more, where it may have been the machine."""

ENDS, OTHERS = {0}, {1}
"""The processors of both ends, and of load and target, where they are kept apart."""

DELAY_WORKLOADS = ("dial1", "dial8", "dial32", "pp64")
"""What a delay is for; bulk would measure the delay's own window."""


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure this project beside other tunnels."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each window")
    parser.add_argument("--delay", type=float, default=0.0, help="milliseconds, one way")
    parser.add_argument("--tls", action="store_true", help="TLS between the two ends")
    parser.add_argument(
        "--pin", action="store_true", help="both ends on one processor, load and target on another"
    )
    parser.add_argument(
        "--short", action="store_true", help="what CI runs: fails where the baseline is lost"
    )
    parser.add_argument("--only", default="", help="tunnels, separated by commas")
    parser.add_argument("--workloads", default="", help="workloads, separated by commas")
    parser.add_argument("--agents", default="", help="idle agents to measure, as 1000,5000")
    parser.add_argument("--streams", type=int, default=0, help="idle streams to measure")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where results are kept")
    parser.add_argument(
        "--tunnel",
        action="append",
        default=[],
        type=named,
        metavar="NAME=PORT:COMMAND",
        help="another tunnel that listens on PORT; {target} in COMMAND is the target's port",
    )
    return parser.parse_args()


def named(text: str) -> Named:
    """A tunnel of the command line, or an error that says what is wrong with it."""
    try:
        return Named.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def certificate(directory: Path) -> Path:
    """A key and a certificate for 127.0.0.1, in one file."""
    key, found = directory / "tls.key", directory / "tls.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", str(key), "-out", str(found)),
        ],
        check=True,
        capture_output=True,
    )
    found.write_text(found.read_text() + key.read_text())
    found.chmod(0o600)
    return found


def start(chosen: dict[str, Start], around: Surroundings, results: Results) -> list[Tunnel]:
    """Start them; one whose program is missing is left out, and said so."""
    running: list[Tunnel] = []
    try:
        for name, begin in chosen.items():
            if name == "ssh" and around.tls:
                continue
            try:
                running.append(begin(around))
            except Missing as missing:
                results.notes.append(f"{name}: {missing}")
                say(f"{name} is left out: {missing}")
    except BaseException:
        for tunnel in running:
            tunnel.stop()
        raise
    return running


def say(text: str) -> None:
    """Tell how it goes on."""
    print(text, file=sys.stderr, flush=True)


def run(chosen: dict[str, Start], workloads: list[Workload], asked: argparse.Namespace) -> Results:
    """Measure everything."""
    results = Results(
        settings={
            "rounds": asked.rounds,
            "seconds": asked.seconds,
            "delay": asked.delay,
            "tls": asked.tls,
            "pin": asked.pin,
            "short": asked.short,
        }
    )

    def place(processors: set[int]) -> None:
        # What is started from here on inherits it.
        if asked.pin:
            os.sched_setaffinity(0, processors)

    with tempfile.TemporaryDirectory(prefix="benchmarks-") as made:
        directory = Path(made)
        port = freePort()
        place(OTHERS)
        target = Program(
            "target", [sys.executable, "-m", "benchmarks.target", str(port)], directory
        )
        around = Surroundings(directory, port, asked.delay / 1e3, asked.tls)
        tunnels: list[Tunnel] = []
        try:
            untilListening(port, target)
            if asked.tls:
                around.certificate = certificate(directory)
            place(ENDS)
            tunnels = start(chosen, around, results)
            place(OTHERS)
            for number in range(asked.rounds):
                for workload in workloads:
                    turn = number % len(tunnels) if tunnels else 0
                    for tunnel in (*tunnels[turn:], *tunnels[:turn]):
                        _once(results, tunnel, port, workload, asked.seconds)
            for tunnel in tunnels if asked.streams else ():
                found = idleStreams(tunnel, port, asked.streams)
                for end, kib in found.items():
                    title = f"an idle stream ({asked.streams}), {end} end"
                    results.memory.setdefault(title, {})[tunnel.name] = round(kib, 2)
            for count in (int(each) for each in asked.agents.split(",") if each):
                for carrier in ("raw", "websocket"):
                    kib = idleAgents(around, count, carrier)
                    title = f"an idle agent ({count}), the server's"
                    results.memory.setdefault(title, {})[carrier] = round(kib, 2)
        finally:
            for tunnel in tunnels:
                tunnel.stop()
            target.stop()
    return results


def _once(results: Results, tunnel: Tunnel, port: int, workload: Workload, seconds: float) -> None:
    found: dict[str, float] | None
    try:
        found = measure(tunnel, port, workload, seconds)
    except Failed as failed:
        say(str(failed))
        results.notes.append(f"{tunnel.name}, {workload.name}, in one round: it failed")
        found = None
    else:
        p50 = f", p50 {found['p50']:.0f} us" if "p50" in found else ""
        say(f"{workload.name:8} {tunnel.name:12} {found['rate']:9.0f}/s [{found['cpu']:.2f}]{p50}")
    results.add(workload.name, tunnel.name, found)


def main() -> int:
    """
    @return: 1 where the baseline is lost.
    """
    asked = arguments()
    chosen = dict(TUNNELS)
    names = [each for each in asked.workloads.split(",") if each]
    if asked.short:
        asked.rounds, asked.seconds = SHORT_ROUNDS, SHORT_SECONDS
        chosen = {name: chosen[name] for name in SHORT_TUNNELS}
        names = list(SHORT_WORKLOADS)
    if asked.only:
        chosen = {name: begin for name, begin in chosen.items() if name in asked.only.split(",")}
    for tunnel in asked.tunnel:
        chosen[tunnel.name] = tunnel.start
    if asked.delay and not names:
        names = list(DELAY_WORKLOADS)
    workloads = [
        each for each in WORKLOADS if each.name in names or not (names or each.name == "dial8")
    ]
    if asked.pin and not os.sched_getaffinity(0) >= ENDS | OTHERS:
        say("Two processors are needed to keep the ends apart from the load.")
        return 1
    kind = {"delay": asked.delay, "tls": asked.tls, "pin": asked.pin, "short": asked.short}
    last = lastRatios(asked.output, kind)
    results = run(chosen, workloads, asked)
    path = asked.output / f"{results.when}.json"
    results.write(path)
    path.with_suffix(".svg").write_text(svg(results))
    text = markdown(results, last)
    path.with_suffix(".md").write_text(text)
    print(text)
    say(f"kept as {path}, with a table (.md) and a plot (.svg)")
    if not asked.short:
        return 0
    if "haproxy" not in results.tunnels():
        say("Nothing to compare with: install haproxy (apt-get install haproxy).")
        return 1
    baseline = json.loads(BASELINE.read_text())
    lost = fallen(results.ratios(), baseline)
    for _ in range(SHORT_REPEATS):
        if not lost:
            break
        # Something else may have had the machine meanwhile: what is slow is slow each time,
        # and in longer windows.
        say("Measured once more: " + "; ".join(lost))
        asked.seconds *= 2
        names = [line.partition(":")[0] for line in lost]
        baseline = {name: baseline[name] for name in names}
        again = [each for each in workloads if any(f"/{each.name}/" in name for name in names)]
        lost = fallen(run(chosen, again, asked).ratios(), baseline)
    for line in lost:
        say(f"slower than the baseline allows: {line}")
    return 1 if lost else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except Failed as failed:
        raise SystemExit(str(failed)) from None
