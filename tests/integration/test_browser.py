"""
Web applications beside an agent in a real browser: by name, by path, by C{helix forward}.

A browser cannot be told our token, so HAProxy stands before the server and adds it, as
a proxy that knows the operator's users would.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import queue
import signal
import socket
import subprocess
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.needs import needsProgram

from .fleet import freePort, until
from .test_forward import ForwardCase

SIZE = 6 * 2**20
"""Bytes of a large body."""

BODY = bytes(range(256)) * (SIZE // 256)

BROWSER_LIMIT = 90.0
"""Seconds for a browser that starts on a busy machine."""

PAGE = b"""<!doctype html><meta charset=utf-8><title>application</title>
<link rel=stylesheet href=style.css>
<p id=styled>styled</p>
<script src=application.js></script>
"""

STYLE = b"#styled { color: rgb(1, 2, 3) }"

SCRIPT = """
'use strict'
const found = {origin: self.origin}
const bytes = size => {
  const made = new Uint8Array(size)
  for (let at = 0; at < size; at++) made[at] = at & 255
  return made
}
const same = (one, other) => one.length === other.length && one.every((b, at) => b === other[at])
const tried = async what => {
  try { return await what() } catch (error) { return error.name }
}
const checks = {
  styled: () => getComputedStyle(document.querySelector('#styled')).color,
  up: async () => (await fetch('up', {method: 'POST', body: bytes(SIZE)})).text(),
  down: async () =>
    same(new Uint8Array(await (await fetch('down')).arrayBuffer()), bytes(SIZE)),
  events: () => new Promise((done, failed) => {
    const told = []
    const source = new EventSource('events')
    // The next one is sent when this one has been told.
    source.onmessage = event => { told.push(event.data); fetch('told', {method: 'POST'}) }
    source.addEventListener('over', () => { source.close(); done(told.join()) })
    source.onerror = () => { source.close(); failed(new Error('events')) }
  }),
  webSocket: () => new Promise((done, failed) => {
    const url = new URL('echo', location.href)
    url.protocol = 'ws:'
    const stream = new WebSocket(url, ['other', 'echo'])
    stream.binaryType = 'arraybuffer'
    const sent = bytes(300000)
    let heard = null
    stream.onopen = () => stream.send(sent)
    stream.onmessage = event => {
      heard = same(new Uint8Array(event.data), sent)
      stream.close(3000, 'enough')
    }
    stream.onclose = event => done([heard, stream.protocol, event.wasClean, event.code].join())
  }),
  cookie: async () => {
    await fetch('cookie')
    return [document.cookie, await (await fetch('cookies')).text()].join(' and ')
  },
  kept: () => { localStorage.setItem('a', 'b'); return localStorage.getItem('a') },
  api: async () => (await fetch(API, {credentials: 'include'})).status,
}
;(async () => {
  for (const name of CHECKS) found[name] = await tried(checks[name])
  await fetch('report', {method: 'POST', mode: 'no-cors', body: JSON.stringify(found)})
  const next = NEXT
  if (next) location.href = next
})()
"""

HAPROXY = """
global
    maxconn 256
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
frontend front
    bind 127.0.0.1:{port}
    http-request set-header X-Helix-Authorization "Bearer ${{TOKEN}}"
    default_backend back
backend back
    server server 127.0.0.1:{server}
"""


class Application(BaseHTTPRequestHandler):
    """A web application, for one connection."""

    protocol_version = "HTTP/1.1"
    reports: queue.Queue[dict[str, Any]] = queue.Queue()
    told: queue.Queue[None] = queue.Queue()
    script: dict[str, str] = {}
    """The C{application.js} for each host that the page has."""

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Say nothing."""

    def answer(self, body: bytes, kind: str = "text/plain", **fields: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        name = self.path.partition("?")[0]
        if name == "/":
            self.answer(PAGE, "text/html")
        elif name == "/style.css":
            self.answer(STYLE, "text/css")
        elif name == "/application.js":
            way = "path" if "X-Forwarded-Prefix" in self.headers else self.headers["Host"]
            self.answer(self.script[way].encode(), "text/javascript")
        elif name == "/down":
            self.answer(BODY, "application/octet-stream")
        elif name == "/events":
            self.events()
        elif name == "/echo":
            self.echo()
        elif name == "/cookie":
            self.answer(b"", Set_Cookie="id=1; Path=/")
        else:
            self.answer((self.headers["Cookie"] or "").encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path == "/report":
            self.reports.put(json.loads(body))
        elif self.path == "/told":
            self.told.put(None)
        self.answer(hashlib.sha256(body).hexdigest().encode())

    def events(self) -> None:
        """Three events, each when the one before has been told of."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        for number in range(3):
            self.wfile.write(b"data: %d\n\n" % number)
            self.told.get(timeout=BROWSER_LIMIT)
        self.wfile.write(b"event: over\ndata:\n\n")

    def echo(self) -> None:
        """A WebSocket whose frames come back as they are."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "websocket")
        self.send_header("Sec-WebSocket-Protocol", "echo")
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        self.close_connection = True
        while head := self.rfile.read(2):
            length = head[1] & 127
            long = self.rfile.read({126: 2, 127: 8}.get(length, 0))
            mask = self.rfile.read(4)
            data = self.rfile.read(int.from_bytes(long, "big") if long else length)
            mask *= len(data) // 4 + 1
            number = int.from_bytes(data, "big") ^ int.from_bytes(mask[: len(data)], "big")
            self.wfile.write(bytes([head[0], length]) + long + number.to_bytes(len(data), "big"))
            if head[0] & 15 == 8:
                # The server closes first (RFC 6455, 7.1.1); browsers wait for it.
                return


def web(connection: socket.socket) -> None:
    """Serves one connection."""
    Application(connection, ("127.0.0.1", 0), None)  # type: ignore[arg-type]


class BrowserTests(ForwardCase):
    """What a page can do, and what it cannot."""

    SETTINGS = {**ForwardCase.SETTINGS, "gateways.base_domain": "apps.example"}

    def front(self) -> int:
        """HAProxy, which says who asks; its port."""
        port = freePort()
        config = self.directory / "haproxy.cfg"
        config.write_text(HAPROXY.format(port=port, server=self.fleet.port))
        process = subprocess.Popen(
            ["haproxy", "-q", "-db", "-f", str(config)],
            env={**self.environment(), "TOKEN": self.operator},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        until(listens, "HAProxy listens")
        return port

    def browse(self, url: str, rules: str) -> None:
        """Start the browser at a page."""
        profile = self.directory / "profile"
        said = self.directory / "browser.log"
        with said.open("wb") as log:
            process = subprocess.Popen(
                [
                    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                    "--no-first-run", "--disable-background-networking", "--disable-sync",
                    "--disable-component-update", "--disable-dev-shm-usage",
                    f"--user-data-dir={profile}", f"--host-resolver-rules={rules}",
                    "--remote-debugging-port=0", "--no-proxy-server", url,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**self.environment(), "HOME": str(profile)},
                start_new_session=True,
            )  # fmt: skip

        def end() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

        self.addCleanup(end)
        self.browser, self.said = process, said

    def reported(self) -> dict[str, Any]:
        """What the next page has found."""
        deadline = time.monotonic() + BROWSER_LIMIT
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                return Application.reports.get(timeout=0.2)
            if self.browser.poll() is not None:
                break
        raise AssertionError(f"no report came; the browser said:\n{self.said.read_text()[-3000:]}")

    @needsProgram("chromium", package="chromium")
    @needsProgram("haproxy", package="haproxy")
    def test_application(self) -> None:
        """
        A page with all that an application does works by name and through C{helix
        forward}, and reaches nobody else's origin; by path it is a stranger to the API's.
        """
        self.wolf(web)
        port = self.front()
        local = freePort()
        self.start("forward", "wolf-1", f"{local}:web").stdout.readline()
        named = f"web--wolf-1.apps.example:{port}"
        pages = [
            (named, f"http://{named}/"),
            ("path", f"http://cp.example:{port}/api/v1/runners/wolf-1/http/web/"),
            (f"127.0.0.1:{local}", f"http://127.0.0.1:{local}/"),
        ]
        checks = ["styled", "up", "down", "events", "webSocket", "cookie", "kept", "api"]
        for number, (way, _) in enumerate(pages):
            words = {
                "SIZE": SIZE,
                # A stranger's events are not for it: who sends them would wait in vain.
                "CHECKS": [name for name in checks if (way, name) != ("path", "events")],
                "API": f"http://cp.example:{port}/api/v1/tokens",
                "NEXT": pages[number + 1][1] if number + 1 < len(pages) else None,
            }
            known = "".join(f"const {name} = {json.dumps(word)}\n" for name, word in words.items())
            Application.script[way] = known + SCRIPT
        self.browse(pages[0][1], f"MAP *.example 127.0.0.1:{port}")
        works = {
            "styled": "rgb(1, 2, 3)",
            "up": hashlib.sha256(BODY).hexdigest(),
            "down": True,
            "events": "0,1,2",
            "webSocket": "true,echo,true,3000",
            "cookie": "id=1 and id=1",
            "kept": "b",
            "api": "TypeError",
        }
        self.assertEqual(self.reported(), {"origin": f"http://{named}", **works})
        self.assertEqual(
            self.reported(),
            {
                "origin": "null",
                **dict.fromkeys(("up", "down", "cookie", "api"), "TypeError"),
                "styled": works["styled"],
                "webSocket": works["webSocket"],
                "kept": "SecurityError",
            },
        )
        self.assertEqual(self.reported(), {"origin": f"http://127.0.0.1:{local}", **works})
