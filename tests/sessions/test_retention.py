"""Tests for L{helix_revdial.sessions.retention}."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, select
from twisted.internet.defer import Deferred

from helix_revdial.sessions import retention as module
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.retention import Retention, RetentionSettings
from helix_revdial.sessions.webhook_secrets import WebhookSecrets
from helix_revdial.storage.ids import newId
from helix_revdial.storage.tables import moments, session_events, sessions, webhook_deliveries
from tests.sessions.worlds import DrivenTestCase
from tests.storage.postgresql import OnPostgreSQL

DAY = 86_400.0


class RetentionTests(DrivenTestCase):
    """What is over leaves when it is said, and nothing else."""

    def setUp(self) -> None:
        super().setUp()
        self.swept = 0
        self.retention = self.keep()

    def keep(self, **fields: Any) -> Retention:
        off = {"events": 0.0, "eventsPerSession": 0, "sessions": 0.0, "deliveries": 0.0}

        async def sweep() -> None:
            self.swept += 1

        return Retention(
            self.database,
            self.clock,
            self.wallClock,
            self.events,
            lambda session: self.driver.delete(session),
            sweep,
            RetentionSettings(**(off | fields)),
        )

    def once(self, **fields: Any) -> None:
        """One pass, with only these settings."""
        done = Deferred.fromCoroutine(self.keep(**fields).run())
        for _ in range(10_000):
            if done.called:
                break
            self.clock.advance(module.PAUSE)
        self.successResultOf(done)

    def over(self, count: int = 0) -> Session:
        """A task that has ended, with so many more events."""
        session = self.run_()
        if count:
            self.get(self.events.appendMany(session.id, [("log", {"message": "x"})] * count))
        return self.until(session, "completed")

    def rows(self, table: Any, session: str) -> int:
        return len(
            self.successResultOf(
                self.database.read(
                    lambda c: list(c.execute(select(table).where(table.c.session == session)))
                )
            )
        )

    def exists(self, session: str) -> bool:
        query = select(sessions.c.id).where(sessions.c.id == session)
        return bool(self.successResultOf(self.database.read(lambda c: c.execute(query).first())))

    def insert(self, table: Any, **values: Any) -> None:
        query = insert(table).values(**values)
        self.successResultOf(self.database.run(lambda c: c.execute(query).rowcount))

    # Events

    def test_eventsByAge(self) -> None:
        """Of an old session only how it ended stays; of others, and of what runs, all."""
        old = self.over(count=10)
        running = self.run_(prompt="forever")
        self.until(running, "running")
        self.clock.advance(2 * DAY)
        young = self.over()
        before = [self.get(self.events.bounds(one.id)) for one in (running, young)]
        self.once(events=DAY)
        first, last = self.get(self.events.bounds(old.id))
        self.assertEqual(first, last)
        (event,) = self.get(self.events.read(old.id))
        self.assertTrue(event.ends)
        after = [self.get(self.events.bounds(one.id)) for one in (running, young)]
        self.assertEqual(before, after)

    def test_eventsByNumber(self) -> None:
        """Of a session with many the last ones stay, once it has ended."""
        many, few = self.over(count=100), self.over()
        running = self.run_(prompt="forever")
        self.get(self.events.appendMany(running.id, [("log", {"message": "x"})] * 100))
        before = [self.get(self.events.bounds(one.id)) for one in (running, few)]
        self.once(eventsPerSession=40)
        first, last = self.get(self.events.bounds(many.id))
        self.assertEqual(last - first + 1, 40)
        self.assertEqual(self.rows(session_events, many.id), 40)
        self.assertEqual(self.get(self.events.read(many.id))[0].seq, first)
        after = [self.get(self.events.bounds(one.id)) for one in (running, few)]
        self.assertEqual(before, after)

    def test_inPieces(self) -> None:
        """No transaction removes more than a piece, and others come in between."""
        self.patch(module, "PIECE", 10)
        session = self.over(count=100)
        trimmed: list[int] = []
        trim = self.events.trim

        async def watched(session: str, before: int) -> int:
            removed = await trim(session, before)
            trimmed.append(removed)
            return removed

        self.patch(self.events, "trim", watched)
        self.clock.advance(2 * DAY)
        self.once(events=DAY)
        self.assertGreater(len(trimmed), 10)
        self.assertLessEqual(max(trimmed), 10)
        self.assertEqual(self.rows(session_events, session.id), 1)

    def test_manySessions(self) -> None:
        """More sessions than are looked at at once."""
        self.patch(module, "BATCH", 2)
        made = [self.over() for _ in range(5)]
        self.clock.advance(2 * DAY)
        self.once(events=DAY)
        self.assertEqual([self.rows(session_events, one.id) for one in made], [1] * 5)
        self.once(sessions=DAY)
        self.once(sessions=DAY)
        self.assertEqual([self.exists(one.id) for one in made], [False] * 5)

    # Sessions

    def test_sessions(self) -> None:
        """An old session is deleted, its host forgets it, and then nothing of it is left."""
        old = self.over(count=5)
        self.insert(moments, id=newId("mom", 1), session=old.id, at=1.0, label="x", kind="auto")
        running = self.run_(prompt="forever")
        self.until(running, "running")
        self.clock.advance(2 * DAY)
        young = self.over()
        self.once(sessions=DAY)
        self.once(sessions=DAY)
        self.assertNotIn(old.id, self.host._runs)
        self.assertFalse(self.exists(old.id))
        for table in (session_events, moments):
            self.assertEqual(self.rows(table, old.id), 0)
        self.assertTrue(self.exists(running.id))
        self.assertTrue(self.exists(young.id))

    def test_hostAway(self) -> None:
        """A row stays until its host has removed what it had; but not for ever."""
        old = self.over()
        self.executors.remove("host-1")
        self.clock.advance(1.5 * DAY)
        self.once(sessions=DAY)
        self.once(sessions=DAY)
        self.assertTrue(self.exists(old.id))
        self.clock.advance(DAY)
        self.once(sessions=DAY)
        self.assertFalse(self.exists(old.id))

    def test_sandboxes(self) -> None:
        """A sandbox's session that was deleted long ago goes; one that was not stays."""
        made = [
            self.get(self.sessions.create(name="x", tenant="acme", owner="ann")).id
            for _ in range(2)
        ]
        self.get(self.sessions.delete(made[0]))
        self.clock.advance(2 * DAY)
        self.once(sessions=DAY)
        self.assertEqual([self.exists(one) for one in made], [False, True])

    # Webhooks

    def delivery(self, session: str, status: str, ended: float | None) -> str:
        made = newId("whd", 1)
        self.insert(
            webhook_deliveries,
            id=made,
            tenant="acme",
            session=session,
            seq=1,
            url="https://a.example/",
            body="{}",
            attempts=1,
            status=status,
            created=0.0,
            ended=ended,
        )
        return made

    def test_deliveries(self) -> None:
        """What is over goes, what waits stays; and so does a 410 while its session runs."""
        self.patch(module, "BATCH", 2)
        old, now = self.wallClock() - 2 * DAY, self.wallClock()
        over, running = self.over(), self.run_(prompt="forever")
        for _ in range(5):
            self.delivery(over.id, "delivered", old)
        self.delivery(over.id, "gone", old)
        kept = {
            self.delivery(over.id, "failed", now),
            self.delivery(over.id, "pending", None),
            self.delivery(running.id, "gone", old),
        }
        self.once(deliveries=DAY)
        found = self.successResultOf(
            self.database.read(lambda c: set(c.execute(select(webhook_deliveries.c.id)).scalars()))
        )
        self.assertEqual(found, kept)

    def test_secrets(self) -> None:
        """Secrets that were retired long ago."""
        secrets = WebhookSecrets(self.database, self.wallClock)
        record, _ = self.get(secrets.create("acme"))
        kept, _ = self.get(secrets.create("acme"))
        self.get(secrets.retire("acme", record.id))
        self.clock.advance(2 * DAY)
        self.once(deliveries=DAY)
        self.assertEqual([one.id for one in self.get(secrets.list("acme"))], [kept.id])

    # Again and again

    def test_off(self) -> None:
        """0 is for ever."""
        session = self.over(count=5)
        self.clock.advance(1000 * DAY)
        before = self.get(self.events.bounds(session.id))
        self.once()
        self.assertEqual(self.get(self.events.bounds(session.id)), before)
        self.assertTrue(self.exists(session.id))

    def test_everyInterval(self) -> None:
        """A pass at the beginning and then at each interval, through failures."""
        retention = self.keep(interval=100.0)
        retention.begin()
        self.addCleanup(retention.stop)
        self.clock.advance(1)
        self.assertEqual(self.swept, 1)
        self.lose()
        self.clock.advance(100)
        self.find()
        self.clock.advance(100)
        self.assertEqual(self.swept, 3)
        retention.setSettings(RetentionSettings(interval=1000.0))
        self.clock.advance(500)
        self.assertEqual(self.swept, 3)
        retention.stop()
        self.clock.advance(5000)
        self.assertEqual(self.swept, 3)


class RetentionPostgreSQLTests(OnPostgreSQL, RetentionTests):
    """The same."""
