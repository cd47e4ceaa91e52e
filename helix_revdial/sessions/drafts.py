# -*- test-case-name: tests.sessions.test_drafts -*-
"""
Drafts: tasks that their owner has not handed in yet.

This module owns the C{drafts} table.  A draft is what a task may be made of, as far as
it is written; whether it could be run is asked when it is handed in.  It is its owner's
alone: nobody else of the tenant sees it, since it may hold secrets that are not
anybody's but his until he hands it in.

Handing a draft in deletes it in the transaction that makes the session (L{consume}),
so that it is there as long as there is no session, and not a moment longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, delete, func, insert, select, text, update
from sqlalchemy.sql import ColumnElement

from helix_revdial.storage.database import Database
from helix_revdial.storage.ids import isId, newId
from helix_revdial.storage.tables import drafts

MAX_DRAFTS: Final = 200
"""Drafts of one user."""


class TooManyDrafts(Exception):
    """The user has as many as a user may have.  HTTP answers 409."""


class UnknownDraft(LookupError):
    """There is no such draft of that user."""


@dataclass(frozen=True, slots=True)
class Draft:
    """
    A task that is not handed in.  Times are seconds since the epoch.

    @ivar id: C{draft_...}.
    @ivar data: what there is of the task, as JSON has it.
    """

    id: str
    tenant: str
    owner: str
    project: str | None
    created: float
    updated: float
    data: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class DraftPage:
    """
    One page of a list, the one that was changed last first.

    @ivar total: how many there are in all.
    """

    items: list[Draft]
    total: int


class Drafts:
    """
    Every draft of every user.
    """

    def __init__(
        self,
        database: Database,
        wallClock: Callable[[], float],
        *,
        maxDrafts: int = MAX_DRAFTS,
    ) -> None:
        """
        @param wallClock: seconds since the epoch.
        @param maxDrafts: how many a user may have.
        """
        self._database = database
        self._wallClock = wallClock
        self._maxDrafts = maxDrafts

    async def create(
        self,
        data: Mapping[str, Any],
        *,
        tenant: str,
        owner: str,
        project: str | None = None,
        also: Callable[[Connection, Draft], None] | None = None,
    ) -> Draft:
        """
        Keep a draft.

        @param also: done in the same transaction.
        @raise TooManyDrafts: when the user has enough of them.
        """
        now = self._wallClock()
        draft = Draft(newId("draft", now), tenant, owner, project, now, now, dict(data))

        def write(connection: Connection) -> None:
            _countAlone(connection, tenant, owner)
            count = connection.execute(
                select(func.count()).where(drafts.c.tenant == tenant, drafts.c.owner == owner)
            ).scalar_one()
            if count >= self._maxDrafts:
                raise TooManyDrafts(
                    f"a user has {self._maxDrafts} drafts at most: hand one in, or delete one"
                )
            connection.execute(
                insert(drafts).values(
                    id=draft.id,
                    tenant=tenant,
                    owner=owner,
                    project=project,
                    data=dict(data),
                    created=now,
                    updated=now,
                )
            )
            if also is not None:
                also(connection, draft)

        await self._database.run(write)
        return draft

    async def get(self, draft: str, *, tenant: str, owner: str) -> Draft:
        """
        @raise UnknownDraft: if the user has no such draft.
        """
        where = _own(draft, tenant, owner)

        def fetch(connection: Connection) -> Draft:
            row = connection.execute(select(drafts).where(where)).one_or_none()
            if row is None:
                raise UnknownDraft(_unknown(draft))
            return _fromRow(row)

        return await self._database.read(fetch)

    async def put(
        self,
        draft: str,
        data: Mapping[str, Any],
        *,
        tenant: str,
        owner: str,
        project: str | None = None,
    ) -> Draft:
        """
        Replace what a draft holds.

        @raise UnknownDraft: if the user has no such draft.
        """
        now = self._wallClock()
        where = _own(draft, tenant, owner)

        def write(connection: Connection) -> Draft:
            row = connection.execute(
                update(drafts)
                .where(where)
                .values(data=dict(data), project=project, updated=now)
                .returning(drafts)
            ).one_or_none()
            if row is None:
                raise UnknownDraft(_unknown(draft))
            return replace(_fromRow(row), data=dict(data))

        return await self._database.run(write)

    async def delete(self, draft: str, *, tenant: str, owner: str) -> None:
        """
        @raise UnknownDraft: if the user has no such draft.
        """
        await self._database.run(lambda connection: consume(connection, draft, tenant, owner))

    async def list(
        self,
        *,
        tenant: str,
        owner: str,
        project: str | None = None,
        page: int = 1,
        perPage: int = 20,
    ) -> DraftPage:
        """
        A user's drafts, the one that was changed last first.

        @param project: only those of this project.
        @param page: from 1.
        """
        where = [drafts.c.tenant == tenant, drafts.c.owner == owner]
        if project is not None:
            where.append(drafts.c.project == project)
        query = (
            select(drafts)
            .where(*where)
            .order_by(drafts.c.updated.desc(), drafts.c.id.desc())
            .limit(perPage)
            .offset((page - 1) * perPage)
        )

        def fetch(connection: Connection) -> DraftPage:
            total = connection.execute(
                select(func.count()).select_from(drafts).where(*where)
            ).scalar_one()
            return DraftPage([_fromRow(row) for row in connection.execute(query)], total)

        return await self._database.read(fetch)


def consume(connection: Connection, draft: str, tenant: str, owner: str) -> None:
    """
    Delete a draft within somebody's transaction.

    @raise UnknownDraft: if the user has no such draft (any more).
    """
    # What is no id is not looked for: not every database takes every text.
    known = isId(draft, "draft")
    if (
        not known
        or not connection.execute(delete(drafts).where(_own(draft, tenant, owner))).rowcount
    ):
        raise UnknownDraft(_unknown(draft))


def _own(draft: str, tenant: str, owner: str) -> ColumnElement[bool]:
    return and_(drafts.c.id == draft, drafts.c.tenant == tenant, drafts.c.owner == owner)


def _unknown(draft: str) -> str:
    # A name that is none is not repeated.
    return f"there is no draft {draft}" if isId(draft, "draft") else "there is no such draft"


def _countAlone(connection: Connection, tenant: str, owner: str) -> None:
    """
    Until the commit nobody else counts this user's drafts.  On SQLite a transaction
    that writes is alone anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"),
            {"name": f"drafts {tenant} {owner}"},
        )


def _fromRow(row: Row[Any]) -> Draft:
    return Draft(row.id, row.tenant, row.owner, row.project, row.created, row.updated, row.data)


__all__ = [
    "MAX_DRAFTS",
    "Draft",
    "DraftPage",
    "Drafts",
    "TooManyDrafts",
    "UnknownDraft",
    "consume",
]
