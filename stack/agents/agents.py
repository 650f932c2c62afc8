"""Agents: their configurations and sessions in SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import bindparam, delete, insert, select
from sqlalchemy.exc import IntegrityError

from stack.agents.documents import Documents
from stack.engine.tool_config import merged
from stack.errors import BadRequest, NotFound
from stack.safety.shields import Shields
from stack.schemas.agents import Agent, AgentConfig, Session
from stack.schemas.messages import ToolConfig
from stack.store.database import Database
from stack.store.model_status import ModelStatuses
from stack.store.tables import agent_sessions, agents
from stack.tools.tools import Tools

MAX_NAME = 1000

# Built once: every turn asks.
_SESSION = (
    select(agent_sessions.c.name, agent_sessions.c.started_at, agents.c.config)
    .join(agents, agents.c.agent_id == agent_sessions.c.agent_id)
    .where(agent_sessions.c.session_id == bindparam("session_id"), agents.c.agent_id == bindparam("agent_id"))
)


class Agents:
    def __init__(
        self,
        database: Database,
        statuses: ModelStatuses,
        tools: Tools,
        shields: Shields,
        documents: Documents,
    ) -> None:
        self._database, self._statuses = database, statuses
        self._tools, self._shields, self._documents = tools, shields, documents

    async def create(
        self, config: AgentConfig, provider_data: Mapping[str, Any], agent_id: str | None = None
    ) -> str:
        """The new agent's id. Raises BadRequest for a model, tool group or shield that is not there."""
        await self.check(config, provider_data)
        agent_id = agent_id or str(uuid4())
        row = {"agent_id": agent_id, "config": config.model_dump_json(), "created_at": datetime.now(UTC)}
        async with self._database.write() as connection:
            await connection.execute(insert(agents).values(row))
        return agent_id

    async def check(self, config: AgentConfig, provider_data: Mapping[str, Any]) -> None:
        """Raises BadRequest for what `create` would."""
        try:
            model, _ = await self._statuses.find(config.model)
        except NotFound:
            raise BadRequest(
                f"model {config.model!r} is not registered; GET /v1/models lists those"
            ) from None
        if model.model_type != "llm":
            raise BadRequest(f"model {config.model!r} is an embedding model; an agent needs a text model")
        if shield_ids := [*(config.input_shields or []), *(config.output_shields or [])]:
            await self._shields.check(shield_ids)
        await self._tools.check(config.toolgroups or [], provider_data)
        tool_config_of(config)
        names = [tool.name for tool in config.client_tools or []]
        if len(names) != len(set(names)):
            raise BadRequest(f"client_tools have the same name twice: {', '.join(sorted(names))}")

    async def list(self) -> list[Agent]:
        """The oldest first."""
        query = select(agents).order_by(agents.c.created_at, agents.c.agent_id)
        async with self._database.read() as connection:
            return [
                Agent(agent_id=row.agent_id, agent_config=_config(row.config), created_at=row.created_at)
                for row in await connection.execute(query)
            ]

    async def get(self, agent_id: str) -> Agent:
        """Raises NotFound."""
        query = select(agents).where(agents.c.agent_id == agent_id.replace("\0", ""))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise NotFound("agent", agent_id)
        return Agent(agent_id=agent_id, agent_config=_config(row.config), created_at=row.created_at)

    async def delete(self, agent_id: str) -> None:
        """With its sessions and turns. Raises NotFound."""
        await self.get(agent_id)
        sessions = await self.sessions(agent_id)
        async with self._database.write() as connection:
            await connection.execute(delete(agents).where(agents.c.agent_id == agent_id))
        for session in sessions:
            await self._documents.forget(session.session_id)

    async def create_session(self, agent_id: str, name: str) -> str:
        """The new session's id. Raises NotFound."""
        if len(name) > MAX_NAME or "\0" in name:
            raise BadRequest(f"session_name has up to {MAX_NAME} characters, and no NUL")
        session_id = str(uuid4())
        row = {
            "session_id": session_id,
            "agent_id": agent_id,
            "name": name,
            "turns": 0,
            "started_at": datetime.now(UTC),
        }
        try:
            async with self._database.write() as connection:
                await connection.execute(insert(agent_sessions).values(row))
        except IntegrityError:
            raise NotFound("agent", agent_id) from None
        return session_id

    async def sessions(self, agent_id: str) -> Sequence[Session]:
        """Without their turns, the oldest first. Raises NotFound."""
        query = select(agent_sessions).where(agent_sessions.c.agent_id == agent_id)
        async with self._database.read() as connection:
            rows = (await connection.execute(query.order_by(agent_sessions.c.started_at))).all()
        if not rows:
            await self.get(agent_id)
        return [
            Session(session_id=row.session_id, session_name=row.name, turns=[], started_at=row.started_at)
            for row in rows
        ]

    async def session(self, agent_id: str, session_id: str) -> tuple[Session, AgentConfig]:
        """A session without its turns, and its agent's configuration. Raises NotFound."""
        if "\0" in session_id:
            raise NotFound("session", session_id)
        ids = {"session_id": session_id, "agent_id": agent_id}
        row = await self._database.query(lambda connection: connection.execute(_SESSION, ids).one_or_none())
        if row is None:
            await self.get(agent_id)
            raise NotFound("session", session_id)
        session = Session(session_id=session_id, session_name=row.name, turns=[], started_at=row.started_at)
        return session, _config(row.config)

    async def delete_session(self, agent_id: str, session_id: str) -> None:
        """With its turns, files and documents. Raises NotFound."""
        await self.session(agent_id, session_id)
        async with self._database.write() as connection:
            await connection.execute(delete(agent_sessions).where(agent_sessions.c.session_id == session_id))
        await self._documents.forget(session_id)


def tool_config_of(config: AgentConfig) -> ToolConfig | None:
    """How an agent uses its tools. Raises BadRequest for fields that contradict each other."""
    return merged(config.tool_config, config.tool_choice, config.tool_prompt_format)


def _config(body: str) -> AgentConfig:
    return AgentConfig.model_validate_json(body)
