"""
What has to hold of the sessions and events in a database whose server was killed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from sqlalchemy import select
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions.lifecycle import TERMINAL, TRANSITIONS
from helix_revdial.storage.database import Database
from helix_revdial.storage.tables import session_events, sessions
from helix_revdial.storage.threads import SameThread


class SoundLogsCase(SynchronousTestCase):
    """Looks at a database while nobody writes to it."""

    def check(self, url: str, told: list[list[str]]) -> None:
        """
        What was told is there; each log is dense, each step is legal, each row
        agrees with its events.
        """
        database = Database(url, SameThread())
        self.addCleanup(database.engine.dispose)

        def look(connection: Any) -> tuple[list[Any], list[Any]]:
            return (
                list(connection.execute(select(sessions))),
                list(
                    connection.execute(
                        select(session_events).order_by(
                            session_events.c.session, session_events.c.seq
                        )
                    )
                ),
            )

        rows, events = self.successResultOf(database.read(look))
        known = {row.id: row for row in rows}
        logs: dict[str, list[Any]] = {row.id: [] for row in rows}
        for event in events:
            logs[event.session].append(event)
        for session, log in logs.items():
            row = known[session]
            self.assertEqual([event.seq for event in log], list(range(1, row.last_seq + 1)))
            statuses = [event.data["status"] for event in log if event.type == "status"]
            self.assertEqual(statuses[0], "queued")
            for before, after in pairwise(statuses):
                self.assertIn(after, TRANSITIONS[before])
            self.assertEqual(row.status, statuses[-1])
            self.assertEqual(row.ended is not None, row.status in TERMINAL)
        for words in told:
            if words[0] == "session":
                self.assertIn(words[1], known, "a session was lost")
            elif words[0] == "event":
                self.assertLessEqual(int(words[2]), known[words[1]].last_seq, "an event was lost")
