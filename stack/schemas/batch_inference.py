"""Batch inference: many completions in one request."""

from pydantic import Field

from stack.schemas.common import Schema
from stack.schemas.content import InterleavedContent
from stack.schemas.inference import ChatCompletionResponse, CompletionResponse, LogProbConfig
from stack.schemas.messages import Message, ToolChoice, ToolDefinition, ToolPromptFormat
from stack.schemas.sampling import ResponseFormat, SamplingParams


class BatchCompletionRequest(Schema):
    model: str
    content_batch: list[InterleavedContent]
    sampling_params: SamplingParams | None = None
    response_format: ResponseFormat | None = None
    logprobs: LogProbConfig | None = None


class BatchCompletionResponse(Schema):
    batch: list[CompletionResponse] = Field(description="In the order of the request")


class BatchChatCompletionRequest(Schema):
    model: str
    messages_batch: list[list[Message]]
    sampling_params: SamplingParams | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: ToolChoice | None = None
    tool_prompt_format: ToolPromptFormat | None = None
    response_format: ResponseFormat | None = None
    logprobs: LogProbConfig | None = None


class BatchChatCompletionResponse(Schema):
    batch: list[ChatCompletionResponse] = Field(description="In the order of the request")
