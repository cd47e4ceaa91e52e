"""
Prompts that a session's host does not have yet.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("prompts", sa.JSON, nullable=True))
    op.add_column(
        "sessions", sa.Column("prompt_seq", sa.Integer, nullable=False, server_default="0")
    )


def downgrade() -> None:
    op.drop_column("sessions", "prompt_seq")
    op.drop_column("sessions", "prompts")
