"""
Many sessions at once with many readers, one of whom is stopped dead, on a server that
is killed in the middle.
"""

from __future__ import annotations

import http.client
import json
import resource
import socket

from helix_revdial.storage.schema import upgrade
from tests.storage.databases import newURL
from tests.storage.postgresql import OnPostgreSQL

from .crowd import Crowd
from .fleet import FleetCase, Server

TASK = {
    "repo": {"mode": "none"},
    "runtime": {"type": "local"},
    "agent": {"type": "demonstration"},
    "delivery": {"mode": "patch"},
}

READERS = 5
"""Of each session."""

GROWTH = 64 * 1024
"""KiB that the server may have grown by, at its peak, for all of it: 200 sessions that it
drives and 1,000 readers take about 33,000."""


class CrowdTests(FleetCase):
    """
    Half of the sessions run at first; the others wait, and run after the restart.
    """

    SESSIONS = 200

    def setUp(self) -> None:
        # Made first, it goes last: when the server has ended.
        self.url = newURL(self)
        upgrade(self.url)
        super().setUp()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

    def create(self, server: Server) -> list[str]:
        """The sessions."""
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=15)
        self.addCleanup(connection.close)
        made = []
        for number in range(self.SESSIONS):
            connection.request(
                "POST",
                "/api/v1/tasks",
                json.dumps({**TASK, "prompt": f"number {number} steps={10 + number % 10}"}),
                {
                    "Authorization": f"Bearer {server.admin}",
                    "Content-Type": "application/json",
                    "Idempotency-Key": f"task-{number}",
                },
            )
            answer = connection.getresponse()
            body = answer.read()
            self.assertEqual(answer.status, 201, body)
            made.append(json.loads(body)["id"])
        return made

    def test_killedInTheMiddle(self) -> None:
        """
        Every reader sees each event of its session once and in order, from the first to
        the end, although the server is killed and one reader takes nothing; the server
        needs memory within bounds.
        """
        server = self.server(
            limits={
                "helix_revdial.sessions.synthetic.SyntheticExecutor": {"slots": self.SESSIONS // 2}
            },
            server__database=self.url,
            sessions__synthetic="true",
            sessions__synthetic_speed=12,
            sessions__heartbeat=1,
            events__heartbeat=1,
            events__queue_bytes=65536,
        )
        before = server.status("VmRSS")
        sessions = self.create(server)
        crowd = Crowd(server.port, server.admin)
        self.addCleanup(crowd.close)
        # The one that is stopped dead: it asks, and takes nothing, beyond what its
        # socket holds.
        dead = socket.socket()
        self.addCleanup(dead.close)
        dead.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        dead.connect(crowd.address)
        dead.sendall(
            f"GET /api/v1/sessions/{sessions[0]}/events HTTP/1.1\r\nHost: helix\r\n"
            f"Authorization: Bearer {server.admin}\r\n\r\n".encode()
        )
        for session in sessions:
            for _ in range(READERS):
                crowd.add(session)
        crowd.run(
            lambda: crowd.seen > len(crowd.readers) * 4 and any(r.over for r in crowd.readers),
            "the first have ended",
        )
        grown = server.status("VmHWM") - before
        server.kill()
        # Who reads sees the end of the connection, and comes back to nobody at first.
        crowd.run(lambda: len(crowd.later) > len(crowd.readers) // 4, "the streams are lost")
        self.assertLess(sum(reader.over for reader in crowd.readers), len(crowd.readers))
        self.startServer(server)
        crowd.run(crowd.allOver, "every reader has seen the end")
        grown = max(grown, server.status("VmHWM") - before)
        faults = [fault for reader in crowd.readers for fault in reader.faults]
        self.assertEqual(faults, [])
        self.assertLess(grown, GROWTH, "KiB")
        self.assertGreater(sum(reader.resumed > 0 for reader in crowd.readers), READERS)
        # What was seen is what is kept, by all of a session alike.
        listed = {}
        for page in range(1, self.SESSIONS // 100 + 2):
            found = server.get(f"/api/v1/sessions?perPage=100&page={page}")
            listed.update({one["id"]: one for one in found["items"]})
        ends = {"completed": 0, "failed": 0}
        for number, session in enumerate(sessions):
            readers = crowd.readers[number * READERS : (number + 1) * READERS]
            for reader in readers:
                self.assertEqual(reader.last, listed[session]["lastSeq"], session)
                self.assertEqual(reader.events, readers[0].events, session)
            statuses = readers[0].statuses()
            self.assertEqual(statuses[0], "queued")
            self.assertEqual(statuses[-1], listed[session]["status"])
            ends[statuses[-1]] += 1
        # What ran when its host died with the server has failed; what had ended before,
        # and what waited, has not.
        self.assertGreater(ends["completed"], self.SESSIONS // 2)
        self.assertGreater(ends["failed"], 0)


class CrowdPostgreSQLTests(OnPostgreSQL, CrowdTests):
    """The same on PostgreSQL, with fewer."""

    SESSIONS = 40
