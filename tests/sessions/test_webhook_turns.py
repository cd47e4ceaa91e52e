"""Tests for L{helix_revdial.sessions.webhook_turns}."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.sessions import webhook_turns as module
from helix_revdial.sessions.webhook_turns import LONGEST_PAUSE, Counted, Turns


class TurnTests(SynchronousTestCase):
    """At most three of a tenant at one time, and two at a server."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.turns = Turns(self.clock, lambda: 1.0)

    def closed(self) -> tuple[list[str], list[tuple[str, str]]]:
        return self.turns.closed(perTenant=3, perTarget=2)

    def chosen(self, *asked: tuple[str, str]) -> list[bool]:
        """For each, tenant and server, whether it may be sent beside those before it."""
        counted: Counted = {}
        mayBegin = self.turns.caps(perTenant=3, perTarget=2)
        return [mayBegin(tenant, target, counted) for tenant, target in asked]

    def test_caps(self) -> None:
        """What is chosen together is counted, with what is under way."""
        self.turns.begin("acme", "a")
        self.assertEqual(
            self.chosen(("acme", "a"), ("acme", "a"), ("acme", "b"), ("acme", "c"), ("other", "a")),
            [True, False, True, False, True],
        )

    def test_closed(self) -> None:
        """A server, and a tenant, that has its share is named until one of them ends."""
        first = self.turns.begin("acme", "a")
        self.turns.begin("acme", "a")
        self.assertEqual(self.closed(), ([], [("acme", "a")]))
        self.turns.begin("acme", "b")
        self.assertEqual(self.closed(), (["acme"], [("acme", "a")]))
        self.turns.end("acme", "a", first)
        self.assertEqual(self.closed(), ([], []))

    def test_failed(self) -> None:
        """A server that failed has a pause, then one attempt; once it answers, its share."""
        server = self.turns.begin("acme", "a")
        self.turns.failed(server)
        self.turns.end("acme", "a", server)
        self.assertEqual(self.closed(), ([], [("acme", "a")]))
        self.clock.advance(2)
        self.assertEqual(self.closed(), ([], []))
        self.assertEqual(self.chosen(("acme", "a"), ("acme", "a")), [True, False])
        self.assertIs(self.turns.begin("acme", "a"), server)
        self.turns.answered(server)
        self.assertEqual(self.chosen(("acme", "a"), ("acme", "a")), [True, False])
        self.turns.end("acme", "a", server)
        self.assertEqual(self.chosen(("acme", "a"), ("acme", "a")), [True, True])

    def test_longestPause(self) -> None:
        """However often a server fails, its pause is limited."""
        server = self.turns.begin("acme", "a")
        for _ in range(50):
            self.turns.failed(server)
        self.assertEqual(server.pausedUntil, LONGEST_PAUSE)

    def test_forgotten(self) -> None:
        """What is known of other servers does not grow, nor of tenants."""
        self.patch(module, "MAX_TARGETS", 5)
        for number in range(20):
            server = self.turns.begin("acme", f"h{number}")
            self.turns.failed(server)
            self.turns.end("acme", f"h{number}", server)
        self.assertEqual(len(self.closed()[1]), 5)
        self.assertEqual(self.turns._tenants, {})
