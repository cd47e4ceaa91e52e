"""How often somebody may call, over HTTP."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.config import RateLimitsSection, ServerConfig
from tests.api.harness import Server


class RateLimitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = Server(
            ServerConfig(
                rateLimits=RateLimitsSection(userPerSecond=0.5, userBurst=3, tenantPerSecond=0)
            )
        )
        self.token = self.server.user()

    def statuses(self, count: int, token: str | None = None, **headers: str) -> list[int]:
        return [
            self.server.get("/api/v1/sessions", token or self.token, **headers).status
            for _ in range(count)
        ]

    def test_refused(self) -> None:
        """What goes beyond is a 429 that says when to try again, in whole seconds."""
        self.assertEqual(self.statuses(3), [200] * 3)
        answer = self.server.get("/api/v1/sessions", self.token)
        self.assertEqual(answer.status, 429)
        self.assertEqual(answer.headers["retry-after"], "2")
        self.assertEqual(answer.headers["content-type"], "application/problem+json")
        problem = answer.json()
        self.assertEqual(problem["type"], "https://docs.example.com/errors/rate-limited")
        self.assertEqual(problem["status"], 429)
        self.server.clock.advance(2)
        self.assertEqual(self.statuses(2), [200, 429])

    def test_whose(self) -> None:
        """It goes by the user that the token names: no header buys more, no stranger spends it."""
        self.statuses(50, "hlx_nobody")
        for number in range(3):
            self.statuses(1, **{"X-Forwarded-For": f"10.0.0.{number}"})
        self.assertEqual(self.statuses(1, **{"X-Forwarded-For": "10.0.0.99"}), [429])
        self.assertEqual(self.statuses(1, **{"X-Tenant-Id": "other"}), [429])
        self.assertEqual(self.statuses(1, self.server.user()), [429], "another token of hers")
        self.assertEqual(self.statuses(1, self.server.user("bob")), [200])

    def test_health(self) -> None:
        """Health costs nothing."""
        self.statuses(4)
        for path in ("/healthz", "/readyz", "/version", "/api/v1/healthz"):
            self.assertEqual(
                {self.server.get(path, self.token).status for _ in range(20)}, {200}, path
            )

    def test_metrics(self) -> None:
        """Refusals are counted."""
        self.statuses(5)
        self.assertEqual(self.server.load.hit.counts, {"calls_per_user": 2})
