"""
Sessions that begin with a snapshot of another one.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("branch_snapshot", sa.JSON, nullable=True))
    op.create_index("ix_sessions_branch_of", "sessions", ["branch_of"])


def downgrade() -> None:
    op.drop_index("ix_sessions_branch_of", "sessions")
    op.drop_column("sessions", "branch_snapshot")
