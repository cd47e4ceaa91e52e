"""The executor's settings: each key is described, each complaint says where and what."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import helix_revdial
from helix_revdial.executor.layout import MAX_STATE_DIRECTORY, Layout
from helix_revdial.executor.options import Options
from helix_revdial.executor.settings import NAMES, ExecutorSettings, SettingsError, readSettings

FILE = Path(helix_revdial.__file__).parent.parent / "etc" / "executor.toml"


class SettingsTests(SynchronousTestCase):
    def read(self, text: str) -> ExecutorSettings:
        self.path = Path(self.mktemp())
        self.path.write_text(text)
        return readSettings(self.path)

    def complaint(self, text: str) -> str:
        error = self.assertRaises(SettingsError, self.read, text)
        return str(error).replace(str(self.path), "FILE")

    def test_file(self) -> None:
        """The file that is shipped names every key and its default, and can be used."""
        text = FILE.read_text()
        named = re.findall(r"^#([a-z_]+) = ", text, re.MULTILINE)
        self.assertEqual(sorted(named), sorted(NAMES))
        self.assertEqual(readSettings(FILE), ExecutorSettings())
        lines = [line[1:] for line in text.splitlines() if re.match(r"#[a-z_]+ = ", line)]
        optional = ("socket_group", "control_group", "server_url", "ca_file", "python")
        kept = "\n".join(line for line in lines if not line.startswith(optional))
        self.assertEqual(self.read(kept), ExecutorSettings())

    def test_complaints(self) -> None:
        """Every fault is told at once, with its line."""
        self.assertEqual(
            self.complaint('slots = "many"\nslot = 3\n'),
            "FILE, line 1: slots: expected `int`, got `str`\nFILE, line 2: unknown key 'slot'",
        )
        self.assertIn("FILE, line 1: slots: more than max_sessions", self.complaint("slots = 65\n"))
        self.assertIn("write an absolute path", self.complaint('listen = "here"\n'))
        long = "/" + "x" * MAX_STATE_DIRECTORY
        self.assertIn("a unix socket below it", self.complaint(f'state_directory = "{long}"\n'))
        self.assertIn(
            "password_file or key_file", self.complaint('[[credential]]\nurl = "https://x/"\n')
        )
        self.assertIn("FILE: ", self.complaint("=\n"))

    def test_longestPath(self) -> None:
        """A5: the longest state directory that is taken leaves room for the sockets below it."""
        layout = Layout(Path("/" + "x" * (MAX_STATE_DIRECTORY - 1), "sessions", "ses_" + "0" * 26))
        self.assertLessEqual(len(str(layout.control)), 107)
        self.assertLessEqual(len(str(layout.desktop)), 107)

    def test_options(self) -> None:
        """C{--check-config} says ok, or what is wrong in one line, and ends."""
        path = Path(self.mktemp())
        path.write_text("slots = 2\n")
        options = Options()
        self.assertRaises(
            SystemExit, options.parseOptions, ["--config", str(path), "--check-config"]
        )
        options = Options()
        options.parseOptions(["--config", str(path)])
        self.assertEqual(options.settings.slots, 2)
        path.write_text("slots = 0\n")
        error = self.assertRaises(SystemExit, Options().parseOptions, ["--config", str(path)])
        self.assertIn("slots", str(error.code))
