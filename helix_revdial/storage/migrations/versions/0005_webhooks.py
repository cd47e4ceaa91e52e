"""
Deliveries by where they go, and what retention looks for.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nothing has written deliveries before.
    op.add_column(
        "webhook_deliveries",
        sa.Column("target", sa.String(300), nullable=True),
    )
    op.add_column(
        "webhook_deliveries",
        sa.Column("event", sa.String(64), nullable=True),
    )
    op.add_column("webhook_deliveries", sa.Column("ended", sa.Double, nullable=True))
    op.create_index("ix_webhook_deliveries_ended", "webhook_deliveries", ["ended"])
    op.create_index("ix_sessions_ended", "sessions", ["ended"])
    op.create_index("ix_sessions_deleted", "sessions", ["deleted"])


def downgrade() -> None:
    op.drop_index("ix_sessions_deleted", "sessions")
    op.drop_index("ix_sessions_ended", "sessions")
    op.drop_index("ix_webhook_deliveries_ended", "webhook_deliveries")
    for column in ("ended", "event", "target"):
        op.drop_column("webhook_deliveries", column)
