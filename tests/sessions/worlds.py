"""What tests of sessions stand on: a database, clocks, an event log, and tasks."""

from __future__ import annotations

from typing import Any

import msgspec

from helix_revdial.sessions.events import EventLog
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.sessions import Sessions
from helix_revdial.sessions.tasks import TaskRequest
from tests.access.worlds import AccessTestCase


def task(**fields: Any) -> TaskRequest:
    """A request that is valid, with these fields set otherwise."""
    body: dict[str, Any] = {
        "prompt": "Fix the build",
        "repo": {"mode": "none"},
        "runtime": {"type": "local"},
        "agent": {"type": "demo"},
    }
    return msgspec.convert(body | fields, TaskRequest)


class SessionTestCase(AccessTestCase):
    """A test with sessions and their events."""

    def setUp(self) -> None:
        super().setUp()
        self.events = EventLog(self.database, self.wallClock)
        self.sessions = Sessions(self.database, self.clock, self.wallClock, self.events)

    def newTask(self, **fields: Any) -> Session:
        """A session that is queued."""
        return self.get(self.sessions.createTask(task(**fields), tenant="acme", owner="ann"))

    def statuses(self, session: str) -> list[str]:
        """The states that a session went through, by its events."""
        events = self.get(self.events.read(session, types=["status"]))
        return [str(event.data["status"]) for event in events]
