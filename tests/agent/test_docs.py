"""What the agent's documentation and example files say is what the agent does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import helix_revdial
from helix_revdial.agent import reconnect, service, settings, targets
from helix_revdial.agent.vocabulary import SETTINGS
from helix_revdial.revdial import listener
from tests.needs import needsProgram

ROOT = Path(helix_revdial.__file__).parent.parent


def settingsTable() -> str:
    """The table of settings for the documentation."""
    rows = ["| flag | variable | meaning |", "|---|---|---|"]
    for row in SETTINGS:
        flag = f"`--{row.flag} {row.value}`" if row.flag else ""
        variable = f"`{row.variable}`" if row.variable else ""
        rows.append(f"| {flag} | {variable} | {row.meaning} |")
    return "\n".join(rows)


class DocumentationTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.text = (ROOT / "docs" / "agent.md").read_text(encoding="utf-8")

    def test_settings(self) -> None:
        """The page's table is the agent's own; where not, the test prints what it should be."""
        written = self.text.partition("<!-- settings -->\n")[2].partition("\n<!-- /settings -->")[0]
        self.assertEqual(written, settingsTable(), f"write:\n{settingsTable()}")

    def test_numbers(self) -> None:
        """The limits that the page states are those of the code."""
        text = " ".join(self.text.split())
        for words in (
            f"A service has {targets.CONNECT_TIMEOUT:g} seconds to accept",
            f"At most {settings.MAX_TARGETS}.",
            f"doubles with each failure and stops at {reconnect.MAX_DELAY:g} seconds",
            f"has held for {reconnect.STABLE_AFTER:g} seconds",
            f"waits at least {reconnect.SUPERSEDED_DELAY:g} seconds",
            f"given up after {service.ATTEMPT_LIMIT:g} seconds",
            f"for up to {service.DRAIN_LIMIT:g} seconds",
            f"from the server for {listener.SILENCE:g} seconds",
        ):
            self.assertIn(words, text)


class ExampleTests(SynchronousTestCase):
    def test_environment(self) -> None:
        """
        The example environment makes an agent once it has a token, and names
        variables of the agent only, the commented ones too.
        """
        lines = (ROOT / "etc" / "agent.env").read_text(encoding="utf-8").splitlines()
        pairs = [
            line.removeprefix("#").partition("=")
            for line in lines
            if "=" in line and " " not in line.partition("=")[0]
        ]
        self.assertLessEqual({name for name, _, _ in pairs}, {row.variable for row in SETTINGS})
        given = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")
        found = settings.readSettings({}, given | {"HELIX_AGENT_TOKEN_FILE": "/x"})
        self.assertEqual(found.key, "wolf-gpu1")

    @needsProgram("systemd-analyze", package="systemd")
    def test_unit(self) -> None:
        """systemd finds no fault with the unit, but for where twistd is on this machine."""
        unit = (ROOT / "systemd" / "helix-revdial-agent.service").read_text(encoding="utf-8")
        path = Path(self.mktemp()).absolute()
        path.mkdir()
        copy = path / "helix-revdial-agent.service"
        copy.write_text(unit.replace("/opt/helix-revdial/bin/twistd", sys.executable))
        program = shutil.which("systemd-analyze")
        assert program is not None
        done = subprocess.run(
            [program, "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=30
        )
        self.assertEqual((done.stdout, done.stderr, done.returncode), ("", "", 0))

    def test_unitStopsInTime(self) -> None:
        """systemd waits longer for the agent than the agent for its streams and its server."""
        unit = (ROOT / "systemd" / "helix-revdial-agent.service").read_text(encoding="utf-8")
        limit = float(unit.partition("TimeoutStopSec=")[2].split()[0])
        self.assertGreater(limit, service.DRAIN_LIMIT + service.CLOSE_LIMIT + 5)
