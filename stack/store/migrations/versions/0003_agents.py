"""Agents, their sessions, turns, steps and files."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "agents",
        sa.Column("agent_id", sa.String(64), nullable=False),
        sa.Column("config", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("agent_id", name="pk_agents"),
    )
    op.create_table(
        "agent_sessions",
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("agent_id", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("turns", sa.Integer, nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("session_id", name="pk_agent_sessions"),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.agent_id"], name="fk_agent_sessions_agent_id_agents", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_agent_sessions_agent_id", "agent_sessions", ["agent_id"])
    op.create_table(
        "agent_turns",
        sa.Column("turn_id", sa.String(64), nullable=False),
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("owner", sa.String(64)),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("output", sa.Text),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("completed_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("turn_id", name="pk_agent_turns"),
        sa.UniqueConstraint("session_id", "number", name="uq_agent_turns_session_id"),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["agent_sessions.session_id"],
            name="fk_agent_turns_session_id_agent_sessions",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_agent_turns_status", "agent_turns", ["status", "session_id"])
    op.create_table(
        "agent_steps",
        sa.Column("turn_id", sa.String(64), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("step_id", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("turn_id", "number", name="pk_agent_steps"),
        sa.ForeignKeyConstraint(
            ["turn_id"],
            ["agent_turns.turn_id"],
            name="fk_agent_steps_turn_id_agent_turns",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "agent_files",
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("mime_type", sa.String(255), nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("written_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("session_id", "name", name="pk_agent_files"),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["agent_sessions.session_id"],
            name="fk_agent_files_session_id_agent_sessions",
            ondelete="CASCADE",
        ),
    )


def downgrade() -> None:
    for table in ("agent_files", "agent_steps", "agent_turns", "agent_sessions", "agents"):
        op.drop_table(table)
