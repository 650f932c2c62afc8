"""From a model's id to something that can be called, for routes, vector databases and jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx

from stack.engine.base import Inference
from stack.engine.remote.openai import OpenAIModel, api_key
from stack.errors import BadRequest, NotReady
from stack.models import adapters
from stack.models.registration import to_args
from stack.models.traced import traced
from stack.schemas.models import Model, ModelType
from stack.settings import Settings
from stack.store.model_status import ModelStatus, ModelStatuses
from stack.tracing import content_allowed


class Serving:
    """The models that can be called now."""

    def __init__(
        self,
        settings: Settings,
        statuses: ModelStatuses,
        remote: httpx.AsyncClient,
        inference: Callable[..., Inference],
    ) -> None:
        """`remote` is the client to OpenAI-compatible endpoints. `inference` gives a replicated model by its
        id, and by its id and an `Adapter` the model with the adapter."""
        self._settings, self._statuses = settings, statuses
        self._remote, self._inference = remote, inference

    async def __call__(
        self, model_id: str, model_type: ModelType, provider_data: Mapping[str, Any] | None = None
    ) -> Inference:
        """Raises NotFound, NotReady, or BadRequest for a model of the other type.

        A model behind a remote endpoint is called from this process, with the request's own keys.
        """
        return (await self.open(model_id, model_type, provider_data))[0]

    async def open(
        self, model_id: str, model_type: ModelType, provider_data: Mapping[str, Any] | None = None
    ) -> tuple[Inference, int | None]:
        """As a call, and how many tokens the model reads, if that is known."""
        model, status = await self._statuses.find(model_id)
        if model.model_type != model_type:
            raise BadRequest(_WRONG_TYPE[model_type].format(model_id))
        if model.provider_id == "openai":
            args = to_args(model)
            key = api_key(args, self._settings, provider_data or {})
            return self._traced(OpenAIModel(args, self._remote, key), model_id), _context_length(model, {})
        base_id = adapters.base_of(model)
        if base_id is not None:
            adapter, status = await adapters.resolve(self._statuses, model, base_id)
        if status is None or status.state != "ready":
            raise _not_ready(model_id, status)
        length = _context_length(model, status.description)
        if base_id is not None:
            return self._traced(self._inference(base_id, adapter), model_id), length
        return self._traced(self._inference(model_id), model_id), length

    def _traced(self, model: Inference, model_id: str) -> Inference:
        allowed = content_allowed()
        return traced(model, model_id, self._settings.telemetry_content if allowed is None else allowed)

    async def find(self, model_id: str) -> tuple[Model, ModelStatus | None]:
        """A model, and what is known of how it is served. Raises NotFound."""
        return await adapters.find(self._statuses, model_id)


_WRONG_TYPE = {
    "llm": "model {!r} is an embedding model, which does not generate text: ask it for embeddings",
    "embedding": "model {!r} is a text model, which gives no embeddings: GET /v1/models names those "
    "with model_type embedding",
}


def _context_length(model: Model, description: Mapping[str, Any]) -> int | None:
    length = description.get("context_length") or model.metadata.get("context_length")
    return length if isinstance(length, int) else None


def _not_ready(model_id: str, status: ModelStatus | None) -> NotReady:
    state, detail = (status.state, status.detail) if status else ("pending", None)
    reason = f": {detail}" if detail else ""
    if state == "failed":
        return NotReady(f"model {model_id!r} failed to start{reason}", None)
    return NotReady(f"model {model_id!r} is not ready yet, it is {state}{reason}")
