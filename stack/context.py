"""Stack: all that a route may use, and the dependencies that hand it over."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import httpx
from fastapi import Depends, Request
from pydantic_core import from_json

from stack.engine.base import Inference
from stack.engine.remote.openai import OpenAIModel, api_key, open_client
from stack.errors import BadRequest, NotReady
from stack.models.registration import to_args
from stack.schemas.models import Model, ModelType
from stack.settings import Settings, get_settings
from stack.store.database import Database, open_database
from stack.store.model_status import ModelStatus, ModelStatuses
from stack.store.registry import Registry


@dataclass(frozen=True, slots=True)
class Stack:
    settings: Settings
    database: Database
    models: Registry[Model]
    model_status: ModelStatuses
    remote: httpx.AsyncClient  # to models behind OpenAI-compatible endpoints
    inference: Callable[[str], Inference]  # of a model that replicas serve, by its id

    async def serving(
        self, model_id: str, model_type: ModelType, provider_data: Mapping[str, Any] | None = None
    ) -> Inference:
        """A model that can be called. Raises NotFound, NotReady, or BadRequest for one of the other type.

        A model behind a remote endpoint is called from this process, with the request's own keys.
        """
        model, status = await self.model_status.find(model_id)
        if model.model_type != model_type:
            raise BadRequest(_WRONG_TYPE[model_type].format(model_id))
        if model.provider_id == "openai":
            args = to_args(model)
            return OpenAIModel(args, self.remote, api_key(args, self.settings, provider_data or {}))
        if status is None or status.state != "ready":
            raise _not_ready(model_id, status)
        return self.inference(model_id)


_WRONG_TYPE = {
    "llm": "model {!r} is an embedding model, which does not generate text: ask it for embeddings",
    "embedding": "model {!r} is a text model, which gives no embeddings: GET /v1/models names those "
    "with model_type embedding",
}


def _not_ready(model_id: str, status: ModelStatus | None) -> NotReady:
    state, detail = (status.state, status.detail) if status else ("pending", None)
    reason = f": {detail}" if detail else ""
    if state == "failed":
        return NotReady(f"model {model_id!r} failed to start{reason}", None)
    return NotReady(f"model {model_id!r} is not ready yet, it is {state}{reason}")


def no_inference(model_id: str) -> Inference:
    """What a process without a cluster answers, e.g. one that only shows the API's documentation."""
    raise NotReady(f"model {model_id!r} is not served here: start the server with `stack up`", None)


@asynccontextmanager
async def open_stack(
    settings: Settings | None = None,
    inference: Callable[[str], Inference] = no_inference,
    session: str | None = None,
) -> AsyncGenerator[Stack]:
    """Open the stores; everything is closed again at the end. `session` is the running cluster's."""
    settings = settings or get_settings()
    async with open_database(settings) as database, open_client(settings) as remote:
        models, statuses = Registry(database, Model), ModelStatuses(database, session)
        yield Stack(settings, database, models, statuses, remote, inference)


# Dependencies are async, since FastAPI calls others in a thread.
async def _stack(request: Request) -> Stack:
    stack: Stack = request.app.state.stack
    return stack


async def _models(request: Request) -> Registry[Model]:
    return (await _stack(request)).models


async def _model_status(request: Request) -> ModelStatuses:
    return (await _stack(request)).model_status


async def _provider_data(request: Request) -> Mapping[str, Any]:
    """Per-request keys for remote engines and tools. Never logged, never stored."""
    header = request.headers.get("x-llamastack-provider-data")
    if header is None:
        return {}
    try:
        data = from_json(header, allow_inf_nan=False)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise BadRequest(
            "the header X-LlamaStack-Provider-Data is not a JSON object; "
            'write e.g. {"openai_api_key": "…"} or leave it out'
        )
    return data


CurrentStack = Annotated[Stack, Depends(_stack)]
Models = Annotated[Registry[Model], Depends(_models)]
Statuses = Annotated[ModelStatuses, Depends(_model_status)]
ProviderData = Annotated[Mapping[str, Any], Depends(_provider_data)]
