"""C{helix db upgrade}."""

from __future__ import annotations

from pathlib import Path

from tests.cli.fake import CommandTestCase


class UpgradeTests(CommandTestCase):
    """The schema, by the storage's own migrations."""

    def test_createsThenHasNothingToDo(self) -> None:
        """The first run creates the schema, the second says that there is nothing to do."""
        path = Path(self.mktemp()).absolute()
        self.environment = {"HELIX_REVDIAL_SERVER_DATABASE": f"sqlite:///{path}"}
        ran = self.helix("db", "upgrade")
        self.assertEqual((ran.code, ran.err), (0, ""))
        self.assertRegex(ran.out, r"^Created the schema at revision \w+\.\n$")
        ran = self.helix("db", "upgrade", "--url", f"sqlite:///{path}")
        self.assertRegex(ran.out, r"^The database is at revision \w+ already\.\n$")

    def test_noDatabaseNamed(self) -> None:
        """Which database is a usage error, not a guess."""
        self.environment = {"HELIX_REVDIAL_SERVER_DATABASE": ""}
        ran = self.helix("db", "upgrade")
        self.assertEqual(ran.code, 2)
        self.assertIn("Set HELIX_REVDIAL_SERVER_DATABASE, or give --config or --url", ran.err)

    def test_config(self) -> None:
        """The server's own file says which database; what is wrong in it is named."""
        state, path = Path(self.mktemp()).absolute(), Path(self.mktemp())
        state.mkdir()
        path.write_text(f'[server]\nstate_directory = "{state}"\n', encoding="utf-8")
        ran = self.helix("db", "upgrade", "--config", str(path))
        self.assertEqual((ran.code, ran.err), (0, ""))
        self.assertTrue((state / "helix.sqlite").exists())
        ran = self.helix("db", "upgrade", "--config", str(path), "--url", "sqlite://")
        self.assertEqual(ran.code, 2)
        path.write_text("[server]\nstate = 'x'\n", encoding="utf-8")
        ran = self.helix("db", "upgrade", "--config", str(path))
        self.assertEqual(ran.code, 2)
        self.assertIn("line 2", ran.err)

    def test_unusable(self) -> None:
        """Other databases are refused, those that cannot be opened fail; no password is shown."""
        for url, code in (
            ("mysql://u:hl-secret@h/d", 2),
            ("nonsense", 2),
            ("sqlite:////missing/directory/x.sqlite", 1),
        ):
            ran = self.helix("db", "upgrade", "--url", url)
            self.assertEqual((ran.code, ran.out), (code, ""), ran.err)
            self.assertTrue(ran.err.startswith("helix: db upgrade: "), ran.err)
            self.assertEqual(ran.err.count("\n"), 1)
            self.assertNotIn("hl-secret", ran.err)
