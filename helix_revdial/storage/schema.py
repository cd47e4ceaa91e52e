# -*- test-case-name: tests.storage.test_migrations -*-
"""
Bringing a database's schema to the newest revision.

The migrations lie in the package itself, so that an installed server finds
them.  The whole upgrade is one transaction on both kinds of database: killed
in the middle, it leaves the schema that was there before.  Of several
processes that upgrade at the same time one does it and the others wait.

This module imports alembic, which is slow to load: a server whose schema is
new enough need not import it.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection, text

from helix_revdial.storage.database import HEAD, readRevision
from helix_revdial.storage.engines import newEngine, parseURL, transaction

# Any number: it names our lock among the advisory locks of one database.
_UPGRADE_LOCK = 0x48656C69

MIGRATIONS = Path(__file__).with_name("migrations")


def upgrade(url: str) -> tuple[str | None, str]:
    """
    Bring the schema behind C{url} to the newest revision.  Blocks.

    @return: the revision before, and the revision now.
    @raise DatabaseUnavailable: when the database cannot be used.
    @raise ValueError: for a URL of no database that we work with, or a schema
        that is newer than this version of the code.
    """
    engine = newEngine(parseURL(url), 1)
    try:
        with transaction(engine, writing=True) as connection:
            before = upgradeWith(connection)
            return before, HEAD
    finally:
        engine.dispose()


def upgradeWith(connection: Connection) -> str | None:
    """
    The same within a transaction that has begun.

    @return: the revision before.
    """
    if connection.dialect.name == "postgresql":
        # A large table takes its time to alter; the limit is for requests.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _UPGRADE_LOCK})
    before = readRevision(connection)
    if before == HEAD:
        return before
    known = {script.revision for script in _scripts()}
    if before is not None and before not in known:
        raise ValueError(
            f"the database's schema {before} is newer than this version knows ({HEAD}): "
            "run the version that made it"
        )
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return before


def configuration() -> Config:
    """Alembic's configuration, without a file of its own."""
    config = Config()
    # Alembic reads "%" as the start of a reference.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _scripts() -> list[Script]:
    return list(ScriptDirectory.from_config(configuration()).walk_revisions())
