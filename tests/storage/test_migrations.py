"""Tests for L{helix_revdial.storage.schema} and the migrations."""

from __future__ import annotations

from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, Table, insert, inspect, select, text
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.storage.database import HEAD, currentRevision
from helix_revdial.storage.engines import newEngine, parseURL, transaction
from helix_revdial.storage.schema import configuration, upgrade
from helix_revdial.storage.tables import counters, metadata
from tests.storage.databases import newURL
from tests.storage.postgresql import OnPostgreSQL

_VALUES: dict[type, Any] = {str: "x", bytes: b"x", dict: {"a": 1}}


def _row(table: Table) -> dict[str, Any]:
    """Something for each column that must have it."""
    return {
        column.name: _VALUES.get(column.type.python_type, 1)
        for column in table.columns
        if not column.nullable and (column.server_default is None or column.primary_key)
    }


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

    def test_everyRevisionWithRows(self) -> None:
        """From every earlier revision, with a row in each table: they all stay."""
        config = configuration()
        script = ScriptDirectory.from_config(config)
        revisions = [one.revision for one in script.walk_revisions()][:0:-1]
        self.assertEqual(len(revisions), int(HEAD) - 1)
        for revision in revisions:
            url = newURL(self)
            engine = newEngine(parseURL(url), 1)
            self.addCleanup(engine.dispose)
            with transaction(engine, writing=True) as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, revision)
                before = MetaData()
                before.reflect(connection)
                tables = [
                    table for name, table in before.tables.items() if name != "alembic_version"
                ]
                for table in tables:
                    connection.execute(insert(table).values(_row(table)))
            self.assertEqual(upgrade(url), (revision, HEAD))
            with transaction(engine, writing=False) as connection:
                after = MetaData()
                after.reflect(connection)
                for table in tables:
                    # Read as what they were, by what there is now.
                    (row,) = connection.execute(select(after.tables[table.name])).mappings()
                    kept = {name: row[name] for name in _row(table) if name in row}
                    self.assertEqual(kept, {name: _row(table)[name] for name in kept}, revision)
            engine.dispose()

    def test_listsNeedNoRows(self) -> None:
        """Sessions are counted, and put in order, by an index alone."""
        upgrade(self.url)
        explain = "EXPLAIN QUERY PLAN" if self.engine.dialect.name == "sqlite" else "EXPLAIN"
        wanted = "ix_sessions_tenant_present"
        with self.engine.begin() as connection:
            if explain == "EXPLAIN":
                connection.execute(text("SET enable_seqscan = off; SET enable_bitmapscan = off"))
            for what, order in (("count(*)", ""), ("*", "ORDER BY created DESC, id DESC LIMIT 20")):
                rows = connection.execute(
                    text(
                        f"{explain} SELECT {what} FROM sessions WHERE tenant = 't' "
                        f"AND deleted IS NULL {order}"
                    )
                )
                plan = "\n".join(str(row) for row in rows)
                self.assertIn(wanted, plan)
                self.assertNotRegex(plan, "(?i)sort|temp b-tree")
                if explain != "EXPLAIN" and not order:
                    self.assertIn(f"COVERING INDEX {wanted}", plan)

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
