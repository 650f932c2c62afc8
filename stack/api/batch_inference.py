"""BatchInference: many completions in one request."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from stack.api.routing import api_router
from stack.batch.answers import Asked, chat_completion_of, completion_of
from stack.context import CurrentStack, ProviderData
from stack.schemas.batch_inference import (
    BatchChatCompletionRequest,
    BatchChatCompletionResponse,
    BatchCompletionRequest,
    BatchCompletionResponse,
)

router = api_router("BatchInference")


@router.post("/v1/batch-inference/completion", response_model=BatchCompletionResponse)
async def batch_completion(
    request: BatchCompletionRequest, stack: CurrentStack, provider_data: ProviderData
) -> Response:
    """Complete many texts, in their order. An item that fails has the metric `error`: its status and reason.

    Above 200 items a job does it: while it works the answer is 503, and the same request again waits for it.
    """
    asked = Asked(operation="completion", options=_options(request, "content_batch"))
    rows = await asyncio.to_thread(_rows, request, "content_batch", "content")
    results = await stack.batches.answer(asked, rows, provider_data)
    return await asyncio.to_thread(
        lambda: _answer(BatchCompletionResponse(batch=[completion_of(result) for result in results]))
    )


@router.post("/v1/batch-inference/chat-completion", response_model=BatchChatCompletionResponse)
async def batch_chat_completion(
    request: BatchChatCompletionRequest, stack: CurrentStack, provider_data: ProviderData
) -> Response:
    """Answer many conversations, in their order. Else as batch completion."""
    asked = Asked(operation="chat-completion", options=_options(request, "messages_batch"))
    rows = await asyncio.to_thread(_rows, request, "messages_batch", "messages")
    results = await stack.batches.answer(asked, rows, provider_data)
    return await asyncio.to_thread(
        lambda: _answer(BatchChatCompletionResponse(batch=[chat_completion_of(result) for result in results]))
    )


def _options(request: BaseModel, items: str) -> dict[str, Any]:
    options = request.model_dump(mode="json", exclude={items}, exclude_none=True)
    return {"model_id": options.pop("model"), **options}


def _rows(request: BaseModel, items: str, column: str) -> list[dict[str, Any]]:
    return [{column: item} for item in request.model_dump(mode="json", include={items})[items]]


def _answer(response: BaseModel) -> Response:
    """Written at once: FastAPI would validate it again."""
    return Response(response.model_dump_json(exclude_none=True), media_type="application/json")
