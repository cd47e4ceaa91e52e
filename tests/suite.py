"""
Run the whole trial suite with several workers, quietly: `make test`.

Prints what failed, then one line with the count of tests run.
Run as C{python -m tests.suite [JOBS] [TEST …]}.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time


def main() -> int:
    """Run, and say how it went."""
    jobs, *tests = sys.argv[1:] or ["2"]
    began = time.monotonic()
    trial = [sys.executable, "-m", "twisted.trial", "--reporter", "text", "--jobs", jobs]
    done = subprocess.run(
        [*trial, *(tests or ["tests"])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # An unawaited coroutine is a forgotten result: let it be seen.
        env={"AUTOBAHN_USE_NVX": "1", "PYTHONFAULTHANDLER": "1", **os.environ},
    )
    counts = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", last(done.stdout))}
    passed = counts.get("successes", 0) + counts.get("expectedFailures", 0)
    failed = sum(counts.get(kind, 0) for kind in ("failures", "errors", "unexpectedSuccesses"))
    if done.returncode != 0 or passed == 0:
        print(done.stdout)
    elif counts.get("skips"):
        print(*sorted(set(re.findall(r"needs \S+: apt-get install .*", done.stdout))), sep="\n")
    print(f"trial: {time.monotonic() - began:.0f} s")
    print(f"{passed} passed, {failed} failed, {counts.get('skips', 0)} skipped")
    return done.returncode or (0 if passed else 1)


def last(output: str) -> str:
    """Trial's verdict, such as C{PASSED (skips=1, successes=9)}."""
    verdicts = re.findall(r"^(?:PASSED|FAILED)\b.*$", output, re.MULTILINE)
    return verdicts[-1] if verdicts else ""


if __name__ == "__main__":
    sys.exit(main())
