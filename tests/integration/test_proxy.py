"""The HTTP gateway with a server, an agent and web servers, all real, asked by real clients."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.needs import needsProgram

from .fleet import LIMIT, FleetCase, Program, freePort, until
from .scripted import ROOT

MEBIBYTE = bytes(range(256)) * 4096
SIZE = 64
"""Mebibytes of a large body."""

_opened: list[float] = []
_seen = threading.Semaphore(0)
"""Has a permit for each event that has arrived."""


class Web(BaseHTTPRequestHandler):
    """A small web server."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Say nothing."""

    def answer(self, body: bytes, status: int = 200, **fields: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def do_GET(self) -> None:
        if self.path == "/large":
            self.send_response(200)
            self.send_header("Content-Length", str(SIZE * len(MEBIBYTE)))
            self.end_headers()
            for _ in range(SIZE):
                self.wfile.write(MEBIBYTE)
        elif self.path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for _ in range(SIZE):
                self.chunk(MEBIBYTE)
            self.wfile.write(b"0\r\n\r\n")
        elif self.path in ("/events", "/events?seen"):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for _ in range(3):
                self.chunk(b"data: now\n\n")
                _seen.acquire(timeout=0.3 if self.path == "/events" else 4 * LIMIT)
            self.wfile.write(b"0\r\n\r\n")
        elif self.path == "/half":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
        else:
            self.answer(f"{self.path} {self.headers['X-Forwarded-For']}".encode())

    def do_POST(self) -> None:
        if self.path == "/refused":
            self.answer(b"no", 403)
            self.close_connection = True
            return
        digest = hashlib.sha256()
        if "chunked" in (self.headers["Transfer-Encoding"] or ""):
            while size := int(self.rfile.readline(), 16):
                digest.update(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers["Content-Length"])
            while left:
                data = self.rfile.read(min(left, 65536))
                digest.update(data)
                left -= len(data)
        self.answer(digest.hexdigest().encode())

    def handle_expect_100(self) -> bool:
        if self.path == "/refused":
            return True
        return super().handle_expect_100()


def web(connection: socket.socket) -> None:
    """Serves one connection."""
    _opened.append(time.monotonic())
    Web(connection, ("127.0.0.1", 0), None)  # type: ignore[arg-type]


ECHO = """
import sys
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import reactor

class Echo(WebSocketServerProtocol):
    def onMessage(self, payload, isBinary):
        self.sendMessage(payload, isBinary)

factory = WebSocketServerFactory()
factory.protocol = Echo
reactor.listenTCP(int(sys.argv[1]), factory, interface="127.0.0.1")
reactor.run()
"""

CLIENT = """
import os, sys, hashlib
from autobahn.twisted.websocket import (
    WebSocketClientFactory, WebSocketClientProtocol, connectWS)
from twisted.internet import reactor

MESSAGES = [b"", b"x", os.urandom(200), os.urandom(70000), os.urandom(3000000)]

class Client(WebSocketClientProtocol):
    got = ()
    def onOpen(self):
        for message in MESSAGES:
            self.sendMessage(message, True)
    def onMessage(self, payload, isBinary):
        self.got += (payload,)
        if len(self.got) == len(MESSAGES):
            self.sendClose(1000, "enough")
    def onClose(self, wasClean, code, reason):
        print("same" if list(self.got) == MESSAGES else "other", wasClean, code)
        if reactor.running:
            reactor.stop()

factory = WebSocketClientFactory(
    sys.argv[1], headers={"Authorization": "Bearer " + os.environ["TOKEN"]})
factory.protocol = Client
connectWS(factory, timeout=10)
reactor.callLater(20, reactor.stop)
reactor.run()
"""


def peak(program: Program) -> int:
    """The most memory that a process has had, in bytes."""
    status = Path(f"/proc/{program.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


class ProxyTests(FleetCase):
    """What real clients get."""

    def setUp(self) -> None:
        super().setUp()
        _opened.clear()
        self.fleet = self.server(gateways__base_domain="apps.example")
        runner = self.token(self.fleet, kind="runner", patterns=["wolf-*"])
        self.operator = self.token(self.fleet, kind="user", user="ann", role="operator")
        self.echoPort = freePort()
        self.wolf = self.agent(self.fleet, "wolf-1", runner, web, f"ws=127.0.0.1:{self.echoPort}")
        self.headers = self.directory / "headers"
        self.headers.write_text(f"Authorization: Bearer {self.operator}\n")

    def url(self, path: str, target: str = "web") -> str:
        return f"{self.fleet.url}/api/v1/runners/wolf-1/http/{target}{path}"

    def curl(self, *arguments: str, given: bytes | None = None) -> Any:
        return subprocess.run(
            ["curl", "-sS", "--max-time", "30", "-H", f"@{self.headers}", *arguments],
            input=given,
            capture_output=True,
        )

    @needsProgram("curl", package="curl")
    def test_largeBodies(self) -> None:
        """D4: 64 MiB up and down, of known length and not, whole, and held nowhere."""
        body = self.directory / "body"
        with body.open("wb") as file:
            for _ in range(SIZE):
                file.write(MEBIBYTE)
        digest = hashlib.sha256(MEBIBYTE * SIZE).hexdigest()
        self.curl(self.url("/"))
        before = peak(self.fleet), peak(self.wolf)
        for path in ("/large", "/chunked"):
            with self.subTest(path):
                done = self.curl(self.url(path), "--output", str(self.directory / "down"))
                self.assertEqual((done.returncode, done.stderr), (0, b""))
                with (self.directory / "down").open("rb") as file:
                    self.assertEqual(hashlib.file_digest(file, "sha256").hexdigest(), digest)
        for fields in ((), ("-H", "Transfer-Encoding: chunked"), ("-H", "Expect:")):
            done = self.curl("-X", "POST", *fields, "-T", str(body), self.url("/up"))
            self.assertEqual((done.stdout, done.stderr), (digest.encode(), b""), fields)
        for program, had in zip((self.fleet, self.wolf), before, strict=True):
            self.assertLess(peak(program) - had, 16 * 2**20, f"{program.name} held the body")

    @needsProgram("curl", package="curl")
    def test_curl(self) -> None:
        """Keep-alive and reuse, an answer that breaks off, a body that is refused."""
        done = self.curl(*(self.url(f"/{number}") for number in range(5)))
        self.assertEqual(done.stdout, b"".join(b"/%d 127.0.0.1" % n for n in range(5)))
        self.assertEqual(len(_opened), 1, "one connection to the service serves them all")
        done = self.curl(self.url("/half"), "-w", " %{http_code}")
        self.assertNotEqual(done.returncode, 0, "half an answer looked whole")
        self.assertEqual(done.stdout, b"half 200", "what came of it was lost")
        began = time.monotonic()
        done = self.curl(
            "-H", "Expect: 100-continue", "--expect100-timeout", "20", "--data-binary", "@-",
            "-w", "%{http_code} %{size_upload}", self.url("/refused"), given=MEBIBYTE * 8,
        )  # fmt: skip
        self.assertEqual(done.stdout, b"no403 0", "a body that is refused is not sent")
        self.assertLess(time.monotonic() - began, 10, "the refusal waited for something")

    def test_manyAtOnce(self) -> None:
        """More requests at once than dials may be under way: each is answered."""
        with contextlib.ExitStack() as all_:
            callers = [all_.enter_context(self.fleet.connect()) for _ in range(200)]
            target = self.url("/").removeprefix(self.fleet.url)
            for caller in callers:
                caller.sendall(
                    f"POST {target}up HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n"
                    f"Authorization: Bearer {self.operator}\r\n\r\n".encode()
                )
            for caller in callers:
                self.assertEqual(caller.recv(12), b"HTTP/1.1 200")

    def test_events(self) -> None:
        """D15: events come one by one: each is there before the next one is sent."""
        process = subprocess.Popen(
            [
                sys.executable, "-c",
                "import sys, urllib.request\n"
                "request = urllib.request.Request(sys.argv[1], headers={'Authorization': "
                "'Bearer ' + sys.stdin.readline().strip()})\n"
                "for line in urllib.request.urlopen(request, timeout=30):\n"
                "    if line.strip():\n"
                "        print(line, flush=True)\n",
                self.url("/events?seen"),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(self.operator + "\n")
            process.stdin.close()
            for number in range(3):
                self.assertTrue(process.stdout.readline(), f"event {number} was held")
                _seen.release()
            self.assertEqual(process.stdout.read(), "")

    def test_webSocket(self) -> None:
        """A WebSocket of Autobahn's own, end to end: every message, and the close."""
        server = subprocess.Popen([sys.executable, "-c", ECHO, str(self.echoPort)])
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.echoPort)) == 0

        until(listens, "the echo listens")
        url = self.url("/chat?x", "ws").replace("http://", "ws://")
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, url],
            env={**os.environ, "TOKEN": self.operator, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=30,
        )
        self.assertEqual(done.stdout, "same True 1000\n", done.stderr[-2000:])

    def test_callerGone(self) -> None:
        """A caller that is gone leaves nothing of its exchange, at the agent either."""
        with self.nothingLeft(self.fleet, self.wolf):
            for path in ("/large", "/events"):
                with socket.create_connection(("127.0.0.1", self.fleet.port)) as caller:
                    target = self.url(path).removeprefix(self.fleet.url)
                    caller.sendall(
                        f"GET {target} HTTP/1.1\r\nHost: a\r\n"
                        f"Authorization: Bearer {self.operator}\r\n\r\n".encode()
                    )
                    self.assertTrue(caller.recv(10).startswith(b"HTTP/1.1 2"))

    @needsProgram("curl", package="curl")
    def test_byName(self) -> None:
        """F9: a target's own host leads to the target, and never to the API."""
        host = "web--wolf-1.apps.example"
        done = self.curl("-H", f"Host: {host}", f"{self.fleet.url}/readyz?x")
        self.assertEqual(done.stdout, b"/readyz?x 127.0.0.1")
        done = self.curl("-H", "Host: www.apps.example", f"{self.fleet.url}/readyz")
        self.assertIn(b"names no target", done.stdout)

    def test_nothingThere(self) -> None:
        """D21: a service that is not there is a 502 at once, with its word."""
        status, body = self.fleet.request("GET", "/api/v1/runners/wolf-1/http/ws/", self.operator)
        self.assertEqual(status, 502, body)
        self.assertIn(b'"target-refused"', body)
