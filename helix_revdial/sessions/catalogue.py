# -*- test-case-name: tests.sessions.test_catalogue -*-
"""
The projects and repositories of a tenant: what its tasks have named so far.

Nobody declares them: a task that names a project, or a repository, puts it
here, in the same transaction as the task itself (L{noteUse}), so that forms and
completions can offer what was used before.  Each list is bounded; what was used
longest ago is not shown beyond that, and nothing depends on it.  So when something was
last used need not be right to the second, and what many tasks name one after the other
is written down once in a while only (L{RecentUses}).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, Insert, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from helix_revdial.storage.database import Database
from helix_revdial.storage.ids import newId
from helix_revdial.storage.tables import projects, repos

MAX_LISTED: Final = 1000
"""Projects, or repositories, of one answer: those that were used last."""

NOTED_EVERY: Final = 60.0
"""Seconds for which a use need not be noted again."""

MAX_RECENT: Final = 1000
"""Uses that are remembered."""

_PROVIDERS: Final = (
    ("github", re.compile(r"[@/.]github\.")),
    ("gitlab", re.compile(r"[@/.]gitlab\.")),
    ("bitbucket", re.compile(r"[@/.]bitbucket\.")),
)


@dataclass(frozen=True, slots=True)
class Project:
    """@ivar lastUsed: seconds since the epoch."""

    id: str
    name: str
    lastUsed: float | None


@dataclass(frozen=True, slots=True)
class Repository:
    """
    @ivar provider: C{"github"}, C{"gitlab"}, C{"bitbucket"} or C{"git"}, by its host's name.
    @ivar lastUsed: seconds since the epoch.
    """

    id: str
    project: str | None
    name: str
    url: str
    provider: str
    branch: str | None
    lastUsed: float | None


class RecentUses:
    """What this process has noted a moment ago, and was committed."""

    def __init__(self) -> None:
        self._repos: OrderedDict[tuple[str, str], tuple[str | None, float]] = OrderedDict()
        self._projects: OrderedDict[tuple[str, str], tuple[str | None, float]] = OrderedDict()

    def isNoted(self, tenant: str, project: str | None, url: str | None, at: float) -> bool:
        """Whether a use like this one is."""
        for known, name in ((self._projects, project), (self._repos, url)):
            if name is not None:
                found = known.get((tenant, name))
                if found is None or found[0] != project or not 0 <= at - found[1] < NOTED_EVERY:
                    return False
        return True

    def note(self, tenant: str, project: str | None, url: str | None, at: float) -> None:
        """This use is."""
        for known, name in ((self._projects, project), (self._repos, url)):
            if name is not None:
                known[tenant, name] = (project, at)
                known.move_to_end((tenant, name))
                if len(known) > MAX_RECENT:
                    known.popitem(last=False)


def noteUse(
    connection: Connection,
    *,
    tenant: str,
    project: str | None,
    url: str | None,
    branch: str | None,
    at: float,
) -> None:
    """
    Note what a new task names, within its transaction.

    @param url: of its repository, without any secret.
    @param at: seconds since the epoch.
    """
    if project is not None:
        _put(
            connection,
            projects,
            {"tenant": tenant, "id": project},
            {"last_used": at},
            {"display_name": project, "created": at},
        )
    if url is not None:
        _put(
            connection,
            repos,
            {"tenant": tenant, "remote_url": url},
            {"last_used": at, "project": project},
            {
                "id": newId("repo", at),
                "display_name": nameOf(url),
                "default_branch": branch,
            },
        )


def _put(
    connection: Connection,
    table: Table,
    key: Mapping[str, Any],
    changes: Mapping[str, Any],
    beginnings: Mapping[str, Any],
) -> None:
    """Change the row with that key, or make it."""
    statement = _upsert(table, connection.dialect.name, tuple(key), tuple(changes))
    connection.execute(statement, {**key, **changes, **beginnings})


# Made once: to make a statement costs more than to run it.
@cache
def _upsert(table: Table, dialect: str, key: tuple[str, ...], changes: tuple[str, ...]) -> Insert:
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement = insert(table)
    return statement.on_conflict_do_update(
        index_elements=list(key), set_={name: statement.excluded[name] for name in changes}
    )


def nameOf(url: str) -> str:
    """What people call a repository: C{acme/x} of C{git@github.com:acme/x.git}."""
    bare = url.rstrip("/").removesuffix(".git")
    scheme, full, rest = bare.partition("://")
    bare = rest.partition("/")[2] if full else scheme.partition(":")[2]
    return "/".join(bare.split("/")[-2:])[:200] or url[:200]


def providerOf(url: str) -> str:
    """Who hosts it, as far as the host's name tells."""
    for name, pattern in _PROVIDERS:
        if pattern.search(url) is not None:
            return name
    return "git"


class Catalogue:
    """
    What tenants have used.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def projects(self, *, tenant: str, only: str | None = None) -> list[Project]:
        """
        The projects of a tenant, the one that was used last first.

        @param only: the one project that may be seen.
        """
        query = select(projects).where(projects.c.tenant == tenant)
        if only is not None:
            query = query.where(projects.c.id == only)
        query = query.order_by(projects.c.last_used.desc(), projects.c.id).limit(MAX_LISTED)

        def fetch(connection: Connection) -> list[Project]:
            return [
                Project(row.id, row.display_name, row.last_used)
                for row in connection.execute(query)
            ]

        return await self._database.read(fetch)

    async def repositories(self, *, tenant: str, project: str | None = None) -> list[Repository]:
        """
        The repositories of a tenant, the one that was used last first.

        @param project: only those that were last used for it.
        """
        query = select(repos).where(repos.c.tenant == tenant)
        if project is not None:
            query = query.where(repos.c.project == project)
        query = query.order_by(repos.c.last_used.desc(), repos.c.id).limit(MAX_LISTED)

        def fetch(connection: Connection) -> list[Repository]:
            return [
                Repository(
                    row.id,
                    row.project,
                    row.display_name,
                    row.remote_url,
                    providerOf(row.remote_url),
                    row.default_branch,
                    row.last_used,
                )
                for row in connection.execute(query)
            ]

        return await self._database.read(fetch)
