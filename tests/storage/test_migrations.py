"""Tests for L{helix_revdial.storage.schema} and the migrations."""

from __future__ import annotations

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import insert, inspect, text
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.storage.database import HEAD, currentRevision, newEngine, parseURL, transaction
from helix_revdial.storage.schema import configuration, upgrade
from helix_revdial.storage.tables import counters, metadata
from tests.storage.databases import newURL
from tests.storage.postgresql import OnPostgreSQL


class UpgradeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.url = newURL(self)
        self.engine = newEngine(parseURL(self.url), 1)
        self.addCleanup(self.engine.dispose)

    def test_headIsTheNewest(self) -> None:
        """The revision that the code wants is the newest migration, the only one."""
        self.assertEqual(ScriptDirectory.from_config(configuration()).get_heads(), [HEAD])

    def test_upgradeGivesTheTables(self) -> None:
        """The migrations end at what L{helix_revdial.storage.tables} says."""
        self.assertEqual(upgrade(self.url), (None, HEAD))
        with self.engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "compare_server_default": True}
            )
            difference = compare_metadata(context, metadata)
        self.assertEqual(difference, [])

    def test_again(self) -> None:
        """Upgrading what is new already changes nothing, and keeps what is in it."""
        upgrade(self.url)
        with self.engine.begin() as connection:
            connection.execute(insert(counters).values(name="n", value=7))
        self.assertEqual(upgrade(self.url), (HEAD, HEAD))
        with self.engine.begin() as connection:
            self.assertEqual(connection.execute(text("SELECT value FROM counters")).scalar(), 7)

    def test_newerSchemaIsLeftAlone(self) -> None:
        """A schema that a newer version made is refused, with what to do."""
        upgrade(self.url)
        with self.engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with self.assertRaises(ValueError) as raised:
            upgrade(self.url)
        self.assertIn("9999 is newer", str(raised.exception))
        self.assertEqual(currentRevision(self.url), "9999")

    def test_wholeOrNotAtAll(self) -> None:
        """An upgrade that fails at its end leaves the schema as it was."""
        with self.engine.begin() as connection:
            # The last table is in the way of the migration that makes it.
            connection.execute(text("CREATE TABLE counters (x INTEGER)"))
        with self.assertRaises(Exception) as raised:
            upgrade(self.url)
        self.assertIn("already exists", str(raised.exception))
        self.assertIs(currentRevision(self.url), None)
        self.assertEqual(inspect(self.engine).get_table_names(), ["counters"])

    def test_downgrade(self) -> None:
        """The migrations can be taken back, for those who develop them."""
        upgrade(self.url)
        config = configuration()
        with transaction(self.engine, writing=True) as connection:
            config.attributes["connection"] = connection
            command.downgrade(config, "base")
        self.assertEqual(inspect(self.engine).get_table_names(), ["alembic_version"])


class UpgradePostgreSQLTests(OnPostgreSQL, UpgradeTests):
    """The same on PostgreSQL."""
