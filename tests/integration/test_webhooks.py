"""What a session's webhooks are told, by a server that is killed before it told them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from helix_revdial.storage.schema import upgrade
from tests.storage.databases import newURL
from tests.storage.postgresql import OnPostgreSQL

from .fleet import FleetCase, freePort, until

TASK = {
    "prompt": "steps=3",
    "repo": {"mode": "none"},
    "runtime": {"type": "local"},
    "agent": {"type": "demonstration"},
}


class Receiver:
    """
    A server that somebody else runs.

    @ivar heard: the head fields and the body of every request.
    @ivar status: what it answers with.
    """

    def __init__(self, port: int) -> None:
        self.heard: list[tuple[Mapping[str, str], bytes]] = []
        self.status = 204
        receiver = self

        class Answering(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.heard.append((dict(self.headers.items()), body))
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Answering)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def told(self) -> list[tuple[str, int]]:
        """The events, and their numbers."""
        documents = [json.loads(body) for _, body in self.heard]
        return [(one["type"], one["data"]["seq"]) for one in documents]


class WebhookTests(FleetCase):
    """One server, with the synthetic host."""

    def setUp(self) -> None:
        # Made first, it goes last: when the server has ended.
        url = newURL(self)
        upgrade(url)
        super().setUp()
        self.running = self.server(
            server__database=url,
            sessions__synthetic="true",
            sessions__synthetic_speed=100,
            webhooks__allow='["127.0.0.0/8"]',
            webhooks__timeout="0.5",
        )
        self.port = freePort()

    def receiver(self) -> Receiver:
        receiver = Receiver(self.port)
        self.addCleanup(receiver.stop)
        return receiver

    def api(self, method: str, path: str, body: Any = None) -> Any:
        token = self.running.admin
        status, content = self.running.request(method, f"/api/v1{path}", token, body)
        self.assertIn(status, (200, 201, 204), content)
        return json.loads(content) if content else None

    def task(self, *paths: str) -> str:
        hooks = [
            {"event": "session.*", "url": f"http://127.0.0.1:{self.port}{path}"} for path in paths
        ]
        session: str = self.api("POST", "/tasks", TASK | {"webhooks": hooks})["id"]
        return session

    def deliveries(self, session: str) -> list[Any]:
        found: list[Any] = self.api("GET", f"/sessions/{session}/webhooks?perPage=100")["items"]
        return found

    def test_killedBeforeItTold(self) -> None:
        """
        The receiver is down while a task runs; then the server is killed.  The next one
        tells everything, signed, each event once.
        """
        secret = self.api("POST", "/webhooks/secrets", {})["secret"]
        self.secrets.append(secret)
        session = self.task("/hook")
        until(
            lambda: self.api("GET", f"/sessions/{session}")["status"] == "completed", "it is done"
        )
        waiting = self.deliveries(session)
        self.assertEqual({one["status"] for one in waiting} - {"pending", "sending"}, set())
        self.running.kill()
        receiver = self.receiver()
        self.startServer(self.running)
        until(
            lambda: {one["status"] for one in self.deliveries(session)} == {"delivered"},
            "all is told",
            limit=90,
        )
        self.assertEqual(sorted(set(receiver.told)), sorted(receiver.told))
        self.assertEqual(
            sorted(receiver.told), sorted((one["event"], one["seq"]) for one in waiting)
        )
        self.assertIn("session.completed", [name for name, _ in receiver.told])
        for head, body in receiver.heard:
            signed = f"{head['webhook-id']}.{head['webhook-timestamp']}.".encode() + body
            key = base64.b64decode(secret.removeprefix("whsec_"))
            mac = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
            self.assertEqual(head["webhook-signature"], f"v1,{mac}")

    def test_gone(self) -> None:
        """A receiver that wants no more is told no more."""
        receiver = self.receiver()
        receiver.status = 410
        session = self.task("/a")
        until(
            lambda: self.api("GET", f"/sessions/{session}")["status"] == "completed", "it is done"
        )
        until(
            lambda: {one["status"] for one in self.deliveries(session)} == {"gone"},
            "it is told no more",
        )
        self.assertLess(len(receiver.heard), 5)


class WebhookPostgreSQLTests(OnPostgreSQL, WebhookTests):
    """The same."""
