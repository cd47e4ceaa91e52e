"""
Run the whole trial suite with several workers, quietly: `make test`.

Prints what failed and why, then one line with the count of tests run.  Workers
share the cores with the processes that integration tests start, so what failed
is run once more, alone: a fault of ours fails again; what passes then is named
as unsteady, and is to be mended.

Integration tests wait more than they compute: there are more workers than
cores, and these tests come first, so that no worker is left with a long one at
the end.

Run as C{python -m tests.suite [JOBS] [TEST …]}.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

FIRST = "integration"
"""The package whose tests take longest."""

UNSTEADY_LIMIT = 3
"""Tests that may pass only when run alone; more than these are a failure."""

MAX_REASON = 3000
"""Characters that are printed of why a test failed: the last ones."""


def trial(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One run of trial."""
    return subprocess.run(
        [sys.executable, "-m", "twisted.trial", "--reporter", "text", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={"AUTOBAHN_USE_NVX": "1", "PYTHONFAULTHANDLER": "1", **os.environ},
    )


def main() -> int:
    """Run, and say how it went."""
    jobs, *tests = sys.argv[1:] or ["2"]
    began = time.monotonic()
    done = trial("--jobs", jobs, *(tests or everything()))
    counts = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", last(done.stdout))}
    passed = counts.get("successes", 0) + counts.get("expectedFailures", 0)
    skipped = counts.get("skips", 0)
    reasons = failures(done.stdout)
    failed = sorted(reasons)
    unsteady: list[str] = []
    if done.returncode != 0 or passed == 0:
        for test in failed:
            print(f"FAILED {test}\n{reasons[test][-MAX_REASON:]}\n")
        if 0 < len(failed) <= UNSTEADY_LIMIT and passed:
            unsteady = [test for test in failed if trial(test).returncode == 0]
            failed = [test for test in failed if test not in unsteady]
            for test in unsteady:
                print(f"unsteady: {test} failed beside others and passed alone")
        if not failed and not unsteady:
            # Trial itself failed, or no test ran.
            print(done.stdout)
            failed = ["trial"]
    elif skipped:
        print(*sorted(set(re.findall(r"needs \S+: apt-get install .*", done.stdout))), sep="\n")
    print(f"trial: {time.monotonic() - began:.0f} s")
    print(f"{passed + len(unsteady)} passed, {len(failed)} failed, {skipped} skipped")
    return 1 if failed else 0


def everything() -> list[str]:
    """The suite's packages and modules, integration tests first."""
    here = Path(__file__).parent
    found = {path.parent.name for path in here.glob("*/__init__.py")}
    found |= {path.stem for path in here.glob("test_*.py")}
    return [f"tests.{name}" for name in sorted(found, key=lambda each: (each != FIRST, each))]


def failures(output: str) -> dict[str, str]:
    """The names of the tests below each heading C{[FAIL]} or C{[ERROR]}, and what is there."""
    found: dict[str, str] = {}
    for section in re.split(r"^={70,}$", output, flags=re.MULTILINE)[1:]:
        if re.match(r"\s*\[(?:FAIL|ERROR|SUCCESS!\?!)\]", section):
            # Tests that failed with the same words share a section.
            why = re.split(r"^(?:tests(?:\.\w+)+|-{70,})$", section, flags=re.MULTILINE)[0].strip()
            for test in re.findall(r"^(tests(?:\.\w+)+)$", section, re.MULTILINE):
                found[test] = f"{found[test]}\n{why}" if test in found else why
    return found


def last(output: str) -> str:
    """Trial's verdict, such as C{PASSED (skips=1, successes=9)}."""
    verdicts = re.findall(r"^(?:PASSED|FAILED)\b.*$", output, re.MULTILINE)
    return verdicts[-1] if verdicts else ""


if __name__ == "__main__":
    sys.exit(main())
