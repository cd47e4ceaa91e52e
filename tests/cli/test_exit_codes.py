"""Why, for scripts."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.cli.edge import CommandError, SettingsError
from helix_revdial.cli.exit_codes import (
    AgentError,
    InteractionNeeded,
    RepositoryError,
    codeOf,
)
from helix_revdial.cli.failures import BadAnswer, Refused, TimedOut, Unreachable
from tests.cli.fake import CommandTestCase, Given, problem


class CodeTests(SynchronousTestCase):
    """Codes of errors."""

    def test_codes(self) -> None:
        """One for each reason (rest.md section 7)."""
        for error, code in (
            (CommandError("x"), 1),
            (RepositoryError("x"), 2),
            (AgentError("x"), 3),
            (Refused(401, "x"), 4),
            (Refused(403, "x"), 4),
            (Unreachable("x"), 5),
            (TimedOut("x"), 5),
            (BadAnswer("x"), 5),
            (Refused(502, "x"), 5),
            (Refused(504, "x"), 5),
            (Refused(429, "x"), 6),
            (Refused(503, "x"), 6),
            (Refused(400, "x"), 7),
            (Refused(422, "x"), 7),
            (Refused(400, "x", fields=("repo.url", "repo.branch")), 2),
            (Refused(400, "x", fields=("agent.type",)), 3),
            (Refused(400, "x", fields=("agent.type", "repo.url")), 7),
            (SettingsError("x"), 8),
            (InteractionNeeded("x"), 10),
            (Refused(404, "x"), 1),
            (Refused(409, "x"), 1),
            (Refused(500, "x"), 1),
        ):
            self.assertEqual(codeOf(error), code, repr(error))


class FamilyTests(CommandTestCase):
    """Which families have them."""

    def test_newFamiliesOnly(self) -> None:
        """task, session and remote tell reasons; what was there before is as it was."""
        self.api.on("GET", "/api/v1/agents", problem(403, "no"))
        self.assertEqual(self.helix("remote", "agents").code, 4)
        self.api.on("GET", "/api/v1/sessions", problem(403, "no"))
        self.assertEqual(self.helix("session", "list").code, 4)
        self.assertEqual(self.helix("sessions", "list").code, 1)
        self.assertEqual(self.helix("session", "bogus").code, 7)
        self.assertEqual(self.helix("session", "list", "--limit", "x").code, 7)
        self.assertEqual(self.helix("sessions", "bogus").code, 2)
        self.assertEqual(self.helix("session").code, 2)

    def test_help(self) -> None:
        """Help is no error."""
        for words in (("task", "--help"), ("session", "-h"), ("session", "logs", "-h")):
            ran = self.helix(*words)
            self.assertEqual((ran.code, ran.err), (0, ""))
        self.api.on("GET", "/api/v1/agents", Given({"items": []}))
        self.assertEqual(self.helix("remote", "agents").code, 0)
