"""What the agent's documentation and example files say is what the agent does."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import helix_revdial
from helix_revdial.agent import (
    network_settings,
    proxy,
    reconnect,
    servers,
    settings,
    targets,
    vocabulary,
)
from helix_revdial.agent.vocabulary import SETTINGS
from helix_revdial.revdial import client, listener

ROOT = Path(helix_revdial.__file__).parent.parent


def settingsTable() -> str:
    """The table of settings for the documentation."""
    rows = ["| flag | variable | meaning |", "|---|---|---|"]
    for row in SETTINGS:
        flag = f"`--{row.flag} {row.value}".rstrip() + "`" if row.flag else ""
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
            f"given up after {servers.SERVER_LIMIT:g} seconds",
            f"for up to `--drain` seconds ({vocabulary.DRAIN:g})",
            f"grow to {reconnect.LEAVING_DELAY:g} seconds only, for the next "
            f"{reconnect.LEAVING_ATTEMPTS} attempts",
            f"from the server for {listener.SILENCE:g} seconds",
        ):
            self.assertIn(words, text)


class NetworkDocumentationTests(SynchronousTestCase):
    """C{docs/network.md}."""

    def setUp(self) -> None:
        self.text = " ".join((ROOT / "docs" / "network.md").read_text(encoding="utf-8").split())

    def test_numbers(self) -> None:
        """The limits that the page states are those of the code."""
        self.assertEqual(client.RAW_AGAIN, 3600, "the page says an hour")
        for words in (
            f"The proxy has {proxy.PROXY_TIMEOUT:g} seconds",
            f"at most {servers.MAX_SERVERS}.",
            f"Each address has {servers.SERVER_LIMIT:g} seconds",
            f"up to {network_settings.MAX_PINS} times",
            f"silence tells: {listener.SILENCE:g} seconds",
            f"a sign of life every {listener.PING:g} seconds",
        ):
            self.assertIn(words, self.text)

    def test_files(self) -> None:
        """The files and flags that the page names are there."""
        for name in re.findall(r"etc/[a-z.-]+[a-z]", self.text):
            self.assertTrue((ROOT / name).exists(), name)
        flags = {f"--{row.flag}" for row in SETTINGS}
        self.assertLessEqual(set(re.findall(r"`(--[a-z-]+)", self.text)), flags)


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
