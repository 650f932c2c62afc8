"""Inference: completion, chat completion and embeddings."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag
from typing_extensions import TypeAliasType

from stack.schemas.common import Schema
from stack.schemas.content import ContentDelta, InterleavedContent, InterleavedContentItem
from stack.schemas.messages import (
    CompletionMessage,
    Message,
    StopReason,
    ToolChoice,
    ToolConfig,
    ToolDefinition,
    ToolPromptFormat,
)
from stack.schemas.sampling import ResponseFormat, SamplingParams


class LogProbConfig(Schema):
    top_k: int = Field(0, ge=0, description="How many tokens to report for each position")


class TokenLogProbs(Schema):
    """Log probabilities at one position."""

    logprobs_by_token: dict[str, float]


class MetricInResponse(Schema):
    metric: str
    value: int | float
    unit: str | None = None


class CompletionRequest(Schema):
    model_id: str
    content: InterleavedContent
    sampling_params: SamplingParams | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = Field(None, description="Answer with server-sent events. Default: false")
    logprobs: LogProbConfig | None = None


class CompletionResponse(Schema):
    metrics: list[MetricInResponse] | None = None
    content: str
    stop_reason: StopReason
    logprobs: list[TokenLogProbs] | None = Field(None, description="One for each generated token")


class CompletionResponseStreamChunk(Schema):
    metrics: list[MetricInResponse] | None = None
    delta: str = Field(description="Text since the last chunk: one token or more")
    stop_reason: StopReason | None = None
    logprobs: list[TokenLogProbs] | None = None


class ChatCompletionRequest(Schema):
    model_id: str
    messages: list[Message] = Field(min_length=1)
    sampling_params: SamplingParams | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolChoice | None = Field(None, description="Deprecated: use tool_config")
    tool_prompt_format: ToolPromptFormat | None = Field(None, description="Deprecated: use tool_config")
    response_format: ResponseFormat | None = None
    stream: bool | None = Field(None, description="Answer with server-sent events. Default: false")
    logprobs: LogProbConfig | None = None
    tool_config: ToolConfig | None = None


class ChatCompletionResponse(Schema):
    metrics: list[MetricInResponse] | None = None
    completion_message: CompletionMessage
    logprobs: list[TokenLogProbs] | None = Field(None, description="One for each generated token")


ChatCompletionResponseEventType = TypeAliasType(
    "ChatCompletionResponseEventType", Literal["start", "complete", "progress"]
)


class ChatCompletionResponseEvent(Schema):
    event_type: ChatCompletionResponseEventType
    delta: ContentDelta = Field(description="What was generated since the last event")
    logprobs: list[TokenLogProbs] | None = None
    stop_reason: StopReason | None = None


class ChatCompletionResponseStreamChunk(Schema):
    metrics: list[MetricInResponse] | None = None
    event: ChatCompletionResponseEvent


TextTruncation = TypeAliasType("TextTruncation", Literal["none", "start", "end"])
EmbeddingTaskType = TypeAliasType("EmbeddingTaskType", Literal["query", "document"])


def _kind(contents: Any) -> str | None:
    """All strings or all items; the first one decides."""
    if not isinstance(contents, list):
        return None
    return "strings" if not contents or isinstance(contents[0], str) else "items"


class EmbeddingsRequest(Schema):
    model_id: str
    contents: Annotated[
        Annotated[list[str], Tag("strings")] | Annotated[list[InterleavedContentItem], Tag("items")],
        Discriminator(
            _kind,
            custom_error_type="contents_type",
            custom_error_message="Contents should be a list of strings or a list of content items",
        ),
    ]
    text_truncation: TextTruncation | None = Field(
        None, description="Which end of a text that is too long is cut off; none refuses it. Default: none"
    )
    output_dimension: int | None = Field(None, ge=1, description="For Matryoshka models: a shorter vector")
    task_type: EmbeddingTaskType | None = Field(None, description="For models that treat the two differently")


class EmbeddingsResponse(Schema):
    embeddings: list[list[float]] = Field(description="One vector per content")
