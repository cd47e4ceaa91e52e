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
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
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

# Sandboxes and tasks: what a session token or an owner may register a runner
# for.  Deleted sessions keep their row, so that what refers to them keeps its
# sense.  What only a task has is null for a sandbox.
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
    # "sandbox" or "task".
    Column("kind", String(16), nullable=False, server_default="sandbox"),
    Column("project", String(128), nullable=True),
    Column("updated", Double, nullable=True),
    Column("started", Double, nullable=True),
    Column("ended", Double, nullable=True),
    # What a session that is stopping is to become: "stopped" or "cancelled".
    Column("goal", String(16), nullable=True),
    # When whoever stops it gives up on the executor's own end.
    Column("stop_by", Double, nullable=True),
    # The request as it was accepted, secrets left in: they go to the executor.
    Column("spec", JSON, nullable=True),
    Column("agent_type", String(64), nullable=True),
    Column("agent_version", String(64), nullable=True),
    # The executor that it was given to; null while nobody has it.
    Column("executor", String(128), nullable=True),
    Column("labels", JSON, nullable=True),
    Column("exit_code", Integer, nullable=True),
    Column("error", Text, nullable=True),
    # Events first_seq to last_seq are kept; last_seq is 0 before the first.
    Column("first_seq", BigInteger, nullable=False, server_default="1"),
    Column("last_seq", BigInteger, nullable=False, server_default="0"),
    # The executor's newest report that is in the event log.
    Column("executor_seq", BigInteger, nullable=False, server_default="0"),
    Column("workspace", JSON, nullable=True),
    Column("delivery", JSON, nullable=True),
    # The session that this one is a branch of, and what of it this one began with:
    # the snapshot's "id" here, and what its host calls it.
    Column("branch_of", String(40), nullable=True, index=True),
    Column("branch_snapshot", JSON, nullable=True),
    # When its executor had cleaned up after it.
    Column("forgotten", Double, nullable=True),
    # What its executor is still to be told, [{"number", "text"}]; the newest number.
    Column("prompts", JSON, nullable=True),
    Column("prompt_seq", Integer, nullable=False, server_default="0"),
    # What lists count and order: no row is looked at for it.
    Index(
        "ix_sessions_tenant_present",
        "tenant",
        "created",
        "id",
        # Null in all of them; where it is not there, SQLite looks for it in the row.
        "deleted",
        sqlite_where=text("deleted IS NULL"),
        postgresql_where=text("deleted IS NULL"),
    ),
    Index("ix_sessions_tenant_owner_created", "tenant", "owner", "created"),
    Index("ix_sessions_tenant_status_created", "tenant", "status", "created"),
    Index("ix_sessions_kind_status", "kind", "status"),
    Index("ix_sessions_ended", "ended"),
    Index("ix_sessions_deleted", "deleted"),
)

# What happened to a session: append-only, numbered without gaps.  Rows leave
# from the front only, together with the session's first_seq.
session_events = Table(
    "session_events",
    metadata,
    Column("session", String(40), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("type", String(64), nullable=False),
    Column("data", JSON, nullable=False),
    Index("ix_session_events_session_type_seq", "session", "type", "seq"),
)

# Ports of the server that were made to lead to targets while it ran.  "principal" is
# who made one, without any secret: its connections may have what he may.
forwards = Table(
    "forwards",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("settings", JSON, nullable=False),
    Column("principal", JSON, nullable=False),
    Column("created", Double, nullable=False),
)

# Answers to requests that may be repeated.  "scope" is a digest of who asked
# for what with which key, "request_digest" of what was sent.
idempotency = Table(
    "idempotency",
    metadata,
    Column("scope", String(64), primary_key=True),
    Column("request_digest", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("status", Integer, nullable=True),
    Column("headers", JSON, nullable=True),
    Column("body", LargeBinary, nullable=True),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False, index=True),
)

# Tasks that are not sent yet.
drafts = Table(
    "drafts",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("project", String(128), nullable=True),
    Column("data", JSON, nullable=False),
    Column("created", Double, nullable=False),
    Column("updated", Double, nullable=False),
    Index("ix_drafts_tenant_owner_updated", "tenant", "owner", "updated"),
)

# Archives that callers send for their tasks.  The token is nowhere.
uploads = Table(
    "uploads",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("owner", String(255), nullable=False),
    Column("session", String(40), nullable=True, index=True),
    Column("token_digest", String(64), nullable=False, unique=True),
    Column("max_bytes", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=True),
    Column("sha256", String(64), nullable=True),
    Column("status", String(16), nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False, index=True),
    Index("ix_uploads_tenant_owner", "tenant", "owner"),
)

# What a tenant's webhooks are signed with: a signature needs the secret itself.
webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(128), nullable=False, index=True),
    Column("secret", String(128), nullable=False),
    Column("created", Double, nullable=False),
    Column("retired", Double, nullable=True),
)

# What is to be told to whom, until it is told or given up.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("session", String(40), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("url", String(2048), nullable=False),
    Column("body", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt", Double, nullable=True),
    Column("status", String(16), nullable=False),
    Column("last_error", Text, nullable=True),
    Column("created", Double, nullable=False),
    # Whose server it is, "https://host:port": one that is dead is left out of what is due.
    Column("target", String(300), nullable=True),
    Column("event", String(64), nullable=True),
    # When it was told or given up.
    Column("ended", Double, nullable=True, index=True),
    Index("ix_webhook_deliveries_status_next_attempt", "status", "next_attempt"),
    Index("ix_webhook_deliveries_session_seq", "session", "seq"),
)

# File-system snapshots of workspaces; "reference" is what the provider calls them.
snapshots = Table(
    "snapshots",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("session", String(40), nullable=False),
    Column("at", Double, nullable=False),
    Column("label", String(200), nullable=True),
    Column("provider", String(32), nullable=False),
    Column("reference", JSON, nullable=False),
    Index("ix_snapshots_session_at", "session", "at"),
)

# Points of a session's timeline that are worth a name.
moments = Table(
    "moments",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("session", String(40), nullable=False),
    Column("at", Double, nullable=False),
    Column("label", String(200), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("snapshot", String(40), nullable=True),
    Index("ix_moments_session_at", "session", "at"),
)

# A tenant's own names for groups of sessions, noted when one is first used.
projects = Table(
    "projects",
    metadata,
    Column("tenant", String(128), primary_key=True),
    Column("id", String(128), primary_key=True),
    Column("display_name", String(200), nullable=False),
    Column("created", Double, nullable=False),
    Column("last_used", Double, nullable=True),
)

# Repositories that a tenant's tasks have used.  No address holds a password.
repos = Table(
    "repos",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("project", String(128), nullable=True),
    Column("display_name", String(200), nullable=False),
    Column("remote_url", String(2048), nullable=False),
    Column("default_branch", String(255), nullable=True),
    Column("last_used", Double, nullable=True),
    UniqueConstraint("tenant", "remote_url"),
)

# Runner hosts, as they last said of themselves.  Without a tenant they serve all.
executors = Table(
    "executors",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("tenant", String(128), nullable=True),
    Column("os", String(64), nullable=False),
    Column("arch", String(64), nullable=False),
    Column("capabilities", JSON, nullable=False),
    Column("last_heartbeat", Double, nullable=True),
    Column("health", JSON, nullable=True),
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
