"""
Tasks on a runner host that only its own agent reaches: a server, an agent and an executor
as processes, and nothing between the server and the executor but the tunnel.
"""

from __future__ import annotations

import json
import signal
import socket
import time
from typing import Any

from tests.needs import needsProgram

from .executors import LIMIT, until
from .tunnelled_hosts import HOST, TunnelledHostCase


class TunnelTests(TunnelledHostCase):
    @needsProgram("Xvfb", package="xvfb")
    def test_task(self) -> None:
        """
        A task runs on the host, its picture comes through its own tunnel while it is paused,
        it goes on, and its patch is what it did; nothing is left after DELETE.
        """
        self.needPython()
        session = self.task("write made.txt by a task\ncount 8 0.4", delivery={"mode": "patch"})
        self.reaches(session, "running")
        self.api("POST", f"/sessions/{session}/pause", {})
        self.reaches(session, "paused")
        path = f"/api/v1/external-agents/{session}/screenshot"
        picture = until(
            lambda: (found := self.request("GET", path))[0] == 200 and found[1], "a picture"
        )
        self.assertEqual(picture[:4], b"\x89PNG")
        self.assertEqual(self.status(session), "paused")
        self.api("POST", f"/sessions/{session}/resume", {})
        self.reaches(session, "completed")
        self.assertEqual(self.lines(session), [str(n) for n in range(1, 9)])
        _, patch = self.request("GET", f"/api/v1/sessions/{session}/patch")
        self.assertIn(b"+by a task\n", patch)
        self.assertNotEqual(self.request("GET", path)[0], 200)
        self.api("DELETE", f"/sessions/{session}")
        until(lambda: not self.left(), "no process is left")
        until(lambda: self.ask("GET", "/v1/sessions")[1]["items"] == [], "the host forgets it")

    def test_deleted(self) -> None:
        """DELETE of a running task leaves no process and no directory on the host."""
        self.needPython()
        session = self.task("daemon 600\nsay up\nsleep 600")
        self.reaches(session, "running")
        until(lambda: self.left(), "it runs")
        self.api("DELETE", f"/sessions/{session}")
        self.reaches(session, "cancelled")
        until(lambda: not self.left(), "no process is left")
        until(lambda: not (self.state / "sessions" / session).exists(), "no file is left")

    def test_everythingKilled(self) -> None:
        """
        Executor, server and agent are killed while a task runs; it goes on, and when all
        are back each line of it is an event, once and in order.
        """
        self.needPython()
        session = self.task("count 120 0.1\nexit 5")
        self.reaches(session, "running")
        self.kill()
        self.start()
        time.sleep(0.5)
        self.server.send_signal(signal.SIGKILL)
        self.server.wait()
        time.sleep(1)
        self.server = self.startServer()
        self.reaches(session, "failed")
        self.assertEqual(self.lines(session), [str(n) for n in range(1, 121)])
        found = self.api("GET", f"/sessions/{session}")
        self.assertEqual(found["exitCode"], 5)

    def test_noWayIn(self) -> None:
        """Nobody but the server itself reaches the executor: no gateway leads there."""
        until(lambda: self.request("GET", "/api/v1/admin/revdial/status")[0] == 200, "status")
        until(
            lambda: HOST in json.dumps(self.api("GET", "/admin/revdial/status")),
            "the host is there",
        )
        status, content = self.request("GET", f"/api/v1/runners/{HOST}/http/executor/v1/host")
        self.assertIn(status, (403, 404), content)
        request = (
            f"GET /api/v1/runners/{HOST}/stream?target=executor HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {self.admin}\r\nConnection: Upgrade\r\nUpgrade: revdial\r\n\r\n"
        )
        answer = self.exchange("127.0.0.1", self.port, request.encode())
        self.assertEqual(answer.split()[1:2], [b"403"], answer)
        status, content = self.request(
            "POST",
            "/api/v1/admin/forwards",
            {"runner": HOST, "target": "executor", "listen": "127.0.0.1:0"},
        )
        if status < 300:
            # A forward is a port; what comes there is refused.
            listening = json.loads(content)
            self.assertEqual(self.throughForward(listening), b"")

    def throughForward(self, forward: dict[str, Any]) -> bytes:
        host, _, port = str(forward.get("address") or forward["listen"]).rpartition(":")
        return self.exchange(host, int(port), b"GET /v1/host HTTP/1.0\r\n\r\n")

    @staticmethod
    def exchange(host: str, port: int, request: bytes) -> bytes:
        """The beginning of what is answered; nothing where the connection is closed."""
        with socket.create_connection((host, port), timeout=LIMIT) as connection:
            try:
                connection.sendall(request)
                return connection.recv(4096)
            except ConnectionError:
                return b""
