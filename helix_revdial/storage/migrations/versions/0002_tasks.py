"""
Tasks: what a session runs, its events, and what belongs to them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("sessions") as batch:
        batch.add_column(sa.Column("kind", sa.String(16), nullable=False, server_default="sandbox"))
        batch.add_column(sa.Column("project", sa.String(128), nullable=True))
        batch.add_column(sa.Column("updated", sa.Double, nullable=True))
        batch.add_column(sa.Column("started", sa.Double, nullable=True))
        batch.add_column(sa.Column("ended", sa.Double, nullable=True))
        batch.add_column(sa.Column("goal", sa.String(16), nullable=True))
        batch.add_column(sa.Column("stop_by", sa.Double, nullable=True))
        batch.add_column(sa.Column("spec", sa.JSON, nullable=True))
        batch.add_column(sa.Column("agent_type", sa.String(64), nullable=True))
        batch.add_column(sa.Column("agent_version", sa.String(64), nullable=True))
        batch.add_column(sa.Column("executor", sa.String(128), nullable=True))
        batch.add_column(sa.Column("labels", sa.JSON, nullable=True))
        batch.add_column(sa.Column("exit_code", sa.Integer, nullable=True))
        batch.add_column(sa.Column("error", sa.Text, nullable=True))
        batch.add_column(sa.Column("first_seq", sa.BigInteger, nullable=False, server_default="1"))
        batch.add_column(sa.Column("last_seq", sa.BigInteger, nullable=False, server_default="0"))
        batch.add_column(
            sa.Column("executor_seq", sa.BigInteger, nullable=False, server_default="0")
        )
        batch.add_column(sa.Column("workspace", sa.JSON, nullable=True))
        batch.add_column(sa.Column("delivery", sa.JSON, nullable=True))
        batch.add_column(sa.Column("branch_of", sa.String(40), nullable=True))
        batch.add_column(sa.Column("forgotten", sa.Double, nullable=True))
    op.create_index(
        "ix_sessions_tenant_status_created", "sessions", ["tenant", "status", "created"]
    )
    op.create_index("ix_sessions_kind_status", "sessions", ["kind", "status"])
    # A sandbox of before was last changed when it was made or deleted.
    op.execute("UPDATE sessions SET updated = COALESCE(deleted, created)")

    op.create_table(
        "session_events",
        sa.Column("session", sa.String(40), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("session", "seq", name="pk_session_events"),
    )
    op.create_index(
        "ix_session_events_session_type_seq", "session_events", ["session", "type", "seq"]
    )

    op.create_table(
        "idempotency",
        sa.Column("scope", sa.String(64), nullable=False),
        sa.Column("request_digest", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("status", sa.Integer, nullable=True),
        sa.Column("headers", sa.JSON, nullable=True),
        sa.Column("body", sa.LargeBinary, nullable=True),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("scope", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_expires", "idempotency", ["expires"])

    op.create_table(
        "drafts",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("project", sa.String(128), nullable=True),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("updated", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_drafts"),
    )
    op.create_index("ix_drafts_tenant_owner_updated", "drafts", ["tenant", "owner", "updated"])

    op.create_table(
        "uploads",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("session", sa.String(40), nullable=True),
        sa.Column("token_digest", sa.String(64), nullable=False),
        sa.Column("max_bytes", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=True),
        sa.Column("sha256", sa.String(64), nullable=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
        sa.UniqueConstraint("token_digest", name="uq_uploads_token_digest"),
    )
    op.create_index("ix_uploads_session", "uploads", ["session"])
    op.create_index("ix_uploads_expires", "uploads", ["expires"])
    op.create_index("ix_uploads_tenant_owner", "uploads", ["tenant", "owner"])

    op.create_table(
        "webhook_secrets",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("secret", sa.String(128), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("retired", sa.Double, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_secrets"),
    )
    op.create_index("ix_webhook_secrets_tenant", "webhook_secrets", ["tenant"])

    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("session", sa.String(40), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("url", sa.String(2048), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt", sa.Double, nullable=True),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("last_error", sa.Text, nullable=True),
        sa.Column("created", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
    )
    op.create_index(
        "ix_webhook_deliveries_status_next_attempt",
        "webhook_deliveries",
        ["status", "next_attempt"],
    )
    op.create_index("ix_webhook_deliveries_session_seq", "webhook_deliveries", ["session", "seq"])

    op.create_table(
        "snapshots",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("session", sa.String(40), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("label", sa.String(200), nullable=True),
        sa.Column("provider", sa.String(32), nullable=False),
        sa.Column("reference", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_snapshots"),
    )
    op.create_index("ix_snapshots_session_at", "snapshots", ["session", "at"])

    op.create_table(
        "moments",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("session", sa.String(40), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("label", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("snapshot", sa.String(40), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_moments"),
    )
    op.create_index("ix_moments_session_at", "moments", ["session", "at"])

    op.create_table(
        "projects",
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("display_name", sa.String(200), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("last_used", sa.Double, nullable=True),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_projects"),
    )

    op.create_table(
        "repos",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("project", sa.String(128), nullable=True),
        sa.Column("display_name", sa.String(200), nullable=False),
        sa.Column("remote_url", sa.String(2048), nullable=False),
        sa.Column("default_branch", sa.String(255), nullable=True),
        sa.Column("last_used", sa.Double, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_repos"),
        sa.UniqueConstraint("tenant", "remote_url", name="uq_repos_tenant_remote_url"),
    )

    op.create_table(
        "executors",
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("tenant", sa.String(128), nullable=True),
        sa.Column("os", sa.String(64), nullable=False),
        sa.Column("arch", sa.String(64), nullable=False),
        sa.Column("capabilities", sa.JSON, nullable=False),
        sa.Column("last_heartbeat", sa.Double, nullable=True),
        sa.Column("health", sa.JSON, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_executors"),
    )


def downgrade() -> None:
    for table in (
        "executors",
        "repos",
        "projects",
        "moments",
        "snapshots",
        "webhook_deliveries",
        "webhook_secrets",
        "uploads",
        "drafts",
        "idempotency",
        "session_events",
    ):
        op.drop_table(table)
    op.drop_index("ix_sessions_kind_status", "sessions")
    op.drop_index("ix_sessions_tenant_status_created", "sessions")
    with op.batch_alter_table("sessions") as batch:
        for column in (
            "forgotten",
            "branch_of",
            "delivery",
            "workspace",
            "executor_seq",
            "last_seq",
            "first_seq",
            "error",
            "exit_code",
            "labels",
            "executor",
            "agent_version",
            "agent_type",
            "spec",
            "stop_by",
            "goal",
            "ended",
            "started",
            "updated",
            "project",
            "kind",
        ):
            batch.drop_column(column)
