"""What is seen of real processes: metrics against what was done, a log that nobody reads, and
an empty ledger at the end."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from helix_revdial.agent.targets import LocalTarget, parseTarget
from tests.integration.fleet import freePort
from tests.integration.ledgers import LedgerCheck, busyIn
from tests.integration.test_server import TWISTD
from tests.integration.tunnels import Agent, Echo, Server, collector, listen, reactor

PREFIX = "helix_revdial_"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(50_000)
DEADLINE = 20.0
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Desktop(BaseHTTPRequestHandler):
    """A desktop service that keeps the traces it was told of."""

    traces: list[str | None] = []

    def do_GET(self) -> None:
        self.traces.append(self.headers["traceparent"])
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(PNG)))
        self.end_headers()
        self.wfile.write(PNG)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


class ProcessTests(SynchronousTestCase):
    """C{twistd helix-revdial-server} and C{twistd helix-revdial-agent}."""

    def setUp(self) -> None:
        self.state = Path(self.mktemp()).absolute()
        self.port, self.metricsPort, self.agentPort = freePort(), freePort(), freePort()
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name != "RUNNER_TOKEN" and not name.startswith(("HELIX", "OTEL"))
        }

    def start(self, *arguments: str, stdout: Any = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [TWISTD, "-n", "--pidfile=", *arguments],
            stdout=stdout,
            stderr=subprocess.STDOUT,
            env=self.environment,
        )
        self.addCleanup(self.end, process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
        if process.stdout is not None:
            process.stdout.close()

    def server(self, *settings: str, stdout: Any = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        flags = [word for setting in settings for word in ("--set", setting)]
        process = self.start(
            "helix-revdial-server",
            "--listen", f"tcp:{self.port}:interface=127.0.0.1",
            "--state-directory", str(self.state),
            "--set", f"metrics.listen=tcp:{self.metricsPort}:interface=127.0.0.1",
            "--set", "drain.timeout=1",
            *flags,
            stdout=stdout,
        )  # fmt: skip

        def ready() -> bool:
            self.assertIsNone(process.poll(), "the server ended; its output says why")
            return self.status(self.port, "/readyz") == 200

        self.until(ready, "the server is ready")
        self.admin = (self.state / "admin.token").read_text().strip()
        return process

    def agent(self, session: str) -> subprocess.Popen[bytes]:
        desktop = ThreadingHTTPServer(("127.0.0.1", 0), Desktop)
        thread = threading.Thread(target=desktop.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        self.addCleanup(thread.join, DEADLINE)
        self.addCleanup(desktop.server_close)
        self.addCleanup(desktop.shutdown)
        token = self.ask(
            "POST", "/api/v1/tokens", {"kind": "session", "name": "s", "session": session}
        )["token"]
        path = Path(self.mktemp()).absolute()
        with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            file.write(token)
        process = self.start(
            "helix-revdial-agent",
            "--api-url", f"http://127.0.0.1:{self.port}",
            "--runner-id", f"sandbox-{session}",
            "--token-file", str(path),
            "--local", f"127.0.0.1:{desktop.server_port}",
            "--metrics-listen", f"tcp:{self.agentPort}:interface=127.0.0.1",
        )  # fmt: skip
        self.until(lambda: self.status(self.agentPort, "/readyz") == 200, "the agent is ready")
        return process

    def until(self, condition: Callable[[], bool], what: str | Callable[[], str]) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():
            if time.monotonic() > end:
                what = what if isinstance(what, str) else what()
                self.fail(f"after {DEADLINE} s still not: {what}")
            time.sleep(0.05)

    def status(self, port: int, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return 0

    def fetch(self, method: str, path: str, body: Any = None, **headers: str) -> bytes:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self.admin}",
                "Content-Type": "application/json",
                **headers,
            },
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            content: bytes = answer.read()
            return content

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        return json.loads(self.fetch(method, path, body))

    def metrics(self, port: int) -> dict[str, float]:
        """Each sample by its name and labels as they are written."""
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            page = answer.read().decode()
        found = {}
        for line in page.splitlines():
            if line.startswith(PREFIX):
                name, _, value = line.removeprefix(PREFIX).rpartition(" ")
                found[name] = float(value)
        return found

    def test_metricsAreWhatWasDone(self) -> None:
        """Twenty screenshots, and the agent's end, as server and agent tell them."""
        Desktop.traces.clear()
        self.server("metrics.runner_labels=true")
        session = self.ask("POST", "/api/v1/sessions", {"name": "x"})["id"]
        agent = self.agent(session)
        path = f"/api/v1/external-agents/{session}"
        for number in range(20):
            parent = f"00-{TRACE}-{number + 1:016x}-01"
            self.assertEqual(self.fetch("GET", f"{path}/screenshot", traceparent=parent), PNG)
        self.assertEqual({str(trace)[3:35] for trace in Desktop.traces}, {TRACE})

        left: dict[str, int] = {"not asked": 1}

        def idle() -> bool:
            left.clear()
            left.update(busyIn(self.ask("GET", "/api/v1/admin/ledger")))
            return not left

        self.until(idle, lambda: f"idle, but {left}")
        found = self.metrics(self.metricsPort)
        for name, value in (
            ('dials_total{outcome="connected"}', 20),
            ('dial_wait_seconds_count{result="connected"}', 20),
            ('dial_phase_seconds_count{phase="target"}', 20),
            ("stream_seconds_count", 20),
            ("streams", 0),
            ('registrations_total{how="first"}', 1),
            ('connections{carrier="raw",kind="control"}', 1),
            (f'runner_connected{{runner="sandbox-{session}"}}', 1),
            ("log_lines_dropped_total", 0),
            ("ready", 1),
        ):
            self.assertEqual(found.get(name), value, name)
        moved = found['stream_bytes_total{direction="in"}']
        self.assertTrue(20 * len(PNG) < moved < 21 * len(PNG), moved)
        other = self.metrics(self.agentPort)
        self.assertEqual(other['agent_dials_total{outcome="connected"}'], 20)
        self.assertEqual(other['agent_attempts_total{outcome="connected"}'], 1)
        self.assertEqual(other["agent_streams"], 0)
        self.assertEqual(other['agent_stream_bytes_total{direction="out"}'], moved)
        self.assertEqual(
            other['agent_stream_bytes_total{direction="in"}'],
            found['stream_bytes_total{direction="out"}'],
        )
        items = self.ask("GET", f"{path}/streams?limit=1000")["items"]
        self.assertEqual([item["trace"] for item in items], [TRACE] * 20)

        agent.kill()
        agent.wait(DEADLINE)
        self.until(
            lambda: self.metrics(self.metricsPort)["grace_entries"] == 1, "the runner is in grace"
        )
        found = self.metrics(self.metricsPort)
        self.assertEqual(found["runners_away"], 1, "G5: the alert's number")
        self.assertEqual(found[f'runner_connected{{runner="sandbox-{session}"}}'], 0)
        self.assertEqual(self.status(self.agentPort, "/readyz"), 0)

    def test_anAgentWithoutItsServer(self) -> None:
        """It is healthy, is not ready, and becomes ready when the server is there."""
        self.server()
        session = self.ask("POST", "/api/v1/sessions", {"name": "x"})["id"]
        self.agent(session)
        self.ask("GET", "/api/v1/admin/revdial/status")
        self.fetch("DELETE", f"/api/v1/sessions/{session}")
        self.until(lambda: self.status(self.agentPort, "/readyz") == 503, "the agent is cut off")
        self.assertEqual(self.status(self.agentPort, "/healthz"), 200)
        self.until(
            lambda: self.metrics(self.agentPort)['agent_attempts_total{outcome="refused"}'] > 0,
            "the refusals are counted",
        )

    def test_nobodyReadsTheLog(self) -> None:
        """
        G6: with a log pipe that is full from the first lines on, every request is
        answered at once; when somebody reads, every line is whole.
        """
        for form in ("json", "text"):
            reading, writing = os.pipe()
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
            process = self.server(f"logging.format={form}", stdout=writing)
            os.close(writing)
            begun = time.monotonic()
            for _ in range(200):
                self.ask("GET", "/api/v1/sessions")
            self.assertLess(time.monotonic() - begun, 60, form)
            parts: list[bytes] = []

            def read(source: int = reading, into: list[bytes] = parts) -> None:
                while part := os.read(source, 65536):
                    into.append(part)

            reader = threading.Thread(target=read)
            reader.start()
            self.end(process)
            reader.join(DEADLINE)
            os.close(reading)
            lines = b"".join(parts).decode().splitlines()
            asked = [line for line in lines if "GET /api/v1/sessions 200" in line]
            self.assertEqual(len(asked), 200, form)
            self.assertIn("Server Shut Down.", lines[-1])
            self.assertNotIn(self.admin, "".join(lines), "F1: the token is in the log")
            if form == "json":
                for line in lines:
                    self.assertIn("message", json.loads(line))


class LedgerTests(TestCase):
    """Real sockets in this process: what a hundred streams took is given back."""

    timeout = 60

    def test_emptyAtTheEnd(self) -> None:
        """Descriptors, timers and tables are as they were before, streams cut or ended."""
        return Deferred.fromCoroutine(self.streams())  # type: ignore[return-value]

    async def streams(self) -> None:
        check = LedgerCheck()
        server = Server()

        port, address = listen(Echo)

        target: Any = LocalTarget(reactor, parseTarget(address))
        agent = await Agent(server, {"default": target}).connect()
        before = LedgerCheck()
        endpoint = server.connections.endpoint("wolf-1")
        protocols: list[Any] = await gatherResults(
            [endpoint.connect(collector()) for _ in range(100)]
        )
        self.assertEqual(server.connections.sizes()["streams"], 100)
        for number, protocol in enumerate(protocols):
            protocol.write(b"hello")
            await protocol.read(5)
            if number % 2:
                protocol.transport.abortConnection()
            else:
                protocol.transport.loseConnection()
        await before.assertEmpty()
        self.assertEqual(server.connections.sizes()["streams"], 0)
        await agent.stop()
        await server.stop()
        await maybeDeferred(port.stopListening)
        await check.assertEmpty(server.connections, server.factory, agent.listener)
