"""
A server, an agent and an executor as processes, and nothing between the server and the
executor but the tunnel: for tests of tasks on a real host.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from typing import Any, ClassVar

from .executors import LIMIT, ExecutorCase, until
from .fleet import freePort
from .forked import PLAIN, Forked

HOST = "host-1"


class TunnelledHostCase(ExecutorCase):
    """A server, an agent with the target C{executor}, and the executor."""

    settings: ClassVar[str] = ""

    def setUp(self) -> None:
        super().setUp()
        self.port = freePort()
        self.serverLog = self.directory / "server.log"
        self.server = self.startServer()
        self.addCleanup(self.stop, "server")
        self.admin = (self.directory / "server" / "admin.token").read_text().strip()
        token = self.api("POST", "/tokens", {"kind": "runner", "name": "h", "patterns": ["host-*"]})
        secret = self.directory / "agent.token"
        secret.write_text(token["token"])
        secret.chmod(0o600)
        config = self.directory / "agent.toml"
        config.write_text(
            f'[[runner]]\nkey = "{HOST}"\nserver = "http://127.0.0.1:{self.port}"\n'
            f'token_file = "{secret}"\nreconnect = 0.2\n'
            f'targets = [{{ name = "executor", address = "unix://{self.socket}",'
            ' expose = "internal" }]\n'
        )
        self.agent = self.run_("agent", "helix-revdial-agent", "--config", str(config))
        self.addCleanup(self.stop, "agent")

    def run_(self, name: str, *arguments: str) -> Forked:
        """A program of the project."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HELIX")}
        with (self.directory / f"{name}.log").open("ab") as log:
            return Forked(
                PLAIN,
                ["-n", "--pidfile=", "--logfile=-", *arguments],
                output=log,
                environment=environment,
            )

    def startServer(self) -> Forked:
        url = f"http://127.0.0.1:{self.port}"
        process = self.run_(
            "server", "helix-revdial-server",
            "--listen", f"tcp:{self.port}:interface=127.0.0.1",
            "--state-directory", str(self.directory / "server"),
            "--set", f"sessions.server_url={url}", "--set", "sessions.heartbeat=0.5",
        )  # fmt: skip

        def ready() -> bool:
            if process.poll() is not None:
                self.fail(f"the server did not start:\n{self.serverLog.read_text()}")
            try:
                with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                    return True
            except OSError:
                return False

        until(ready, "the server answers")
        return process

    def stop(self, name: str) -> None:
        process: Forked = getattr(self, name)
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """@return: The status and the body of the server's answer."""
        every = {"Authorization": f"Bearer {self.admin}", **(headers or {})}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            every["Content-Type"] = "application/json"
        url = f"http://127.0.0.1:{self.port}{path}"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, data, every, method=method), timeout=LIMIT
            ) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """The document of an answer that must be good."""
        status, content = self.request(method, f"/api/v1{path}", body)
        self.assertIn(status, (200, 201, 202, 204), content)
        return json.loads(content) if content else None

    def task(self, prompt: str, **more: Any) -> str:
        """Hand a task in, once there is somebody to run it."""
        document = {
            "prompt": prompt,
            "repo": {"mode": "none"},
            "runtime": {"type": "local"},
            "agent": {"type": "demonstration"},
            **more,
        }
        found: str = self.api("POST", "/tasks", document)["id"]
        return found

    def status(self, session: str) -> str:
        found: str = self.api("GET", f"/sessions/{session}")["status"]
        return found

    def reaches(self, session: str, *statuses: str) -> None:
        """Wait for a status."""
        try:
            until(lambda: self.status(session) in statuses, f"{session} is {statuses}")
        except AssertionError as error:
            raise AssertionError(
                f"{error}; it is {self.status(session)}\n{self.serverLog.read_text()[-3000:]}\n"
                f"{self.log.read_text()[-2000:]}\n{self.tail(session)}"
            ) from None

    def events(self, session: str) -> list[dict[str, Any]]:
        """Every event of a session that has ended."""
        status, content = self.request(
            "GET", f"/api/v1/sessions/{session}/events", headers={"Accept": "text/event-stream"}
        )
        self.assertEqual(status, 200, content)
        found = [
            json.loads(line.partition(b":")[2])
            for line in content.splitlines()
            if line.startswith(b"data:")
        ]
        self.assertEqual([each["seq"] for each in found], list(range(1, len(found) + 1)))
        return found

    def lines(self, session: str) -> list[str]:
        """Its output."""
        return [
            each["message"]
            for each in self.events(session)
            if each["type"] == "log" and each.get("stream", "stdout") == "stdout"
        ]
