"""Tests for L{helix_revdial.api.webhooks}."""

from __future__ import annotations

from typing import Any

import msgspec

from helix_revdial.config import WebhooksSection
from tests.api.harness import now
from tests.api.test_tasks import CONFIG, TaskTestCase, body

PATH = "/api/v1/webhooks/secrets"


class SecretTests(TaskTestCase):
    """Made, listed and retired by administrators."""

    def setUp(self) -> None:
        super().setUp()
        self.root = self.server.user("root", "admin")

    def make(self, **fields: Any) -> Any:
        answer = self.server.post(PATH, self.root, fields)
        self.assertEqual(answer.status, 201, answer.body)
        self.assertEqual(answer.headers["cache-control"], "no-store")
        return answer.json()

    def test_life(self) -> None:
        """The secret is told once."""
        made = self.make()
        self.assertTrue(made["secret"].startswith("whsec_"))
        listed = self.server.get(PATH, self.root)
        self.assertNotIn(made["secret"], listed.body.decode())
        (item,) = listed.json()["items"]
        self.assertEqual(item, {"id": made["id"], "createdAt": made["createdAt"]})
        path = f"{PATH}/{made['id']}"
        self.assertEqual(self.server.delete(path, self.root).status, 204)
        self.assertIn("retiredAt", self.server.get(PATH, self.root).json()["items"][0])
        self.assertEqual(self.server.delete(PATH + "/whs_no", self.root).status, 404)

    def test_rotated(self) -> None:
        """One takes the place of the others, after a while."""
        first = self.make()
        self.make(retireOthersIn=3600)
        items = {one["id"]: one for one in self.server.get(PATH, self.root).json()["items"]}
        self.assertIn("retiredAt", items[first["id"]])
        self.assertEqual(self.server.post(PATH, self.root, {"retireOthersIn": -1}).status, 400)

    def test_limit(self) -> None:
        """So many are live."""
        for _ in range(5):
            self.make()
        answer = self.server.post(PATH, self.root, {})
        self.assertEqual((answer.status, answer.json()["code"]), (409, "too-many-secrets"))

    def test_whoMay(self) -> None:
        """Administrators, of the tenant."""
        made = self.make()
        other = self.server.user("root", "admin", "other")
        path = f"{PATH}/{made['id']}"
        for token, status in ((None, 401), (self.ann, 403)):
            self.assertEqual(self.server.post(PATH, token, {}).status, status)
            self.assertEqual(self.server.get(PATH, token).status, status)
            self.assertEqual(self.server.delete(path, token).status, status)
        self.assertEqual(self.server.get(PATH, other).json()["items"], [])
        self.assertEqual(self.server.delete(path, other).status, 404)

    def test_notToldTwice(self) -> None:
        """Neither to a repetition, nor by the audit log, nor by what is kept."""
        headers = {"Idempotency-Key": "k1"}
        made = self.server.ask("POST", PATH, self.root, {}, headers)
        again = self.server.ask("POST", PATH, self.root, {}, headers)
        self.assertEqual((made.status, again.status), (201, 409))
        secret = made.json()["secret"]
        self.assertNotIn(secret, again.body.decode())
        for table in ("idempotency", "audit"):
            kept = now(
                self.server.database.read(
                    lambda c, table=table: str(list(c.exec_driver_sql(f"SELECT * FROM {table}")))  # type: ignore[misc]
                )
            )
            self.assertNotIn(secret, kept)
        self.assertIn("webhook-secret-created", [one.event for one in self.server.events()])


class DeliveryTests(TaskTestCase):
    """What a session's webhooks are told."""

    config = msgspec.structs.replace(CONFIG, webhooks=WebhooksSection(allow=("10.0.0.0/8",)))

    def test_listed(self) -> None:
        """By its owner, with the newest first, and nothing secret in a URL."""
        hook = {"event": "session.*", "url": "https://a.example/x?token=hunter22"}
        session = self.task(webhooks=[hook])
        self.until(session, "completed")
        path = f"/api/v1/sessions/{session}/webhooks"
        answer = self.server.get(path + "?perPage=100", self.ann)
        self.assertEqual(answer.status, 200, answer.body)
        told = answer.json()
        names = [one["event"] for one in told["items"]]
        self.assertEqual((names[0], names[-1]), ("session.completed", "session.queued"))
        self.assertEqual(told["total"], len(names))
        self.assertNotIn("hunter22", answer.body.decode())
        first = told["items"][-1]
        self.assertEqual((first["status"], first["attempts"]), ("pending", 0))
        self.assertEqual(self.server.get(path + "?perPage=1", self.ann).json()["nextPage"], "2")
        for token, status in (
            (None, 401),
            (self.server.user("bob"), 403),
            (self.server.user("root", "admin"), 200),
            (self.server.user("ann", tenant="other"), 404),
        ):
            self.assertEqual(self.server.get(path, token).status, status)

    def test_refused(self) -> None:
        """F4: a task cannot name what is not public, nor an event that is none."""
        for hook, field in (
            ({"event": "session.completed", "url": "http://127.0.0.1/"}, "url"),
            ({"event": "session.completed", "url": "http://localhost:80/"}, "url"),
            ({"event": "session.completed", "url": "http://169.254.169.254/"}, "url"),
            ({"event": "session.completed", "url": "https://u:p@a.example/"}, "url"),
            ({"event": "session.complete", "url": "https://a.example/"}, "event"),
            ({"event": "session.log", "url": "https://a.example/"}, "event"),
        ):
            answer = self.server.post("/api/v1/tasks", self.ann, body(webhooks=[hook]))
            self.assertEqual(answer.status, 400, hook)
            self.assertEqual(set(answer.json()["errors"]), {f"webhooks[0].{field}"})
        self.task(webhooks=[{"event": "session.completed", "url": "http://10.1.2.3/"}])
