"""Agents: their sessions, turns and steps."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from stack.agents.documents import with_own_urls
from stack.agents.run import Run
from stack.api.openapi import events_of
from stack.api.routing import api_router
from stack.context import CurrentStack, ProviderData
from stack.schemas.agents import (
    Agent,
    AgentCreateResponse,
    AgentSessionCreateResponse,
    AgentStepResponse,
    AgentTurnResponseStreamChunk,
    CreateAgentRequest,
    CreateAgentSessionRequest,
    CreateAgentTurnRequest,
    ListAgentSessionsResponse,
    ListAgentsResponse,
    ResumeAgentTurnRequest,
    Session,
    Turn,
)
from stack.sse import event_stream

router = api_router("Agents")


@router.get("/v1/agents")
async def list_agents(stack: CurrentStack) -> ListAgentsResponse:
    """All agents, the oldest first."""
    return ListAgentsResponse(data=await stack.agents.list())


@router.post("/v1/agents")
async def create_agent(
    request: CreateAgentRequest, stack: CurrentStack, provider_data: ProviderData
) -> AgentCreateResponse:
    """Create an agent. Its model, tool groups and shields must be registered."""
    agent_id = await stack.agents.create(request.agent_config, provider_data)
    return AgentCreateResponse(agent_id=agent_id)


@router.get("/v1/agents/{agent_id}")
async def get_agent(agent_id: str, stack: CurrentStack) -> Agent:
    """Get an agent with its configuration."""
    return await stack.agents.get(agent_id)


@router.delete("/v1/agents/{agent_id}")
async def delete_agent(agent_id: str, stack: CurrentStack) -> None:
    """Delete an agent with its sessions and turns."""
    await stack.agents.delete(agent_id)


@router.post("/v1/agents/{agent_id}/session")
async def create_agent_session(
    agent_id: str, request: CreateAgentSessionRequest, stack: CurrentStack
) -> AgentSessionCreateResponse:
    """Begin a conversation with an agent."""
    session_id = await stack.agents.create_session(agent_id, request.session_name)
    return AgentSessionCreateResponse(session_id=session_id)


@router.get("/v1/agents/{agent_id}/sessions")
async def list_agent_sessions(agent_id: str, stack: CurrentStack) -> ListAgentSessionsResponse:
    """An agent's sessions, the oldest first and without their turns: read a session for those."""
    return ListAgentSessionsResponse(data=list(await stack.agents.sessions(agent_id)))


@router.get("/v1/agents/{agent_id}/session/{session_id}")
async def get_agents_session(
    agent_id: str,
    session_id: str,
    stack: CurrentStack,
    turn_ids: Annotated[list[str] | None, Query()] = None,
) -> Session:
    """Get a session with its turns, or with those of `turn_ids`."""
    return await stack.turns.session(agent_id, session_id, turn_ids)


@router.delete("/v1/agents/{agent_id}/session/{session_id}")
async def delete_agents_session(agent_id: str, session_id: str, stack: CurrentStack) -> None:
    """Delete a session with its turns, files and documents."""
    await stack.agents.delete_session(agent_id, session_id)


@router.post(
    "/v1/agents/{agent_id}/session/{session_id}/turn",
    response_model=Turn,
    responses=events_of(AgentTurnResponseStreamChunk),
)
async def create_agent_turn(
    agent_id: str,
    session_id: str,
    request: CreateAgentTurnRequest,
    stack: CurrentStack,
    provider_data: ProviderData,
    http: Request,
) -> Response:
    """Let the agent answer. With `stream`, its steps come as server-sent events.

    A session's turns run one after the other; one that waits too long for the others is answered with 429.
    """
    documents = with_own_urls(request.documents or [], str(http.base_url), stack.settings)
    request = request.model_copy(update={"documents": documents})
    run = await stack.turns.create(agent_id, session_id, request, provider_data)
    return await _answer(run, request.stream)


@router.post(
    "/v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}/resume",
    response_model=Turn,
    responses=events_of(AgentTurnResponseStreamChunk),
)
async def resume_agent_turn(
    agent_id: str,
    session_id: str,
    turn_id: str,
    request: ResumeAgentTurnRequest,
    stack: CurrentStack,
    provider_data: ProviderData,
) -> Response:
    """Go on with a turn that waits for the client's tools, with what they said: a response to each call."""
    run = await stack.turns.resume(agent_id, session_id, turn_id, request, provider_data)
    return await _answer(run, request.stream)


@router.get("/v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}")
async def get_agents_turn(agent_id: str, session_id: str, turn_id: str, stack: CurrentStack) -> Turn:
    """Get a turn, as far as it has come. One without `completed_at` runs, or waits for its client's tools."""
    return await stack.turns.turn(agent_id, session_id, turn_id)


@router.get("/v1/agents/{agent_id}/session/{session_id}/turn/{turn_id}/step/{step_id}")
async def get_agents_step(
    agent_id: str, session_id: str, turn_id: str, step_id: str, stack: CurrentStack
) -> AgentStepResponse:
    """Get a step of a turn."""
    return AgentStepResponse(step=await stack.turns.step(agent_id, session_id, turn_id, step_id))


async def _answer(run: Run, stream: bool | None) -> Response:
    if stream:
        return await event_stream(run.events())
    return Response((await run.turn()).model_dump_json(), media_type="application/json")
