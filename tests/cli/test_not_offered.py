"""What C{helix} does not do, and says so."""

from __future__ import annotations

from helix_revdial.cli.not_offered import GLOBAL, TASK
from tests.cli.fake import CommandTestCase


class NotOfferedTests(CommandTestCase):
    """Flags and commands that other programs of this kind have."""

    def test_refused(self) -> None:
        """Each is refused in one line that says what there is instead; nothing is asked."""
        for flag, instead in TASK.items():
            for words in ((flag, "x"), (f"{flag}=x",), (flag,)):
                ran = self.helix("task", "-p", "do it", "--agent", "mock", *words)
                self.assertEqual((ran.code, ran.out), (7, ""), flag)
                self.assertTrue(
                    ran.err.startswith(f"helix: there is no {flag} here: {instead}"), ran
                )
                self.assertEqual(ran.err.count("\n"), 1)
        for flag, instead in GLOBAL.items():
            ran = self.helix(flag, "x", "session", "list")
            self.assertEqual((ran.code, ran.out), (2, ""), flag)
            self.assertIn(instead, ran.err)
        ran = self.helix("session", "run", "ses_1", "ls", "-la", "--", "x")
        self.assertEqual((ran.code, ran.out), (7, ""))
        self.assertIn("only its agent runs", ran.err)
        self.assertEqual(self.api.asked, [])

    def test_notShown(self) -> None:
        """No help names what is not there."""
        for words in (("task",), ("session",), ()):
            ran = self.helix(*words, "--help")
            self.assertEqual(ran.code, 0)
            for flag in ("--fleet", "--log-level", "--dev-shell", "\n  run "):
                self.assertNotIn(flag, ran.out)
