"""Alembic's entry point: runs on the connection that `stack.store.database` hands over."""

from alembic import context

from stack.store.tables import metadata

connection = context.config.attributes["connection"]
# Batch mode copies a table where SQLite cannot alter it in place.
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
