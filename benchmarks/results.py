"""
What was measured, as values: rounds, medians, ratios, files.

The document that is kept, and compared with, has the rounds themselves: everything
else is computed from them.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

REFERENCE = "haproxy"
"""What ratios are to."""


def machine() -> dict[str, str]:
    """What it ran on."""
    import os

    return {
        "processors": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _commit() -> str:
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
        ).stdout.strip()
    except OSError:
        return ""


@dataclass
class Results:
    """
    One run.

    @ivar rounds: By workload and tunnel, what each round gave, in order; C{None}
        where it failed.
    @ivar memory: By measure and tunnel, KiB.
    @ivar notes: What could not be measured, and why.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    rounds: dict[str, dict[str, list[dict[str, float] | None]]] = field(default_factory=dict)
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    when: str = field(default_factory=lambda: time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))
    machine: dict[str, str] = field(default_factory=machine)

    def add(self, workload: str, tunnel: str, found: dict[str, float] | None) -> None:
        """One more round."""
        self.rounds.setdefault(workload, {}).setdefault(tunnel, []).append(found)

    def tunnels(self) -> list[str]:
        """All that were measured, in order."""
        seen: dict[str, None] = {}
        for each in self.rounds.values():
            seen.update(dict.fromkeys(each))
        return list(seen)

    def median(self, workload: str, tunnel: str, what: str) -> float | None:
        """The median of the rounds."""
        rounds = self.rounds.get(workload, {}).get(tunnel, [])
        values = [each[what] for each in rounds if each is not None and what in each]
        return median(values) if values else None

    def ratio(self, workload: str, tunnel: str, what: str) -> float | None:
        """The median of each round's ratio to L{REFERENCE} in the same round."""
        byTunnel = self.rounds.get(workload, {})
        pairs = zip(byTunnel.get(tunnel, []), byTunnel.get(REFERENCE, []), strict=False)
        ratios = [
            ours[what] / theirs[what]
            for ours, theirs in pairs
            if ours is not None and theirs is not None and ours.get(what) and theirs.get(what)
        ]
        return median(ratios) if ratios else None

    def ratios(self) -> dict[str, float]:
        """Every ratio, as C{tunnel/workload/what}."""
        found = {}
        for workload in self.rounds:
            for tunnel in self.tunnels():
                for what in ("rate", "cpu", "p50"):
                    value = self.ratio(workload, tunnel, what)
                    if value is not None and tunnel != REFERENCE:
                        found[f"{tunnel}/{workload}/{what}"] = round(value, 3)
        return found

    def write(self, path: Path) -> None:
        """Keep it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**vars(self), "ratios": self.ratios()}, indent=1) + "\n")


def lastRatios(directory: Path, settings: dict[str, Any]) -> dict[str, float]:
    """The ratios of the last run with the same delay and TLS, or nothing."""
    for path in sorted(directory.glob("*.json"), reverse=True):
        try:
            document = json.loads(path.read_text())
            kept = document["settings"]
            kinds = ("delay", "tls", "pin", "short")
            if all(bool(kept.get(key)) == bool(settings.get(key)) for key in kinds) and (
                kept.get("delay") == settings.get("delay")
            ):
                ratios: dict[str, float] = document["ratios"]
                return ratios
        except (OSError, ValueError, KeyError):
            continue
    return {}


def fallen(ratios: dict[str, float], baseline: dict[str, float], most: float = 1 / 3) -> list[str]:
    """
    What has become worse than a baseline allows.

    A rate may fall by C{most} of it; a cost may rise until its inverse has fallen
    by as much.

    @return: A line for each, for people.
    """
    lines = []
    for name, expected in baseline.items():
        actual = ratios.get(name)
        costs = not name.endswith("/rate")
        if actual is None:
            lines.append(f"{name}: not measured")
        elif costs and actual * (1 - most) > expected:
            lines.append(f"{name}: {actual:.2f} x {REFERENCE}, at most {expected / (1 - most):.2f}")
        elif not costs and actual < expected * (1 - most):
            lines.append(
                f"{name}: {actual:.2f} x {REFERENCE}, at least {expected * (1 - most):.2f}"
            )
    return lines
