"""
Alembic runs this to apply migrations; ours always hand it a connection whose
transaction has begun (L{helix_revdial.storage.schema}).
"""

from __future__ import annotations

from alembic import context

from helix_revdial.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # Our transaction holds on SQLite too: see database._beginSQLite.
    transactional_ddl=True,
    # SQLite alters a table by making it anew.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
