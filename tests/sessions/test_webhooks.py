"""Tests for L{helix_revdial.sessions.webhooks}."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred

from helix_revdial.sessions import webhooks as module
from helix_revdial.sessions.events import Event
from helix_revdial.sessions.records import Session
from helix_revdial.sessions.webhook_calls import Answer, CallFailed, CallSettings
from helix_revdial.sessions.webhook_outbox import Delivery, Outbox
from helix_revdial.sessions.webhook_secrets import WebhookSecrets, keyOf, signatureOf
from helix_revdial.sessions.webhooks import Webhooks, WebhookSettings
from tests.sessions.worlds import SessionTestCase, task
from tests.storage.postgresql import OnPostgreSQL

DONE = {"event": "session.completed", "url": "https://a.example/hook"}
ALL = {"event": "session.*", "url": "https://a.example/hook"}


def render(event: Event) -> dict[str, Any]:
    return {"type": event.type, "ts": "now", "seq": event.seq, **event.data}


@dataclass
class Called:
    """One call that was made."""

    url: str
    headers: Mapping[str, str]
    body: bytes
    answer: Deferred[Answer]

    def document(self) -> Any:
        return json.loads(self.body)


class World:
    """
    The other servers.

    @ivar called: every call.
    @ivar says: what is answered at once; C{None}: nothing yet.
    """

    def __init__(self) -> None:
        self.settings = CallSettings()
        self.called: list[Called] = []
        self.says: Answer | CallFailed | None = Answer(200)
        self.sayOf: dict[str, Answer | CallFailed | None] = {}

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        call = Called(url, headers, body, Deferred())
        self.called.append(call)
        says = self.sayOf.get(url, self.says)
        if isinstance(says, CallFailed):
            raise says
        return await call.answer if says is None else says


class WebhookTests(SessionTestCase):
    """Sent, tried again, given up."""

    settings = WebhookSettings(giveUpAfter=86_400, atOnce=16, perTarget=2)

    def setUp(self) -> None:
        super().setUp()
        self.world = World()
        self.outbox = Outbox(self.database, self.wallClock, self.events, render)
        self.secrets = WebhookSecrets(self.database, self.wallClock)
        self.webhooks = self.begin()

    def begin(self) -> Webhooks:
        """A server begins to send."""
        webhooks = Webhooks(
            self.database,
            self.clock,
            self.wallClock,
            self.events,
            self.world,  # type: ignore[arg-type]
            self.settings,
            spread=lambda: 0.5,
        )
        webhooks.begin()
        self.addCleanup(lambda: self.get(webhooks.stop()))
        return webhooks

    def make(self, *hooks: dict[str, str], tenant: str = "acme") -> Session:
        return self.get(
            self.sessions.createTask(task(webhooks=list(hooks)), tenant=tenant, owner="ann")
        )

    def fail_(self, session: Session) -> None:
        self.get(self.sessions.change(session.id, "broke"))

    def deliveries(self, session: Session) -> list[Delivery]:
        items, total = self.get(self.outbox.list(session.id, perPage=200))
        self.assertEqual(len(items), min(total, 200))
        return items

    def the(self, session: Session) -> Delivery:
        (one,) = self.deliveries(session)
        return one

    def event(self, session: Session, *types: str) -> None:
        """Events of these types."""
        self.get(self.events.appendMany(session.id, [(kind, {}) for kind in types]))

    # What is told

    def test_told(self) -> None:
        """An event that was asked for is told, and no other one."""
        session = self.make({"event": "session.failed", "url": "https://a.example/hook"})
        self.assertEqual(self.world.called, [])
        self.fail_(session)
        (call,) = self.world.called
        self.assertEqual(call.url, "https://a.example/hook")
        told = call.document()
        self.assertEqual((told["type"], told["timestamp"]), ("session.failed", "now"))
        self.assertEqual(told["data"]["status"], "failed")
        self.assertEqual(told["data"]["tenantId"], "acme")
        one = self.the(session)
        self.assertEqual((one.status, one.attempts, one.event), ("delivered", 1, "session.failed"))
        self.assertEqual(call.headers["webhook-id"], one.id)

    def test_everything(self) -> None:
        """C{session.*} is told of all, and who has two that fit is told once."""
        failed = {"event": "session.failed", "url": ALL["url"]}
        session = self.make(ALL, failed, {"event": "*", "url": "https://b.example/"})
        self.event(session, "log", "delivery")
        self.fail_(session)
        told = [(one.url[8], one.document()["type"]) for one in self.world.called]
        names = ["session.queued", "session.delivery", "session.failed"]
        self.assertEqual(sorted(told), sorted((u, n) for u in "ab" for n in names))

    def test_redacted(self) -> None:
        """F1: what is told has been redacted."""
        session = self.make(ALL)
        secret = "ghp_" + "a1" * 20
        self.get(self.events.append(session.id, "delivery", {"url": f"https://x/{secret}"}))
        self.assertEqual(len(self.world.called), 2)
        self.assertNotIn(secret, str(self.world.called))

    def test_signed(self) -> None:
        """Each live secret signs the id, the time of sending and the body."""
        _, first = self.get(self.secrets.create("acme"))
        self.clock.advance(1)
        _, second = self.get(self.secrets.create("acme"))
        self.get(self.secrets.create("other"))
        self.make(ALL)
        (call,) = self.world.called
        headers = call.headers
        seconds = int(headers["webhook-timestamp"])
        self.assertEqual(seconds, int(self.wallClock()))
        self.assertEqual(
            headers["webhook-signature"],
            signatureOf([second, first], headers["webhook-id"], seconds, call.body),
        )
        signed = f"{headers['webhook-id']}.{seconds}.".encode() + call.body
        mac = hmac.new(keyOf(second), signed, hashlib.sha256).digest()
        self.assertIn(base64.b64encode(mac).decode(), headers["webhook-signature"])

    def test_unsigned(self) -> None:
        """A tenant without a secret has no signature."""
        self.make(ALL)
        self.assertNotIn("webhook-signature", self.world.called[0].headers)

    # What is not lost

    def test_killedBeforeItIsSent(self) -> None:
        """A server that is killed after the event leaves it to the next one."""
        self.get(self.webhooks.stop())
        session = self.make(ALL)
        self.assertEqual(self.world.called, [])
        self.assertEqual(self.the(session).status, "pending")
        self.begin()
        self.assertEqual(len(self.world.called), 1)
        self.assertEqual(self.the(session).status, "delivered")

    def test_killedWhileItIsSent(self) -> None:
        """What was under way is sent again, with the same id."""
        self.world.says = None
        session = self.make(ALL)
        self.assertEqual(self.the(session).status, "sending")
        # The process is gone, and with it whoever would note the answer.
        self.webhooks._stopped = True
        self.world.says = Answer(200)
        self.begin()
        self.clock.advance(60)
        first, second = self.world.called
        self.assertEqual(first.headers["webhook-id"], second.headers["webhook-id"])
        self.assertEqual(self.the(session).status, "delivered")
        first.answer.callback(Answer(500))
        self.assertEqual(self.the(session).status, "delivered")

    def test_stopped(self) -> None:
        """A server that stops gives back what is under way."""
        self.world.says = None
        session = self.make(ALL)
        self.get(self.webhooks.stop())
        self.assertEqual(self.the(session).status, "pending")
        self.assertEqual(self.webhooks.sending, 0)

    def test_databaseLost(self) -> None:
        """What cannot be noted is sent again; nothing stops for good."""
        self.world.says = None
        session = self.make(ALL)
        self.lose()
        self.world.called[0].answer.callback(Answer(200))
        self.clock.advance(module.POLL)
        self.find()
        self.world.says = Answer(200)
        self.clock.pump([module.POLL] * 10)
        self.assertEqual(len(self.world.called), 2)
        self.assertEqual(self.the(session).status, "delivered")

    # What fails

    def test_triedAgain(self) -> None:
        """Less and less often, until it is given up; never again then."""
        self.world.says = Answer(500)
        session = self.make(ALL)
        self.assertEqual(self.the(session).lastError, "the receiver answered with 500")
        for _ in range(30):
            self.clock.pump([3600.0])
            self.clock.pump([module.POLL])
        one = self.the(session)
        self.assertEqual((one.status, one.nextAttempt), ("failed", None))
        assert one.ended is not None
        self.assertLess(one.ended - one.created, 86_400 + 3600)
        calls = len(self.world.called)
        self.assertGreater(calls, 20)
        self.clock.pump([3600.0] * 5)
        self.assertEqual(len(self.world.called), calls)

    def test_pauses(self) -> None:
        """The pauses double."""
        self.world.says = CallFailed("down")
        session = self.make(ALL)
        pauses = []
        for _ in range(6):
            one = self.the(session)
            assert one.nextAttempt is not None
            pauses.append(one.nextAttempt - self.wallClock())
            count = len(self.world.called)
            while len(self.world.called) == count:
                self.clock.advance(module.POLL)
        self.assertEqual([round(pause) for pause in pauses], [5, 10, 20, 40, 80, 160])

    def test_askedToWait(self) -> None:
        """A receiver that says when to come back is not asked before."""
        self.world.says = Answer(429, 600.0)
        session = self.make(ALL)
        one = self.the(session)
        self.assertEqual(one.nextAttempt, self.wallClock() + 600)

    def test_redirect(self) -> None:
        """A redirect is a failure that says so."""
        self.world.says = Answer(302)
        self.assertIn("redirects are not followed", self.the(self.make(ALL)).lastError or "")

    def test_gone(self) -> None:
        """410: the receiver is told no more of this session, of others it is."""
        self.world.says = Answer(500)
        session = self.make(ALL)
        self.event(session, "moment")
        self.world.says = Answer(410)
        while not any(one.status == "gone" for one in self.deliveries(session)):
            self.clock.advance(module.POLL)
        self.assertEqual({one.status for one in self.deliveries(session)}, {"gone"})
        self.world.says = Answer(200)
        calls = len(self.world.called)
        self.fail_(session)
        self.clock.pump([60.0] * 10)
        self.assertEqual(len(self.world.called), calls)
        self.make(ALL)
        self.assertEqual(len(self.world.called), calls + 1)

    def test_recovered(self) -> None:
        """A receiver that is back gets all that waited."""
        self.world.says = CallFailed("down")
        session = self.make(ALL)
        self.event(session, *["moment"] * 20)
        self.clock.pump([module.POLL] * 30)
        self.world.says = Answer(200)
        self.clock.pump([module.POLL] * 200)
        self.assertEqual({one.status for one in self.deliveries(session)}, {"delivered"})
        self.assertEqual(len(self.deliveries(session)), 21)

    # Who stops nobody

    def test_deadReceiver(self) -> None:
        """One that hangs takes its share, then one place; others are told at once."""
        dead = {"event": "session.*", "url": "https://dead.example/"}
        self.world.sayOf["https://dead.example/"] = None
        for _ in range(10):
            self.make(dead)
        self.assertEqual(len(self.world.called), 2)
        self.make(ALL)
        self.assertEqual(self.world.called[-1].url, ALL["url"])
        for call in self.world.called[:2]:
            call.answer.errback(CallFailed("nothing came"))
        self.assertEqual(self.webhooks.sending, 0)
        self.clock.advance(60)
        self.assertEqual(self.webhooks.sending, 1)
        self.make(ALL)
        self.assertEqual(self.world.called[-1].url, ALL["url"])

    def test_manyDeadReceivers(self) -> None:
        """A tenant with many of them takes its share; another tenant is told at once."""
        self.world.says = None
        hooks = [{"event": "*", "url": f"https://dead{n}.example/"} for n in range(10)]
        for _ in range(20):
            self.make(*hooks)
        self.assertEqual(self.webhooks.sending, self.settings.perTenant)
        self.make(ALL, tenant="other")
        self.assertEqual(self.world.called[-1].url, ALL["url"])

    def test_sameServerOfAnotherTenant(self) -> None:
        """A tenant's failures do not hold back what another tells the same server."""
        self.world.sayOf["https://a.example/wrong"] = Answer(500)
        self.make({"event": "*", "url": "https://a.example/wrong"})
        self.make(ALL, tenant="other")
        self.assertEqual(self.world.called[-1].url, ALL["url"])

    def test_atOnce(self) -> None:
        """There are so many at one time in all, and each end makes room."""
        self.world.says = None
        for number in range(20):
            self.make(ALL, tenant=f"t{number}")
        self.assertEqual(self.webhooks.sending, self.settings.atOnce)
        self.world.called[0].answer.callback(Answer(200))
        self.assertEqual(self.webhooks.sending, self.settings.atOnce)
        self.assertEqual(len(self.world.called), self.settings.atOnce + 1)

    def test_neverItsTurn(self) -> None:
        """What waited too long behind others is given up, too."""
        self.world.says = CallFailed("down")
        session = self.make(ALL)
        self.event(session, *["moment"] * 30)
        for _ in range(26):
            self.clock.advance(3600)
        self.clock.pump([60.0] * 3)
        self.assertEqual({one.status for one in self.deliveries(session)}, {"failed"})


class WebhookPostgreSQLTests(OnPostgreSQL, WebhookTests):
    """The same; several servers share what is due."""

    def test_twoServers(self) -> None:
        """Two servers send each delivery once."""
        self.world.says = None
        other = self.begin()
        for number in range(40):
            self.make(ALL, tenant=f"t{number}")
        other.wake()
        self.assertEqual(len(self.world.called), 32)
        ids = {call.headers["webhook-id"] for call in self.world.called}
        self.assertEqual(len(ids), 32)
