"""C{POST /api/v1/admin/reload}."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.config import ConfigError
from helix_revdial.reload import Reloaded, Unreloadable

from .harness import Server

PATH = "/api/v1/admin/reload"


class ReloadTests(SynchronousTestCase):
    """An administrator asks."""

    def setUp(self) -> None:
        self.server = Server()
        self.asked: list[str] = []
        self.outcome: Reloaded | Exception = Reloaded(("tunnel.grace_period",))

        async def reload(by: str) -> Reloaded:
            self.asked.append(by)
            if isinstance(self.outcome, Exception):
                raise self.outcome
            return self.outcome

        self.server.services.reload = reload

    def test_reloads(self) -> None:
        """What has changed comes back, and is in the audit log with who asked."""
        answer = self.server.ask("POST", PATH, self.server.user(role="admin"))
        self.assertEqual(
            (answer.status, answer.json()), (200, {"changed": ["tunnel.grace_period"]})
        )
        (entry,) = [entry for entry in self.server.events() if entry.event == "reload"]
        self.assertEqual(entry.subject, self.asked[0])
        self.assertTrue(self.asked[0].startswith("tok_"))

    def test_refused(self) -> None:
        """400 for wrong settings, 409 for what a running server cannot; with the sentence."""
        for error, status, code in (
            (ConfigError("server.toml, line 3: unknown key"), 400, "bad-settings"),
            (Unreloadable("server.database cannot change"), 409, "needs-restart"),
        ):
            self.outcome = error
            answer = self.server.ask("POST", PATH, self.server.user(role="admin"))
            self.assertEqual((answer.status, answer.json()["code"]), (status, code))
            self.assertEqual(answer.detail, f"Nothing was changed. {error}")
        self.assertEqual([e for e in self.server.events() if e.event == "reload"], [])

    def test_administratorsOnly(self) -> None:
        """Nobody else's business."""
        for token, status in ((None, 401), (self.server.user(), 403)):
            self.assertEqual(self.server.ask("POST", PATH, token).status, status)
        self.assertEqual(self.asked, [])

    def test_noServer(self) -> None:
        """A server that cannot read its settings again says so."""
        answer = Server()
        found = answer.ask("POST", PATH, answer.user(role="admin"))
        self.assertEqual(found.status, 409)
