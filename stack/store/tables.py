"""SQL tables. A change here needs a migration in `migrations/versions`; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect

ID_LENGTH = 255
KEY_LENGTH = 1024  # of a file in its bucket

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

api_keys = Table(
    "api_keys",
    metadata,
    Column("name", String(ID_LENGTH), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("record_content", Boolean),  # none: as the settings say
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

files = Table(
    "files",
    metadata,
    Column("bucket", String(ID_LENGTH), primary_key=True),
    Column("key", String(KEY_LENGTH), primary_key=True),
    Column("blob", String(64), nullable=False),  # its bytes are those of its parts
    Column("mime_type", String(255), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("bucket", String(ID_LENGTH), nullable=False),
    Column("key", String(KEY_LENGTH), nullable=False),
    Column("mime_type", String(255), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("offset", BigInteger, nullable=False),  # bytes that are stored
    Column("writer", String(64)),  # the request that adds to it now
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)

file_parts = Table(
    "file_parts",
    metadata,
    Column("blob", String(64), primary_key=True),  # of a file, or the id of its upload
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("size", BigInteger, nullable=False),
    Column("object", String(255), nullable=False),  # its path in the storage
)
"""Where the bytes of a file are: objects that follow one another without a gap."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(64), nullable=False),
    Column("request", Text, nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),  # how often a runner has taken it
    Column("fruitless", Integer, nullable=False),  # attempts since something was last finished
    Column("runner", String(64)),  # the process that holds the lease
    Column("lease_until", UtcDateTime),
    Column("cancel_requested", Boolean, nullable=False),
    Column("progress", Text, nullable=False),
    Column("detail", Text),  # why it failed
    Column("result", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("swept", Boolean, nullable=False),  # its items, files and log are removed
    Column("traceparent", String(64)),  # the span that submitted it
    Column("record_content", Boolean),  # whether what is said may be recorded; none: as the settings say
)

job_items = Table(
    "job_items",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("item", Integer, primary_key=True, autoincrement=False),
    Column("error", Text),
    Column("result", Text),
)
"""What a job has finished of its work: a job that goes on after a kill leaves these out."""

vector_indexes = Table(
    "vector_indexes",
    metadata,
    Column("vector_db_id", String(ID_LENGTH), primary_key=True),
    Column("table_name", String(ID_LENGTH), nullable=False),
    Column("expires", Boolean, nullable=False),  # some chunks were inserted to live for a time
    Column("state", Text, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)
"""What the maintenance of a vector database found and chose: its index, how to search it, its recall."""

agents = Table(
    "agents",
    metadata,
    Column("agent_id", String(64), primary_key=True),
    Column("config", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

agent_sessions = Table(
    "agent_sessions",
    metadata,
    Column("session_id", String(64), primary_key=True),
    Column("agent_id", ForeignKey("agents.agent_id", ondelete="CASCADE"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("turns", Integer, nullable=False),  # how many there have been
    Column("started_at", UtcDateTime, nullable=False),
)

agent_turns = Table(
    "agent_turns",
    metadata,
    Column("turn_id", String(64), primary_key=True),
    Column("session_id", ForeignKey("agent_sessions.session_id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),  # its place in the session
    Column("status", String(16), nullable=False),
    Column("owner", String(64)),  # the process that runs it, or has it waiting; see stack.store.presence
    Column("request", Text, nullable=False),
    Column("output", Text),
    Column("started_at", UtcDateTime, nullable=False),
    Column("completed_at", UtcDateTime),
    UniqueConstraint("session_id", "number"),
    Index("ix_agent_turns_status", "status", "session_id"),
)

agent_steps = Table(
    "agent_steps",
    metadata,
    Column("turn_id", ForeignKey("agent_turns.turn_id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),  # its place in the turn
    Column("step_id", String(64), nullable=False),
    Column("body", Text, nullable=False),
)

agent_files = Table(
    "agent_files",
    metadata,
    Column("session_id", ForeignKey("agent_sessions.session_id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(ID_LENGTH), primary_key=True),
    Column("mime_type", String(ID_LENGTH), nullable=False),
    Column("size", Integer, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("written_at", UtcDateTime, nullable=False),
)
"""The working folder of a session's code interpreter: documents of its turns, and what code wrote."""

traces = Table(
    "traces",
    metadata,
    Column("trace_id", String(ID_LENGTH), primary_key=True),
    Column("root_span_id", String(ID_LENGTH), nullable=False),
    Column("rooted", Boolean, nullable=False),  # the root has no parent; else it is the earliest span so far
    Column("start_us", BigInteger, nullable=False, index=True),
    Column("end_us", BigInteger, index=True),
    Column("expires_us", BigInteger, nullable=False, index=True),
)
"""Of each trace the root and the times, kept up to date as its spans come. Microseconds since 1970."""

spans = Table(
    "spans",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("trace_id", String(ID_LENGTH), nullable=False),
    Column("span_id", String(ID_LENGTH), nullable=False, index=True),
    Column("parent_span_id", String(ID_LENGTH)),
    Column("name", Text),  # NULL until its start is told
    Column("start_us", BigInteger, nullable=False, index=True),
    Column("end_us", BigInteger),
    Column("status", String(16)),
    Column("attributes", Text, nullable=False),
    Column("expires_us", BigInteger, nullable=False, index=True),
    UniqueConstraint("trace_id", "span_id"),
    Index("ix_spans_parent", "trace_id", "parent_span_id"),
)

span_attributes = Table(
    "span_attributes",
    metadata,
    Column("span", ForeignKey("spans.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(ID_LENGTH), primary_key=True),
    Column("text", String(ID_LENGTH).with_variant(String(ID_LENGTH, collation="C"), "postgresql")),
    Column("number", Double),
    Index("ix_span_attributes_text", "key", "text"),
    Index("ix_span_attributes_number", "key", "number"),
)
"""What spans are found by; see `stack.telemetry.conditions`. The attributes themselves are in `spans`."""

span_events = Table(
    "span_events",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("trace_id", String(ID_LENGTH), nullable=False),
    Column("span_id", String(ID_LENGTH), nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("body", Text, nullable=False),  # a log line or a metric, as JSON
    Column("expires_us", BigInteger, nullable=False, index=True),
    Index("ix_span_events_span", "trace_id", "span_id"),
)
