"""Tests for L{helix_revdial.sessions.webhook_outbox}."""

from __future__ import annotations

from typing import Any

from helix_revdial.sessions import webhook_outbox as module
from helix_revdial.sessions.events import Event
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.webhook_outbox import MAX_WAITING, Delivery, Outbox, nameOf
from tests.sessions.worlds import SessionTestCase, task
from tests.storage.postgresql import OnPostgreSQL

DONE = {"event": "session.completed", "url": "https://a.example/hook"}
ALL = {"event": "session.*", "url": "https://a.example/hook"}


def render(event: Event) -> dict[str, Any]:
    return {"type": event.type, "ts": "now", "seq": event.seq, **event.data}


class OutboxTests(SessionTestCase):
    """Written with the event, while nobody sends."""

    def setUp(self) -> None:
        super().setUp()
        self.outbox = Outbox(self.database, self.wallClock, self.events, render)

    def make(self, *hooks: dict[str, str]) -> Session:
        return self.get(
            self.sessions.createTask(task(webhooks=list(hooks)), tenant="acme", owner="ann")
        )

    def deliveries(self, session: Session) -> list[Delivery]:
        items, total = self.get(self.outbox.list(session.id, perPage=200))
        self.assertEqual(len(items), min(total, 200))
        return items

    def event(self, session: Session, *types: str) -> None:
        """Events of these types."""
        self.get(self.events.appendMany(session.id, [(kind, {}) for kind in types]))

    def test_names(self) -> None:
        """States, deliveries and moments have names; lines of the log are not told."""
        for kind, data, name in (
            ("status", {"status": "failed"}, "session.failed"),
            ("delivery", {}, "session.delivery"),
            ("moment", {}, "session.moment"),
            ("log", {}, None),
        ):
            self.assertEqual(nameOf(Event("s", 1, 0, kind, data)), name)

    def test_nobodyAsked(self) -> None:
        """Without webhooks nothing is written."""
        session = self.make()
        self.get(self.sessions.change(session.id, "broke"))
        self.assertEqual(self.deliveries(session), [])

    def test_withTheEvent(self) -> None:
        """No event, no delivery: they are one transaction."""
        session = self.make(DONE)

        def write(connection: Any, log: Any) -> None:
            log.append("status", {"status": "completed"})
            raise ZeroDivisionError

        self.failureResultOf(self.events.write(session.id, write), ZeroDivisionError)
        self.assertEqual(self.deliveries(session), [])

    def test_waitingIsLimited(self) -> None:
        """A session has so many that wait; what more happens is not told."""
        session = self.make(ALL)
        self.event(session, *["moment"] * 50)
        self.patch(module, "MAX_WAITING", 55)
        self.assertEqual(MAX_WAITING, 1000)
        self.event(session, *["moment"] * 50)
        self.assertEqual(len(self.deliveries(session)), 55)

    def test_pages(self) -> None:
        """A session's deliveries, newest first."""
        session = self.make(ALL)
        self.event(session, "moment", "delivery")
        items, total = self.get(self.outbox.list(session.id, page=2, perPage=2))
        self.assertEqual(([one.event for one in items], total), (["session.queued"], 3))


class OutboxPostgreSQLTests(OnPostgreSQL, OutboxTests):
    """The same on PostgreSQL."""
