# -*- test-case-name: tests.cli.test_database -*-
"""
C{helix db}: the database's schema, on the machine that can reach the database.

Asks no server.  A URL may hold a password: it is taken from the environment
where it does, and no text made here repeats it.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from helix_revdial.cli.edge import PASSED, CommandError, SettingsError, plain
from helix_revdial.cli.invocation import Invocation, passInvocation

URL_VARIABLE = "HELIX_REVDIAL_SERVER_DATABASE"
"""The server's own setting, so that both use one value."""


@click.group("db")
def database() -> None:
    """The server's database: migrations."""


@database.command("upgrade")
@click.option(
    "--url",
    metavar="URL",
    help="sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME.  "
    f"With a password in it, give it as {URL_VARIABLE}.",
)
@click.option(
    "--config", metavar="FILE", help="The server's file of settings, which says which database."
)
@passInvocation
def upgradeCommand(invocation: Invocation, url: str | None, config: str | None) -> int:
    """Bring the database's schema to the newest revision."""
    url = _which(url, config)
    # SQLAlchemy and alembic are slow to import and wanted here only.
    from helix_revdial.storage.failures import DatabaseUnavailable
    from helix_revdial.storage.schema import upgrade

    try:
        before, now = upgrade(url)
    except ValueError as error:
        raise SettingsError(f"db upgrade: {plain(error)}") from None
    except DatabaseUnavailable as error:
        raise CommandError(f"db upgrade: {_without(url, error)}") from None
    if before == now:
        invocation.output.line(f"The database is at revision {now} already.")
    elif before is None:
        invocation.output.line(f"Created the schema at revision {now}.")
    else:
        invocation.output.line(f"Upgraded the database from revision {before} to {now}.")
    return PASSED


def _which(url: str | None, config: str | None) -> str:
    """The database that is meant: by a flag, else as the server finds it."""
    if url and config:
        raise click.UsageError("--url and --config both say which database: give one of them")
    if config:
        from helix_revdial.config import ConfigError, load

        try:
            return load(Path(config), os.environ).databaseURL
        except ConfigError as error:
            raise SettingsError(f"db upgrade: {plain(error)}") from None
    url = url or os.environ.get(URL_VARIABLE)
    if not url:
        raise click.UsageError(f"which database? Set {URL_VARIABLE}, or give --config or --url")
    return url


def _without(url: str, error: Exception) -> str:
    """What a driver says, without the password that it might repeat."""
    from sqlalchemy.engine import make_url

    text = plain(error)
    password = make_url(url).password
    return text.replace(str(password), "***") if password else text


__all__ = ["URL_VARIABLE", "database"]
