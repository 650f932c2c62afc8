"""The events of a turn, as clients of this API read them."""

from __future__ import annotations

from typing import Literal

from stack.schemas.agents import (
    AgentTurnResponseEvent,
    AgentTurnResponseEventPayload,
    AgentTurnResponseStepCompletePayload,
    AgentTurnResponseStepProgressPayload,
    AgentTurnResponseStepStartPayload,
    AgentTurnResponseStreamChunk,
    AgentTurnResponseTurnAwaitingInputPayload,
    AgentTurnResponseTurnCompletePayload,
    AgentTurnResponseTurnStartPayload,
    Step,
    Turn,
)
from stack.schemas.common import JsonObject
from stack.schemas.content import ContentDelta

Chunk = AgentTurnResponseStreamChunk
Kind = Literal["inference", "tool_execution", "shield_call"]


def turn_started(turn_id: str) -> Chunk:
    return _chunk(AgentTurnResponseTurnStartPayload(turn_id=turn_id))


def step_started(kind: Kind, step_id: str, metadata: JsonObject | None = None) -> Chunk:
    return _chunk(AgentTurnResponseStepStartPayload(step_type=kind, step_id=step_id, metadata=metadata))


def step_progressed(kind: Kind, step_id: str, delta: ContentDelta) -> Chunk:
    return _chunk(AgentTurnResponseStepProgressPayload(step_type=kind, step_id=step_id, delta=delta))


def step_completed(step: Step) -> Chunk:
    return _chunk(
        AgentTurnResponseStepCompletePayload(
            step_type=step.step_type, step_id=step.step_id, step_details=step
        )
    )


def turn_completed(turn: Turn) -> Chunk:
    return _chunk(AgentTurnResponseTurnCompletePayload(turn=turn))


def turn_awaits_input(turn: Turn) -> Chunk:
    return _chunk(AgentTurnResponseTurnAwaitingInputPayload(turn=turn))


def _chunk(payload: AgentTurnResponseEventPayload) -> Chunk:
    return AgentTurnResponseStreamChunk(event=AgentTurnResponseEvent(payload=payload))
