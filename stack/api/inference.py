"""Inference: completion, chat completion and embeddings."""

from __future__ import annotations

from collections.abc import Awaitable

from pydantic import BaseModel
from starlette.responses import Response

from stack.api.openapi import events_of
from stack.api.routing import api_router
from stack.context import CurrentStack, ProviderData
from stack.engine.fold import fold_chat_completion, fold_completion
from stack.engine.tool_config import with_tool_config
from stack.schemas.inference import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionResponseStreamChunk,
    CompletionRequest,
    CompletionResponse,
    CompletionResponseStreamChunk,
    EmbeddingsRequest,
    EmbeddingsResponse,
)
from stack.sse import event_stream

router = api_router("Inference")


@router.post(
    "/v1/inference/completion",
    response_model=CompletionResponse,
    responses=events_of(CompletionResponseStreamChunk),
)
async def completion(
    request: CompletionRequest, stack: CurrentStack, provider_data: ProviderData
) -> Response:
    """Complete a text. With `stream`, the answer comes as server-sent events while it is generated."""
    model = await stack.serving(request.model_id, "llm", provider_data)
    chunks = model.completion(request)
    return await (event_stream(chunks) if request.stream else _answer(fold_completion(chunks)))


@router.post(
    "/v1/inference/chat-completion",
    response_model=ChatCompletionResponse,
    responses=events_of(ChatCompletionResponseStreamChunk),
)
async def chat_completion(
    request: ChatCompletionRequest, stack: CurrentStack, provider_data: ProviderData
) -> Response:
    """Answer a conversation. With `stream`, the answer comes as server-sent events while it is generated."""
    request = with_tool_config(request)
    model = await stack.serving(request.model_id, "llm", provider_data)
    chunks = model.chat_completion(request)
    return await (event_stream(chunks) if request.stream else _answer(fold_chat_completion(chunks)))


@router.post("/v1/inference/embeddings", response_model=EmbeddingsResponse)
async def embeddings(
    request: EmbeddingsRequest, stack: CurrentStack, provider_data: ProviderData
) -> Response:
    """Embed texts or images: one vector per content."""
    model = await stack.serving(request.model_id, "embedding", provider_data)
    return await _answer(model.embeddings(request))


async def _answer(answer: Awaitable[BaseModel]) -> Response:
    """Written at once: FastAPI would validate the answer again, thousands of numbers for embeddings."""
    return Response((await answer).model_dump_json(), media_type="application/json")
