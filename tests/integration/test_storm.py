"""E1 with real connections: the load program of the benchmarks, in its small form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import helix_revdial

PROGRAM = Path(helix_revdial.__file__).parent.parent / "benchmarks" / "storm.py"


class StormTests(SynchronousTestCase):
    def test_twoHundred(self) -> None:
        """
        Two hundred agents lose a server that is killed, and are back within the time
        that the cap on registrations leaves them, in no second faster than it says.
        """
        done = subprocess.run(
            [
                *(sys.executable, str(PROGRAM), "--agents=200", "--away=1", "--limit=60"),
                *("--set", "limits.handshakes_per_second=100"),
                *("--set", "limits.handshake_burst=20"),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        result = json.loads(done.stdout)
        self.assertLess(result["rejoinSeconds"]["p99"], 40, result)
        self.assertLessEqual(result["registrationsPerSecondPeak"], 100 + 20 + 10, result)
