"""
The running server keeps what its OpenAPI document says: schemathesis knows nothing else.

For each operation it sends what the description allows and what it does not, and
compares statuses, media types, header fields and bodies with what is promised.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.fleet import freePort

PROGRAMS = Path(sys.executable).parent
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
DEADLINE = 30.0
LIMIT = 300.0
"""Seconds for all operations, on a busy machine."""


class ServedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.state = Path(self.mktemp()).absolute()
        self.url = f"http://127.0.0.1:{freePort()}"
        self.log = Path(self.mktemp())
        endpoint = f"tcp:{self.url.rpartition(':')[2]}:interface=127.0.0.1"
        with self.log.open("w") as log:
            self.server = subprocess.Popen(
                [
                    PROGRAMS / "twistd", "--nodaemon", "--pidfile=", "--logfile=-",
                    "helix-revdial-server", "--listen", endpoint,
                    "--state-directory", str(self.state),
                ],
                stdout=log,
                stderr=log,
                env={
                    name: value
                    for name, value in os.environ.items()
                    if name != "RUNNER_TOKEN" and not name.startswith("HELIX")
                },
            )  # fmt: skip
        self.addCleanup(self.end)
        end = time.monotonic() + DEADLINE
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/readyz", timeout=5).close()
                return
            except (OSError, urllib.error.URLError):
                if self.server.poll() is not None or time.monotonic() > end:
                    self.fail(f"the server did not start:\n{self.log.read_text()}")
                time.sleep(0.1)

    def end(self) -> None:
        if self.server.poll() is None:
            self.server.send_signal(signal.SIGTERM)
            try:
                self.server.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()

    def test_everyOperation(self) -> None:
        """Nothing is answered that the description does not promise."""
        token = (self.state / "admin.token").read_text().strip()
        ran = subprocess.run(
            [
                PROGRAMS / "schemathesis", "--config-file", CONFIGURATION, "run",
                f"{self.url}/openapi.json", "--header", f"Authorization: Bearer {token}",
                "--phases", "coverage,fuzzing", "--max-examples", "3", "--no-color",
                "--request-timeout", "30", "--generation-deterministic", "--warnings", "off",
            ],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            cwd=self.state,
            check=False,
        )  # fmt: skip
        self.assertEqual(ran.returncode, 0, ran.stdout[-20_000:] + ran.stderr[-2000:])
        self.assertEqual(self.server.poll(), None, self.log.read_text()[-5000:])
