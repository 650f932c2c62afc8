from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from stack.context import Stack
from stack.schemas.agents import AgentTurnResponseStreamChunk, Turn
from tests.agents.instant import InstantModel, LocalTools, add_local_tools
from tests.api.conftest import app, client, settings, stack

__all__ = ["app", "client", "settings", "stack"]

CHUNK: TypeAdapter[AgentTurnResponseStreamChunk] = TypeAdapter(AgentTurnResponseStreamChunk)


@pytest.fixture
def fake() -> InstantModel:
    return InstantModel()


@pytest.fixture
async def local(stack: Stack) -> LocalTools:
    return await add_local_tools(stack)


class Talk:
    """A session with an agent, over HTTP."""

    def __init__(self, client: httpx.AsyncClient, agent_id: str, session_id: str) -> None:
        self.client, self.agent_id, self.session_id = client, agent_id, session_id
        self.url = f"/v1/agents/{agent_id}/session/{session_id}"

    async def say(self, text: str, **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], **fields}
        return await self.client.post(f"{self.url}/turn", json=body)

    async def turn(self, text: str, **fields: Any) -> Turn:
        response = await self.say(text, **fields)
        assert response.status_code == 200, response.text
        return Turn.model_validate_json(response.content)

    async def stream(self, text: str, **fields: Any) -> list[Any]:
        """The events' payloads."""
        return payloads(await self.say(text, stream=True, **fields))

    async def resume(self, turn_id: str, responses: list[dict[str, Any]], **fields: Any) -> httpx.Response:
        body = {"tool_responses": responses, **fields}
        return await self.client.post(f"{self.url}/turn/{turn_id}/resume", json=body)

    async def read(self) -> dict[str, Any]:
        response = await self.client.get(self.url)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found


def payloads(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    return [CHUNK.validate_json(line).event.payload for line in lines]


async def open_talk(client: httpx.AsyncClient, **config: Any) -> Talk:
    body = {"agent_config": {"model": "tiny", "instructions": "Be brief.", **config}}
    created = await client.post("/v1/agents", json=body)
    assert created.status_code == 200, created.text
    agent_id = created.json()["agent_id"]
    session = await client.post(f"/v1/agents/{agent_id}/session", json={"session_name": "a talk"})
    return Talk(client, agent_id, session.json()["session_id"])


@pytest.fixture
async def talk(client: httpx.AsyncClient, local: LocalTools) -> Talk:
    """With an agent that has the local tools."""
    return await open_talk(client, toolgroups=["local"])
