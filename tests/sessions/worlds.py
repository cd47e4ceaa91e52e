"""What tests of sessions stand on: a database, clocks, an event log, and tasks."""

from __future__ import annotations

from typing import Any

import msgspec

from helix_revdial.sessions.driver import Driver
from helix_revdial.sessions.events import EventLog
from helix_revdial.sessions.executor import (
    AgentSpec,
    DeliverySpec,
    LaunchSpec,
    RepoSpec,
    RuntimeSpec,
)
from helix_revdial.sessions.executors import Executors
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.sessions import Sessions
from helix_revdial.sessions.synthetic import SyntheticExecutor
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


async def prepare(session: Session) -> LaunchSpec:
    """What a host is told of a session, without an agent's declaration."""
    request = session.request
    return LaunchSpec(
        session=session.id,
        prompt=request.prompt,
        agent=AgentSpec(request.agent.type),
        repo=RepoSpec(request.repo.mode, request.repo.url),
        runtime=RuntimeSpec(request.runtime.type),
        delivery=None if request.delivery is None else DeliverySpec(request.delivery.mode),
    )


class DrivenTestCase(SessionTestCase):
    """A test with a driver and a synthetic executor, C{host-1}."""

    def setUp(self) -> None:
        super().setUp()
        self.host = self.newHost()
        self.ended: list[str] = []
        self.start()
        self.addCleanup(self.stop)

    def newHost(self) -> SyntheticExecutor:
        return SyntheticExecutor(self.clock, self.wallClock, slots=5)

    def start(self) -> None:
        """A server begins, with nothing but the database and the host."""
        self.events = EventLog(self.database, self.wallClock)
        self.sessions = Sessions(self.database, self.clock, self.wallClock, self.events)
        self.executors = Executors(self.clock, self.wallClock)
        self.executors.add("host-1", self.host)
        self.driver = Driver(
            self.clock,
            self.wallClock,
            self.sessions,
            self.executors,
            prepare,
            onEnded=self.onEnded,
        )
        self.executors.start()
        self.get(self.driver.start())

    async def onEnded(self, session: Session) -> None:
        self.ended.append(session.id)

    def stop(self) -> None:
        """The server ends, as if it were killed: nothing is told to anybody."""
        self.executors.stop()
        self.get(self.driver.stop())

    def run_(self, **fields: Any) -> Session:
        """A task that is handed in."""
        session = self.newTask(**fields)
        self.driver.submit(session)
        return session

    def look(self, session: Session) -> Session:
        """The session as it is now."""
        found = self.get(self.sessions.get(session.id))
        assert found is not None
        return found

    def pass_(self, seconds: float, step: float = 0.1) -> None:
        """Time goes by."""
        self.clock.pump([step] * round(seconds / step))

    def until(self, session: Session, *statuses: str) -> Session:
        """Time goes by until the session is in one of these states."""
        for _ in range(3000):
            found = self.look(session)
            if found.status in statuses:
                return found
            self.clock.advance(0.1)
        raise AssertionError(f"{self.look(session)} after {self.statuses(session.id)}")
