"""Alembic migrations, run by `stack.store.database` when a database is opened."""

HEAD = "0005"  # the newest revision; a test compares it with the files in versions/
