"""The flags of C{twistd helix-revdial-server}."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.control_plane_tap import Options


class OptionsTests(SynchronousTestCase):
    """L{Options}."""

    def ends(self, *flags: str) -> object:
        """With what reading these flags ends the program; a text goes to standard error."""
        self.output = io.StringIO()
        self.patch(sys, "stdout", self.output)
        with self.assertRaises(SystemExit) as caught:
            Options().parseOptions(list(flags))
        return caught.exception.code

    def test_checkConfig(self) -> None:
        """Settings that would make a server are fine, and nothing is started."""
        path = Path(self.mktemp())
        path.write_text("[tunnel]\ngrace_period = 3\n")
        self.assertEqual(self.ends("--config", str(path), "--check-config"), 0)
        self.assertEqual(self.output.getvalue(), f"{path}: ok\n")

    def test_oneLineForAMistake(self) -> None:
        """A mistake in the settings is one line that names it, whether checked or started."""
        path = Path(self.mktemp())
        path.write_text("[tunnel]\n\ngrace = 3\n")
        for flags, words in (
            (("--config", str(path)), f"{path}, line 3: tunnel.grace: unknown key 'grace'"),
            (("--listen", "bogus:1"), "listen endpoint 'bogus:1': Unknown endpoint type: 'bogus'"),
            (("--set", "server.database=mysql://u:hush@x/y"), "server.database: a database's URL"),
        ):
            for checking in ((), ("--check-config",)):
                said = self.ends(*flags, *checking)
                self.assertIn(words, str(said))
                self.assertNotIn("\n", str(said))
                self.assertNotIn("hush", str(said))
