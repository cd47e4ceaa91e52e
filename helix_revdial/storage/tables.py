# -*- test-case-name: tests.storage.test_migrations -*-
"""
The tables, as the newest migration leaves them.

A test holds this and the migrations together.  Times are seconds since the
epoch, as double precision, UTC.  Every row that belongs to somebody says which
tenant and which owner.  Column types are those that SQLite and PostgreSQL
share.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# One row for each token that was ever made.  The secret itself is nowhere:
# "digest" is the SHA-256 of it, in hexadecimal.
tokens = Table(
    "tokens",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("family", String(40), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("name", String(200), nullable=False),
    Column("tenant", String(128), nullable=False),
    # The user that a user token speaks for, or who made a token of another kind.
    Column("owner", String(255), nullable=True),
    Column("role", String(32), nullable=True),
    Column("patterns", JSON, nullable=False),
    Column("session", String(40), nullable=True, index=True),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=True, index=True),
    Column("revoked", Double, nullable=True, index=True),
    # The token that took this one's place.
    Column("replacement", String(40), nullable=True),
    Index("ix_tokens_tenant_created", "tenant", "created"),
)

# Sandboxes: what a session token or an owner may register a runner for.
# Deleted sessions keep their row, so that what refers to them keeps its sense.
sessions = Table(
    "sessions",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("name", String(200), nullable=False),
    Column("status", String(32), nullable=False),
    Column("created", Double, nullable=False),
    Column("deleted", Double, nullable=True),
    Index("ix_sessions_tenant_created", "tenant", "created"),
    Index("ix_sessions_tenant_owner_created", "tenant", "owner", "created"),
)

# Append-only.  The numbers give the order; rows leave only by age.
audit = Table(
    "audit",
    metadata,
    Column(
        "id",
        BigInteger().with_variant(Integer, "sqlite"),
        primary_key=True,
        autoincrement=True,
    ),
    Column("at", Double, nullable=False, index=True),
    Column("event", String(64), nullable=False),
    Column("tenant", String(128), nullable=True),
    # Who: a token's id, or a peer's address where nobody is known.
    Column("subject", String(255), nullable=True),
    Column("fields", JSON, nullable=False),
    # How many times the same happened; entries of a flood are counted, not kept.
    Column("times", Integer, nullable=False),
    Index("ix_audit_tenant_id", "tenant", "id"),
)

# Numbers that only grow, handed out in blocks.
counters = Table(
    "counters",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
