"""
A server that many clients use, killed at random points, again and again.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from typing import Any

from helix_revdial.storage.schema import upgrade
from tests.storage.databases import newURL
from tests.storage.postgresql import OnPostgreSQL

from .fleet import FleetCase, Server, until
from .sound_logs import SoundLogsCase

CLIENTS = 6

TASK = {
    "repo": {"mode": "none"},
    "runtime": {"type": "local"},
    "agent": {"type": "demonstration"},
    "delivery": {"mode": "patch"},
}


class Client:
    """
    Makes tasks and does things to them, until its server is gone.

    @ivar keys: What each key's task was answered with: its session, or C{None} while it
        is not known what became of it.
    @ivar wrong: Answers that should not be.
    """

    def __init__(self, number: int, chance: random.Random) -> None:
        self.keys: dict[str, str | None] = {}
        self.wrong: list[str] = []
        self._number = number
        self._chance = chance
        self._count = itertools.count()

    def use(self, server: Server, gone: threading.Event) -> None:
        """Go on until the server is gone."""
        try:
            while not gone.is_set():
                pending = [key for key, session in self.keys.items() if session is None]
                key = pending[0] if pending else f"{self._number}-{next(self._count)}"
                if not self.make(server, key):
                    # Its first call may hold the key for a minute.
                    key = f"{self._number}-{next(self._count)}"
                    self.make(server, key)
                known = [session for session in self.keys.values() if session]
                if known:
                    self.treat(server, self._chance.choice(known[-3:]))
        except (OSError, ValueError):
            # It was killed in the middle of an answer.
            return

    def make(self, server: Server, key: str) -> bool:
        """
        Make a task, or learn that it was made.

        @return: Whether it is there.
        """
        self.keys.setdefault(key, None)
        prompt = "forever" if key.endswith(("1", "4", "7")) else f"steps=3 {key}"
        status, body = call(server, "POST", "/api/v1/tasks", {**TASK, "prompt": prompt}, key)
        if status == 409:
            return False
        if status not in (200, 201):
            self.wrong.append(f"{key}: {status} {body!r}")
            return False
        session = json.loads(body)["id"]
        if self.keys[key] not in (None, session):
            self.wrong.append(f"{key} made two: {self.keys[key]} and {session}")
        self.keys[key] = session
        return True

    def treat(self, server: Server, session: str) -> None:
        """Do something to a session; it may be in any state."""
        path = f"/api/v1/sessions/{session}"
        method, tail = self._chance.choice(
            [("POST", "/pause"), ("POST", "/resume"), ("POST", "/stop"), ("GET", "/logs?tail=5")]
        )
        status, body = call(server, method, path + tail, {} if tail == "/stop" else None)
        if status not in (200, 202, 409):
            self.wrong.append(f"{method} {path}{tail}: {status} {body!r}")


def call(
    server: Server, method: str, path: str, body: Any = None, key: str | None = None
) -> tuple[int, bytes]:
    """One call on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        headers = {"Authorization": f"Bearer {server.admin}"}
        if key is not None:
            headers["Idempotency-Key"] = key
        data = None
        if body is not None:
            data = json.dumps(body)
            headers["Content-Type"] = "application/json"
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()


class ServerCrashTests(FleetCase, SoundLogsCase):
    """Each round goes on with what the round before left behind."""

    KILLS = 10

    def setUp(self) -> None:
        # Made first, it goes last: when the server has ended.
        self.url = newURL(self)
        upgrade(self.url)
        super().setUp()

    def test_killedAnywhere(self) -> None:
        """
        The next start accepts what is there; no task that was answered is lost, none is
        doubled by asking again, and each event log is dense and agrees with its session.
        """
        seed = random.randrange(1 << 32)
        chance = random.Random(seed)
        clients = [Client(number, random.Random(chance.random())) for number in range(CLIENTS)]
        server = self.server(
            server__database=self.url, sessions__synthetic="true", sessions__synthetic_speed=100
        )
        try:
            for _ in range(self.KILLS):
                gone = threading.Event()
                threads = [
                    threading.Thread(target=client.use, args=(server, gone)) for client in clients
                ]
                for thread in threads:
                    thread.start()
                time.sleep(chance.uniform(0.02, 0.7))
                server.kill()
                gone.set()
                for thread in threads:
                    thread.join()
                self.look(clients)
                self.startServer(server)
            self.finish(server, clients)
        except AssertionError as error:
            raise AssertionError(f"with seed {seed}: {error}") from error

    def look(self, clients: list[Client]) -> None:
        """What is there is sound, and what was answered is among it."""
        self.assertEqual([wrong for client in clients for wrong in client.wrong], [])
        self.check(
            self.url,
            [["session", one] for client in clients for one in client.keys.values() if one],
        )

    def finish(self, server: Server, clients: list[Client]) -> None:
        """Every task is there once, and comes to its end."""
        made = set()
        for client in clients:
            for key in client.keys:
                if client.make(server, key):
                    made.add(client.keys[key])
        self.assertGreater(len(made), 2 * self.KILLS)

        def listed(query: str) -> Any:
            return server.get(f"/api/v1/sessions?perPage=1{query}")["total"]

        self.assertEqual(listed(""), len(made))
        for session in made:
            call(server, "POST", f"/api/v1/sessions/{session}/stop", {})
        until(
            lambda: listed("&status=completed,failed,stopped") == len(made),
            "every session has ended",
        )
        server.end()
        self.look(clients)


class ServerCrashPostgreSQLTests(OnPostgreSQL, ServerCrashTests):
    """The same on PostgreSQL."""

    KILLS = 6
