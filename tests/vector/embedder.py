"""all-MiniLM-L6-v2 in this process, as replicas offer it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stack.engine.base import Priority
from stack.engine.embedding.model import EmbeddingModel
from stack.engine.embedding.vectors import Spans, Vectors, response_of
from stack.schemas.inference import EmbeddingsRequest, EmbeddingsResponse


class Embedder:
    """`Inference` of an embedding model, without replicas; counts its calls."""

    def __init__(self, model: EmbeddingModel) -> None:
        self._model = model
        self.priorities: list[Priority] = []

    async def embeddings(self, request: EmbeddingsRequest) -> EmbeddingsResponse:
        return response_of(await self.vectors(request))

    async def vectors(
        self, request: EmbeddingsRequest, priority: Priority = Priority.INTERACTIVE, whole: bool = False
    ) -> Vectors:
        self.priorities.append(priority)
        return await self._model.vectors(request, 0, priority, whole)

    async def token_spans(self, texts: Sequence[str]) -> list[Spans]:
        return await self._model.token_spans(texts)

    async def describe(self) -> dict[str, Any]:
        return await self._model.describe()

    def completion(self, request: Any) -> Any:
        raise NotImplementedError

    chat_completion = completion
