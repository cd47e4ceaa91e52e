"""
Run the whole trial suite with several workers, quietly: `make test`.

Prints what failed, then one line with the count of tests run.  Workers share
the cores with the processes that integration tests start, so what failed is
run once more, alone: a fault of ours fails again; what passes then is named as
unsteady, and is to be mended.

Run as C{python -m tests.suite [JOBS] [TEST …]}.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

UNSTEADY_LIMIT = 3
"""Tests that may pass only when run alone; more than these are a failure."""


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
    done = trial("--jobs", jobs, *(tests or ["tests"]))
    counts = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", last(done.stdout))}
    passed = counts.get("successes", 0) + counts.get("expectedFailures", 0)
    skipped = counts.get("skips", 0)
    failed = sorted(failures(done.stdout))
    unsteady: list[str] = []
    if done.returncode != 0 or passed == 0:
        print(done.stdout)
        if 0 < len(failed) <= UNSTEADY_LIMIT and passed:
            unsteady = [test for test in failed if trial(test).returncode == 0]
            failed = [test for test in failed if test not in unsteady]
            for test in unsteady:
                print(f"unsteady: {test} failed beside others and passed alone")
        if not failed and not unsteady:
            # Trial itself failed, or no test ran.
            failed = ["trial"]
    elif skipped:
        print(*sorted(set(re.findall(r"needs \S+: apt-get install .*", done.stdout))), sep="\n")
    print(f"trial: {time.monotonic() - began:.0f} s")
    print(f"{passed + len(unsteady)} passed, {len(failed)} failed, {skipped} skipped")
    return 1 if failed else 0


def failures(output: str) -> set[str]:
    """The names of the tests below each heading C{[FAIL]} or C{[ERROR]}."""
    found: set[str] = set()
    for section in re.split(r"^={70,}$", output, flags=re.MULTILINE)[1:]:
        if re.match(r"\s*\[(?:FAIL|ERROR|SUCCESS!\?!)\]", section):
            found |= set(re.findall(r"^(tests(?:\.\w+)+)$", section, re.MULTILINE))
    return found


def last(output: str) -> str:
    """Trial's verdict, such as C{PASSED (skips=1, successes=9)}."""
    verdicts = re.findall(r"^(?:PASSED|FAILED)\b.*$", output, re.MULTILINE)
    return verdicts[-1] if verdicts else ""


if __name__ == "__main__":
    sys.exit(main())
