"""
Lists of sessions: counted and ordered by an index alone, which the deleted are not in.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_sessions_tenant_created", "sessions")
    op.create_index(
        "ix_sessions_tenant_present",
        "sessions",
        ["tenant", "created", "id", "deleted"],
        sqlite_where=sa.text("deleted IS NULL"),
        postgresql_where=sa.text("deleted IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_sessions_tenant_present", "sessions")
    op.create_index("ix_sessions_tenant_created", "sessions", ["tenant", "created"])
