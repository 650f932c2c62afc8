"""Agents: their configuration, sessions, turns, steps, and the events of a streamed turn."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag
from typing_extensions import TypeAliasType

from stack.schemas.common import DateTime, JsonObject, Schema
from stack.schemas.content import BuiltinTool, ContentDelta, DocumentContent, InterleavedContent, ToolCall
from stack.schemas.messages import (
    CompletionMessage,
    ToolChoice,
    ToolConfig,
    ToolPromptFormat,
    ToolResponseMessage,
    UserMessage,
)
from stack.schemas.safety import SafetyViolation
from stack.schemas.sampling import ResponseFormat, SamplingParams
from stack.schemas.tools import ToolDef


class AgentToolGroupWithArgs(Schema):
    name: str
    args: JsonObject


def _tool_kind(tool: Any) -> str:
    return "name" if isinstance(tool, str) else "with_args"


AgentTool = TypeAliasType(
    "AgentTool",
    Annotated[
        Annotated[str, Tag("name")] | Annotated[AgentToolGroupWithArgs, Tag("with_args")],
        Discriminator(_tool_kind),
    ],
)


class AgentConfig(Schema):
    sampling_params: SamplingParams | None = None
    input_shields: list[str] | None = None
    output_shields: list[str] | None = None
    toolgroups: list[AgentTool] | None = None
    client_tools: list[ToolDef] | None = Field(None, description="Tools that the client runs")
    tool_choice: ToolChoice | None = Field(None, json_schema_extra={"deprecated": True})
    tool_prompt_format: ToolPromptFormat | None = Field(None, json_schema_extra={"deprecated": True})
    tool_config: ToolConfig | None = None
    max_infer_iters: int = Field(10, ge=1, description="Model calls in one turn, at most")
    model: str
    instructions: str = Field(description="The system message")
    enable_session_persistence: bool = False
    response_format: ResponseFormat | None = None


class Agent(Schema):
    agent_id: str
    agent_config: AgentConfig
    created_at: DateTime


class CreateAgentRequest(Schema):
    agent_config: AgentConfig


class AgentCreateResponse(Schema):
    agent_id: str


class ListAgentsResponse(Schema):
    data: list[Agent]


class ToolResponse(Schema):
    """What a tool answered to a call."""

    call_id: str
    tool_name: BuiltinTool | str
    content: InterleavedContent
    metadata: JsonObject | None = None


StepType = TypeAliasType(
    "StepType", Literal["inference", "tool_execution", "shield_call", "memory_retrieval"]
)


class _Step(Schema):
    turn_id: str
    step_id: str
    started_at: DateTime | None = None
    completed_at: DateTime | None = None


class InferenceStep(_Step):
    """The model answered."""

    step_type: Literal["inference"] = "inference"
    model_response: CompletionMessage


class ToolExecutionStep(_Step):
    """Tools ran."""

    step_type: Literal["tool_execution"] = "tool_execution"
    tool_calls: list[ToolCall]
    tool_responses: list[ToolResponse]


class ShieldCallStep(_Step):
    """Shields checked messages; `violation` is absent if they found nothing."""

    step_type: Literal["shield_call"] = "shield_call"
    violation: SafetyViolation | None = None


class MemoryRetrievalStep(_Step):
    """Context was retrieved from vector stores."""

    step_type: Literal["memory_retrieval"] = "memory_retrieval"
    vector_db_ids: str
    inserted_context: InterleavedContent


Step = Annotated[
    InferenceStep | ToolExecutionStep | ShieldCallStep | MemoryRetrievalStep,
    Field(discriminator="step_type"),
]


class AgentStepResponse(Schema):
    step: Step


class Document(Schema):
    """A document to be used by an agent."""

    content: DocumentContent
    mime_type: str


class Attachment(Schema):
    """An attachment to an agent turn."""

    content: DocumentContent
    mime_type: str


InputMessage = Annotated[UserMessage | ToolResponseMessage, Field(discriminator="role")]


class Turn(Schema):
    """A single turn in an interaction with an Agentic System."""

    turn_id: str
    session_id: str
    input_messages: list[InputMessage]
    steps: list[Step]
    output_message: CompletionMessage
    output_attachments: list[Attachment] | None = None
    started_at: DateTime
    completed_at: DateTime | None = None


class CreateAgentTurnRequest(Schema):
    messages: list[InputMessage]
    stream: bool | None = Field(None, description="Answer with server-sent events. Default: false")
    documents: list[Document] | None = None
    toolgroups: list[AgentTool] | None = Field(None, description="In addition to the agent's")
    tool_config: ToolConfig | None = Field(None, description="Instead of the agent's")


class ResumeAgentTurnRequest(Schema):
    tool_responses: list[ToolResponse]
    stream: bool | None = Field(None, description="Answer with server-sent events. Default: false")


class Session(Schema):
    """A single session of an interaction with an Agentic System."""

    session_id: str
    session_name: str
    turns: list[Turn]
    started_at: DateTime


class CreateAgentSessionRequest(Schema):
    session_name: str


class AgentSessionCreateResponse(Schema):
    session_id: str


class ListAgentSessionsResponse(Schema):
    data: list[Session]


class AgentTurnResponseStepStartPayload(Schema):
    event_type: Literal["step_start"] = "step_start"
    step_type: StepType
    step_id: str
    metadata: JsonObject | None = None


class AgentTurnResponseStepProgressPayload(Schema):
    event_type: Literal["step_progress"] = "step_progress"
    step_type: StepType
    step_id: str
    delta: ContentDelta


class AgentTurnResponseStepCompletePayload(Schema):
    event_type: Literal["step_complete"] = "step_complete"
    step_type: StepType
    step_id: str
    step_details: Step


class AgentTurnResponseTurnStartPayload(Schema):
    event_type: Literal["turn_start"] = "turn_start"
    turn_id: str


class AgentTurnResponseTurnCompletePayload(Schema):
    event_type: Literal["turn_complete"] = "turn_complete"
    turn: Turn


class AgentTurnResponseTurnAwaitingInputPayload(Schema):
    """The client must run tools and resume the turn."""

    event_type: Literal["turn_awaiting_input"] = "turn_awaiting_input"
    turn: Turn


AgentTurnResponseEventPayload = TypeAliasType(
    "AgentTurnResponseEventPayload",
    Annotated[
        AgentTurnResponseStepStartPayload
        | AgentTurnResponseStepProgressPayload
        | AgentTurnResponseStepCompletePayload
        | AgentTurnResponseTurnStartPayload
        | AgentTurnResponseTurnCompletePayload
        | AgentTurnResponseTurnAwaitingInputPayload,
        Field(discriminator="event_type"),
    ],
)


class AgentTurnResponseEvent(Schema):
    payload: AgentTurnResponseEventPayload


class AgentTurnResponseStreamChunk(Schema):
    event: AgentTurnResponseEvent
