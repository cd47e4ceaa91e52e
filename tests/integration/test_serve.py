"""C{helix serve --mock}: a server that needs nothing, over its real port."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

LIMIT = 60.0


class MockTests(SynchronousTestCase):
    def setUp(self) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.server = subprocess.Popen(
            [
                *(sys.executable, "-m", "helix_revdial.cli", "serve"),
                *("--mock", "--port", "0", "--speed", "200"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.addCleanup(self.end)
        assert self.server.stdout is not None
        said = [self.server.stdout.readline() for _ in range(2)]
        self.url = said[0].removeprefix("URL: ").strip()
        self.tokenFile = Path(said[1].removeprefix("Token file: ").strip())
        for line in self.server.stdout:
            said.append(line)
            if "Listening on" in line:
                break
        else:
            self.fail(f"the server did not start: {said}")

    def end(self) -> None:
        if self.server.poll() is None:
            self.server.kill()
        self.server.wait()
        assert self.server.stdout is not None
        self.server.stdout.close()

    def ask(self, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {
                "Authorization": f"Bearer {self.tokenFile.read_text().strip()}",
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=LIMIT) as answer:
            content = answer.read()
        if answer.headers.get_content_type() == "application/json":
            return json.loads(content)
        return content.decode()

    def test_aTask(self) -> None:
        """
        A task runs to its end on a server that was started with nothing; its events
        come as they happen, and the server leaves nothing behind.
        """
        task = self.ask(
            "/api/v1/tasks",
            {
                "prompt": "hello",
                "repo": {"mode": "none"},
                "runtime": {"type": "local"},
                "agent": {"type": "claude-code"},
                "delivery": {"mode": "patch"},
            },
        )
        # The answer ends when the session has ended.
        events = self.ask(task["links"]["events"])
        self.assertIn("event: delivery", events)
        self.assertIn('"status":"completed"', events)
        self.assertEqual(self.ask(task["links"]["self"])["status"], "completed")
        self.assertIn("diff --git", self.ask(task["links"]["self"] + "/patch"))
        self.server.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + LIMIT
        assert self.server.stdout is not None
        rest = self.server.stdout.read()
        while self.server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual(self.server.poll(), 0, rest)
        self.assertNotIn("Traceback", rest)
        self.assertFalse(self.tokenFile.parent.parent.exists())

    def test_killed(self) -> None:
        """A server does not outlive the command that runs it, however that ended."""
        self.server.kill()
        self.server.wait()
        assert self.server.stdout is not None
        # It has the other end, and closes it as it ends.
        rest = self.server.stdout.read()
        self.assertIn("Server Shut Down", rest)
        self.addCleanup(shutil.rmtree, self.tokenFile.parent.parent, ignore_errors=True)
