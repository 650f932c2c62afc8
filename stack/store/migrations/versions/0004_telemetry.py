"""Traces, spans, what spans are found by, and their events; which span submitted a job."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("traceparent", sa.String(64)))
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "traces",
        sa.Column("trace_id", sa.String(255), nullable=False),
        sa.Column("root_span_id", sa.String(255), nullable=False),
        sa.Column("rooted", sa.Boolean, nullable=False),
        sa.Column("start_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("trace_id", name="pk_traces"),
    )
    for column in ("start_us", "end_us", "expires_us"):
        op.create_index(f"ix_traces_{column}", "traces", [column])
    op.create_table(
        "spans",
        sa.Column("id", number, nullable=False),
        sa.Column("trace_id", sa.String(255), nullable=False),
        sa.Column("span_id", sa.String(255), nullable=False),
        sa.Column("parent_span_id", sa.String(255)),
        sa.Column("name", sa.Text),
        sa.Column("start_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger),
        sa.Column("status", sa.String(16)),
        sa.Column("attributes", sa.Text, nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_spans"),
        sa.UniqueConstraint("trace_id", "span_id", name="uq_spans_trace_id"),
    )
    for column in ("span_id", "start_us", "expires_us"):
        op.create_index(f"ix_spans_{column}", "spans", [column])
    op.create_index("ix_spans_parent", "spans", ["trace_id", "parent_span_id"])
    op.create_table(
        "span_attributes",
        sa.Column("span", number, nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("text", sa.String(255).with_variant(sa.String(255, collation="C"), "postgresql")),
        sa.Column("number", sa.Double),
        sa.PrimaryKeyConstraint("span", "key", name="pk_span_attributes"),
        sa.ForeignKeyConstraint(
            ["span"], ["spans.id"], name="fk_span_attributes_span_spans", ondelete="CASCADE"
        ),
    )
    for column in ("text", "number"):
        op.create_index(f"ix_span_attributes_{column}", "span_attributes", ["key", column])
    op.create_table(
        "span_events",
        sa.Column("id", number, nullable=False),
        sa.Column("trace_id", sa.String(255), nullable=False),
        sa.Column("span_id", sa.String(255), nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_span_events"),
    )
    op.create_index("ix_span_events_expires_us", "span_events", ["expires_us"])
    op.create_index("ix_span_events_span", "span_events", ["trace_id", "span_id"])
