"""The working folder of a session's code interpreter: it begins every run with what earlier ones left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.exc import IntegrityError

from stack.agents.toolbox import Named
from stack.egress import decode_data_url
from stack.errors import NotFound
from stack.store.database import Database
from stack.store.tables import ID_LENGTH, agent_files

MAX_FILES = 32  # of a session; the oldest go first
MAX_BYTES = 16 << 20


class SessionFiles:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, session_id: str) -> dict[str, bytes]:
        """By name."""
        query = select(agent_files.c.name, agent_files.c.content).where(
            agent_files.c.session_id == session_id
        )
        return await self._database.query(
            lambda connection: {row.name: row.content for row in connection.execute(query)}
        )

    async def write(self, session_id: str, files: Mapping[str, tuple[str, bytes]]) -> None:
        """Add files, each (mime_type, content), in place of those of the same name. Raises NotFound."""
        now = datetime.now(UTC)
        rows = [
            {
                "session_id": session_id,
                "name": name,
                "mime_type": mime_type,
                "size": len(content),
                "content": content,
                "written_at": now,
            }
            for name, (mime_type, content) in files.items()
            if len(name) <= ID_LENGTH and len(mime_type) <= ID_LENGTH
        ]
        if not rows:
            return
        try:
            await self._database.transact(lambda connection: _replace(connection, session_id, rows))
        except IntegrityError:
            raise NotFound("session", session_id) from None


def _replace(connection: Connection, session_id: str, rows: Sequence[dict[str, Any]]) -> None:
    in_session = agent_files.c.session_id == session_id
    names = [row["name"] for row in rows]
    connection.execute(delete(agent_files).where(in_session, agent_files.c.name.in_(names)))
    connection.execute(insert(agent_files), rows)
    query = select(agent_files.c.name, agent_files.c.size).where(in_session)
    newest_first = query.order_by(agent_files.c.written_at.desc(), agent_files.c.name)
    kept, size = 0, 0
    for row in connection.execute(newest_first).all():
        kept, size = kept + 1, size + row.size
        if kept > MAX_FILES or size > MAX_BYTES:
            connection.execute(delete(agent_files).where(in_session, agent_files.c.name == row.name))


def decoded(files: Sequence[Named]) -> dict[str, tuple[str, bytes]]:
    """The files that a tool gave back, by name."""
    return {
        file.name: (file.mime_type, decode_data_url(file.uri, MAX_BYTES).content)
        for file in files
        if file.uri.startswith("data:")
    }
