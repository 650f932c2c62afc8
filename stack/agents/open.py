"""What a process needs to run agents, put together."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from stack.agents.agents import Agents
from stack.agents.documents import Documents
from stack.agents.files import SessionFiles
from stack.agents.records import Records
from stack.agents.run import Parts
from stack.agents.turns import Services, Turns
from stack.engine.base import Meter
from stack.files.files import Files
from stack.models.serving import Serving
from stack.rag.rag import Rag
from stack.safety.shields import Shields
from stack.settings import Settings
from stack.store.database import Database
from stack.store.model_status import ModelStatuses
from stack.store.presence import open_presence
from stack.tools.tools import Tools
from stack.vector.databases import VectorDatabases


@asynccontextmanager
async def open_agents(
    settings: Settings,
    database: Database,
    statuses: ModelStatuses,
    serving: Serving,
    files: Files,
    vector_dbs: VectorDatabases,
    rag: Rag,
    tools: Tools,
    shields: Shields,
    meter: Meter,
) -> AsyncGenerator[tuple[Agents, Turns]]:
    """The turns that still run at the end are stopped, and say so."""
    async with open_presence(database) as presence:
        session_files = SessionFiles(database)
        documents = Documents(settings, files, rag, vector_dbs, statuses, session_files)
        agents = Agents(database, statuses, tools, shields, documents)
        turns = Turns(
            Services(
                agents=agents,
                tools=tools,
                documents=documents,
                serving=serving,
                presence=presence,
                parts=Parts(Records(database, presence.owner), shields, session_files, meter),
            ),
            settings.agent_wait_s,
        )
        try:
            yield agents, turns
        finally:
            await turns.close()
