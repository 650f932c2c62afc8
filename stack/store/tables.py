"""SQL tables. A change here needs a migration in `migrations/versions`; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Boolean, Column, DateTime, MetaData, String, Table, Text, TypeDecorator
from sqlalchemy.engine import Dialect

ID_LENGTH = 255

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment with an offset. SQLite keeps no offset, so everything is stored in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if not isinstance(value, datetime):
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


resources = Table(
    "resources",
    metadata,
    Column("type", String(64), primary_key=True),
    Column("identifier", String(ID_LENGTH), primary_key=True),
    # Text and not the database's JSON type: Postgres' jsonb refuses \u0000, which a caller may write.
    Column("body", Text, nullable=False),
    Column("declared", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

model_status = Table(
    "model_status",
    metadata,
    Column("identifier", String(ID_LENGTH), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("detail", Text),
    Column("description", Text, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)
