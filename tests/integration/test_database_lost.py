"""A server whose PostgreSQL goes away while it serves, and comes back."""

from __future__ import annotations

import http.client
import json
import socket

from helix_revdial.storage.schema import upgrade
from tests.storage.postgresql import Cluster, needsPostgreSQL

from .fleet import LIMIT, FleetCase, receive, until

TASK = {
    "prompt": "x",
    "repo": {"mode": "none"},
    "runtime": {"type": "local"},
    "agent": {"type": "demonstration"},
}


def greet(stream: socket.socket) -> None:
    """What the target does."""
    stream.sendall(b"hello")
    stream.close()


@needsPostgreSQL
class DatabaseLostTests(FleetCase):
    """One server, one agent, one reader of events."""

    def test_lostAndBack(self) -> None:
        """
        Dials go on; what needs the database gets 503 with when to ask again; when it is
        back all goes on without a restart, the stream of events too.
        """
        cluster = Cluster()
        self.addCleanup(cluster.stop)
        upgrade(cluster.url)
        server = self.server(server__database=cluster.url)
        session = self.session(server)
        self.agent(server, session.key, session.token, greet)
        status, body = server.request("POST", "/api/v1/tasks", server.admin, TASK)
        self.assertEqual(status, 201, body)
        task = json.loads(body)["id"]
        reader = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT)
        self.addCleanup(reader.close)
        bearer = {"Authorization": f"Bearer {server.admin}"}
        reader.request("GET", f"/api/v1/sessions/{task}/events", headers=bearer)
        events = reader.getresponse()
        while b"queued" not in events.readline():
            pass

        cluster.halt()
        caller = http.client.HTTPConnection("127.0.0.1", server.port, timeout=2 * LIMIT)
        self.addCleanup(caller.close)
        caller.request(
            "POST",
            "/api/v1/tasks",
            json.dumps(TASK),
            {**bearer, "Content-Type": "application/json"},
        )
        refused = caller.getresponse()
        self.assertEqual(refused.status, 503)
        self.assertEqual(refused.getheader("Content-Type"), "application/problem+json")
        self.assertTrue((refused.getheader("Retry-After") or "").isdecimal())
        self.assertEqual(json.loads(refused.read())["status"], 503)
        _, stream = server.dial(session.key)
        self.addCleanup(stream.close)
        self.assertEqual(receive(stream), b"hello")

        cluster.start()
        until(
            lambda: server.request("POST", "/api/v1/tasks", server.admin, TASK)[0] == 201,
            "tasks are taken again",
        )
        # Nobody has taken it on: it ends when it is asked to.
        status, body = server.request("POST", f"/api/v1/sessions/{task}/stop", server.admin)
        self.assertEqual(status // 100, 2, body)
        end = b'"status":"' + json.loads(body)["status"].encode()
        while end not in (line := events.readline()):
            self.assertTrue(line, "the stream of events ended")
