"""Tools: which tool groups there are, which tools they have, and calling one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from stack.rag.rag import Rag
from stack.sandbox.sandbox import Sandbox
from stack.schemas.agents import AgentTool
from stack.schemas.common import JsonObject
from stack.schemas.tools import ToolInvocationResult
from stack.settings import Settings
from stack.store.database import Database
from stack.tools.base import BoundTool, CallContext


class Tools:
    async def check(self, toolgroups: Sequence[AgentTool]) -> None:
        """Raises BadRequest for a group, or a tool of a group, that is not there.

        No server is asked but one whose tool is named by itself.
        """
        raise NotImplementedError

    async def bind(
        self, toolgroups: Sequence[AgentTool], provider_data: Mapping[str, Any]
    ) -> Sequence[BoundTool]:
        """The tools that an agent's `toolgroups` name, each once: "group", "group/tool", or with arguments.

        Raises BadRequest for an unknown one. The tools of a server that does not answer are left out.
        """
        raise NotImplementedError

    async def call(
        self, tool: BoundTool, arguments: JsonObject, context: CallContext
    ) -> ToolInvocationResult:
        """Never raises a StackError: a call that fails or takes too long is a result that says so."""
        raise NotImplementedError


@asynccontextmanager
async def open_tools(
    settings: Settings, database: Database, rag: Rag, sandbox: Sandbox
) -> AsyncGenerator[Tools]:
    yield Tools()
