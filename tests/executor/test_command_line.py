"""Places in a command line are filled in once."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.executor.command_line import (
    MAX_ARGUMENT,
    ArgumentTooLong,
    fillIn,
    takesPrompt,
)


class FillInTests(SynchronousTestCase):
    def test_places(self) -> None:
        """Values and settings stand where their places are, and a word stays a word."""
        values = {"prompt": "do $(id); {workspace} {settings.model}", "workspace": "/w s"}
        settings = {"model": "big one", "fast": True, "n": 3}
        command = ["agent", "--model={settings.model}", "{settings.fast}/{settings.n}", "{prompt}"]
        self.assertEqual(
            fillIn([*command, "{workspace}", "{other}", "{settings.none}", "{}"], values, settings),
            ["agent", "--model=big one", "true/3", values["prompt"], "/w s", "{other}", "", "{}"],
        )

    def test_tooLong(self) -> None:
        """What the system would not take is refused with a sentence, and NUL is replaced."""
        self.assertRaises(ArgumentTooLong, fillIn, ["{a}"], {"a": "x" * (MAX_ARGUMENT + 1)}, {})
        self.assertEqual(fillIn(["{a}"], {"a": "x\0y"}, {}), ["x�y"])

    def test_takesPrompt(self) -> None:
        """Whether the prompt goes to standard input."""
        self.assertTrue(takesPrompt(["a", "--p={prompt}"]))
        self.assertTrue(takesPrompt(["a", "{promptFile}"]))
        self.assertFalse(takesPrompt(["a", "{settings.prompt}", "{workspace}"]))
