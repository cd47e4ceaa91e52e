# -*- test-case-name: tests.access.test_tokens -*-
"""
The C{tokens} table: its queries, each within a transaction that has begun.

Nothing here decides anything; L{Tokens <helix_revdial.access.tokens.Tokens>}
does.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, insert, or_, select, text, update

from helix_revdial.access.records import TokenRecord, fromRow
from helix_revdial.storage.tables import tokens


class UnknownToken(LookupError):
    """There is no such token (for this tenant).  HTTP answers 404."""


def add(connection: Connection, record: TokenRecord, digest: str) -> None:
    """
    @param digest: of the token's secret.
    @raise sqlalchemy.exc.IntegrityError: when that secret is there already.
    """
    connection.execute(
        insert(tokens).values(
            id=record.id,
            digest=digest,
            family=record.family,
            kind=record.kind,
            name=record.name,
            tenant=record.tenant,
            owner=record.user,
            role=record.role,
            patterns=list(record.patterns),
            session=record.session,
            created=record.created,
            expires=record.expires,
        )
    )


def byDigest(connection: Connection, digest: str) -> tuple[str, TokenRecord] | None:
    """
    @return: the digest as it is stored, and the record.
    """
    row = connection.execute(select(tokens).where(tokens.c.digest == digest)).one_or_none()
    return None if row is None else (row.digest, fromRow(row))


def find(
    connection: Connection, tokenId: str, tenant: str | None, *, lock: bool = False
) -> TokenRecord:
    """
    @param tenant: only a token of this tenant, if not C{None}.
    @param lock: hold it until the transaction ends, in one that writes.
    @raise UnknownToken: when there is none.
    """
    query = select(tokens).where(tokens.c.id == tokenId)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None or (tenant is not None and row.tenant != tenant):
        raise UnknownToken("no such token")
    return fromRow(row)


def replace(connection: Connection, tokenId: str, successor: str, end: float) -> None:
    """Note a token's successor, and until when the token itself is valid."""
    connection.execute(
        update(tokens).where(tokens.c.id == tokenId).values(expires=end, replacement=successor)
    )


def revoke(connection: Connection, which: ColumnElement[bool], now: float) -> list[TokenRecord]:
    """
    @return: every token that C{which} is true of, as it was before.
    """
    found = connection.execute(select(tokens).where(which).with_for_update())
    records = [fromRow(row) for row in found]
    connection.execute(update(tokens).where(which, tokens.c.revoked.is_(None)).values(revoked=now))
    return records


def endedBetween(connection: Connection, since: float, until: float) -> list[tuple[str, str]]:
    """
    The tokens that were revoked in this time, or expired in it and left no
    live one of their family: their ids and families.
    """
    others = tokens.alias()
    live = (
        select(others.c.id)
        .where(
            others.c.family == tokens.c.family,
            others.c.revoked.is_(None),
            or_(others.c.expires.is_(None), others.c.expires > until),
        )
        .exists()
    )
    query = select(tokens.c.id, tokens.c.family).where(
        or_(
            and_(tokens.c.revoked > since, tokens.c.revoked <= until),
            and_(tokens.c.expires > since, tokens.c.expires <= until, ~live),
        )
    )
    return [(row.id, row.family) for row in connection.execute(query)]


def nextExpiry(connection: Connection, now: float) -> float | None:
    """When the first of the live tokens expires."""
    return connection.execute(
        select(func.min(tokens.c.expires)).where(tokens.c.expires > now, tokens.c.revoked.is_(None))
    ).scalar()


def page(
    connection: Connection,
    *,
    tenant: str | None,
    user: str | None,
    kind: str | None,
    liveAt: float | None,
    limit: int,
    offset: int,
) -> tuple[list[TokenRecord], int]:
    """
    @param liveAt: only those that are live then.
    @return: newest first, and how many there are in all.
    """
    where: list[ColumnElement[bool]] = []
    if tenant is not None:
        where.append(tokens.c.tenant == tenant)
    if user is not None:
        where.append(tokens.c.owner == user)
    if kind is not None:
        where.append(tokens.c.kind == kind)
    if liveAt is not None:
        where.extend(_live(liveAt))
    count: Any = select(func.count()).select_from(tokens).where(*where)
    query = (
        select(tokens)
        .where(*where)
        .order_by(tokens.c.created.desc(), tokens.c.id.desc())
        .limit(limit)
        .offset(offset)
    )
    total: int = connection.execute(count).scalar_one()
    return [fromRow(row) for row in connection.execute(query)], total


def hasAdmin(connection: Connection, now: float) -> bool:
    """
    Whether a live admin token exists.  Until the transaction ends nobody else
    can make one.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("LOCK TABLE tokens IN SHARE ROW EXCLUSIVE MODE"))
    query = select(tokens.c.id).where(
        tokens.c.kind == "user", tokens.c.role == "admin", *_live(now)
    )
    return connection.execute(query.limit(1)).one_or_none() is not None


def hasLive(connection: Connection, family: str, now: float) -> bool:
    """Whether a token of that family is live."""
    query = select(tokens.c.id).where(tokens.c.family == family, *_live(now))
    return connection.execute(query.limit(1)).one_or_none() is not None


def tenantOf(connection: Connection, family: str, now: float) -> str | None:
    """The tenant of a family that has a live token."""
    query = select(tokens.c.tenant).where(tokens.c.family == family, *_live(now))
    return connection.execute(query.limit(1)).scalar_one_or_none()


def _live(now: float) -> list[ColumnElement[bool]]:
    return [
        tokens.c.revoked.is_(None),
        or_(tokens.c.expires.is_(None), tokens.c.expires > now),
    ]
