"""The server as a process: it starts whole or ends with one line, and stops cleanly."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from .fleet import freePort

TWISTD = str(Path(sys.executable).with_name("twistd"))
DEADLINE = 20.0


class ServerProcessTests(SynchronousTestCase):
    """C{twistd helix-revdial-server}."""

    def setUp(self) -> None:
        self.state = Path(self.mktemp()).absolute()
        self.port = freePort()
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name != "RUNNER_TOKEN" and not name.startswith("HELIX")
        }

    def argv(self, *flags: str) -> list[str]:
        return [
            TWISTD, "--nodaemon", "--pidfile=", "--logfile=-", "helix-revdial-server",
            "--listen", f"tcp:{self.port}:interface=127.0.0.1",
            "--state-directory", str(self.state), *flags,
        ]  # fmt: skip

    def start(self, *flags: str) -> subprocess.Popen[str]:
        """Start it, and wait until it answers."""
        self.log = Path(self.mktemp())
        with self.log.open("w") as log:
            process = subprocess.Popen(
                self.argv(*flags), stdout=log, stderr=log, text=True, env=self.environment
            )
        self.addCleanup(self.end, process)
        end = time.monotonic() + DEADLINE
        while True:
            try:
                self.get("/readyz")
                return process
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    self.fail(f"the server did not start:\n{self.log.read_text()}")
                time.sleep(0.05)

    def end(self, process: subprocess.Popen[str]) -> int:
        """SIGTERM, then SIGKILL; the exit status."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                self.fail(f"the server did not stop:\n{self.log.read_text()}")
        return process.returncode

    def get(self, path: str, token: str | None = None) -> Any:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.loads(answer.read())

    def ended(self, *flags: str) -> subprocess.CompletedProcess[str]:
        """Run it where it must end by itself."""
        return subprocess.run(
            self.argv(*flags),
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=DEADLINE,
        )

    def test_firstStart(self) -> None:
        """The first start leaves an admin token that works, readable by its owner only."""
        process = self.start()
        path = self.state / "admin.token"
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.state.stat().st_mode), 0o700)
        token = path.read_text().strip()
        status = self.get("/api/v1/admin/revdial/status", token)
        self.assertEqual(status["active_connections"], 0)
        self.end(process)
        log = self.log.read_text()
        self.assertIn(f"The first admin token is in {path}", log)
        self.assertNotIn(token, log, "F1: the token is in the log")
        self.assertNotIn("Traceback", log)

    def test_secondStart(self) -> None:
        """What the first start made is there after a restart; no second token is made."""
        self.end(self.start())
        token = (self.state / "admin.token").read_text()
        self.end(self.start())
        self.assertEqual((self.state / "admin.token").read_text(), token)

    def test_secondServer(self) -> None:
        """
        A second server on the same state ends with one line, and changes nothing; the
        first goes on, and when it was killed another may have its place.
        """
        first = self.start()
        port, self.port = self.port, freePort()
        done = self.ended()
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("another server works with this database (process ", done.stdout)
        self.assertNotIn("Traceback", done.stderr + done.stdout)
        self.port = port
        self.get("/readyz")
        first.kill()
        first.wait()
        self.end(self.start())

    def test_portTaken(self) -> None:
        """It binds or ends non-zero with one line."""
        with socket.socket() as other:
            other.bind(("127.0.0.1", self.port))
            other.listen()
            done = self.ended()
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(f"cannot listen on tcp:{self.port}:interface=127.0.0.1", done.stdout)
        self.assertNotIn("Traceback", done.stderr + done.stdout)

    def test_stateUnusable(self) -> None:
        """A state directory that cannot be made ends it the same way."""
        self.state.parent.mkdir(parents=True, exist_ok=True)
        self.state.write_text("a file")
        done = self.ended()
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("cannot start", done.stdout)
        self.assertNotIn("Traceback", done.stderr + done.stdout)

    def test_badEndpoint(self) -> None:
        """An endpoint that cannot be read is named."""
        done = self.ended("--listen", "nonsense:1")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("'nonsense:1'", done.stderr)

    def test_checkConfig(self) -> None:
        """C{--check-config} says ok or what is wrong, opens nothing and ends."""
        path = Path(self.mktemp())
        path.write_text("[tunnel]\ngrace_period = 10\n")
        done = self.ended("--config", str(path), "--check-config")
        self.assertEqual((done.returncode, done.stdout.strip()), (0, f"{path}: ok"))
        path.write_text("[tunnel]\ngrace = 10\n")
        done = self.ended("--config", str(path), "--check-config")
        self.assertEqual(done.returncode, 1)
        self.assertIn(
            f"{path}, line 2: tunnel.grace: unknown key 'grace'", done.stderr + done.stdout
        )
        self.assertFalse(self.state.exists())

    def test_runnerToken(self) -> None:
        """An existing RUNNER_TOKEN is imported, hashed, and never shown."""
        secret = "oh-hallo-insecure-token"
        self.environment["RUNNER_TOKEN"] = secret
        self.end(self.start())
        self.end(self.start())
        log = self.log.read_text()
        self.assertIn("RUNNER_TOKEN of the environment is runner token tok_", log)
        self.assertNotIn(secret, log)
        for path in filter(Path.is_file, self.state.rglob("*")):
            self.assertNotIn(secret.encode(), path.read_bytes(), f"F1: the secret is in {path}")

    def test_credentials(self) -> None:
        """Tokens that systemd hands over as credentials are imported, hashed, and never shown."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        secrets = {"runner-token": "oh-hallo-runner-token", "admin-token": "oh-hallo-admin-token"}
        for name, secret in secrets.items():
            (directory / name).write_text(secret + "\n")
        self.environment["CREDENTIALS_DIRECTORY"] = str(directory)
        self.end(self.start())
        self.start()
        tokens = self.get("/api/v1/tokens", secrets["admin-token"])
        self.assertEqual(
            sorted((token["kind"], token.get("role")) for token in tokens["items"]),
            [("runner", None), ("user", "admin")],
        )
        self.assertFalse((self.state / "admin.token").exists())
        log = self.log.read_text()
        for secret in secrets.values():
            self.assertNotIn(secret, log)
            for path in filter(Path.is_file, self.state.rglob("*")):
                self.assertNotIn(secret.encode(), path.read_bytes(), f"F1: {path}")

    def test_credentialThatIsNone(self) -> None:
        """A credential that holds no token ends the start with one line that names it."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        (directory / "admin-token").write_text("\n")
        self.environment["CREDENTIALS_DIRECTORY"] = str(directory)
        done = self.ended()
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("credential admin-token: is empty", done.stdout)
        self.assertNotIn("Traceback", done.stderr + done.stdout)

    def test_killedAndStartedAgain(self) -> None:
        """After SIGKILL the next start works with what is there."""
        process = self.start()
        process.kill()
        process.wait()
        token = (self.state / "admin.token").read_text().strip()
        self.start()
        self.assertEqual(self.get("/api/v1/sessions", token)["total"], 0)

    def test_unauthenticated(self) -> None:
        """A stranger gets 401 with a problem document."""
        self.start()
        with self.assertRaises(urllib.error.HTTPError) as caught:
            self.get("/api/v1/sessions")
        with caught.exception as answer:
            self.assertEqual(answer.code, 401)
            self.assertEqual(answer.headers["Content-Type"], "application/problem+json")
