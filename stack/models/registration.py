"""A RegisterModelRequest -> a checked Model, and a Model -> how it is served.

A model's source is `provider_model_id`, or else the `model_id` itself (see `stack.models.sources`). For an
OpenAI-compatible endpoint the source is its base URL and, after `#`, the model's name there:
`https://host/v1#name`; without `#name` it is the `model_id`. Keys of `metadata` that are fields of ModelArgs
set how the model is served, `base_model` makes it a LoRA adapter of that model (`stack.models.adapters`);
all others are kept and mean nothing here.
"""

from __future__ import annotations

import asyncio
from typing import Any, get_args

import httpx
from pydantic import ValidationError

from stack.engine.remote.openai import OpenAIModel, api_key, open_client
from stack.errors import BadRequest, StackError
from stack.models import adapters, sources
from stack.models.args import SERVING_FIELDS, ModelArgs, ProviderId
from stack.models.endpoint import Endpoint
from stack.models.folders import Facts
from stack.schemas.models import Model, ModelType, RegisterModelRequest
from stack.settings import Settings
from stack.store.model_status import ModelStatuses

_KINDS = {"transformers": ("llm",), "sentence-transformers": ("embedding",), "openai": ("llm", "embedding")}
_DEFAULT_CONTEXT = 8192
_ENDPOINT_TIMEOUT_S = 4.0


async def check(request: RegisterModelRequest, settings: Settings, statuses: ModelStatuses) -> Model:
    """The model to register; BadRequest, within seconds, when it could not be served."""
    source = request.provider_model_id or request.model_id
    metadata = dict(request.metadata or {})
    provider = request.provider_id or ("openai" if source.startswith(("http://", "https://")) else None)
    if provider is not None and provider not in get_args(ProviderId):
        raise BadRequest(
            f"there is no model provider {provider!r}, only {', '.join(get_args(ProviderId))}; without "
            "provider_id the source decides"
        )
    if "base_model" in metadata and provider in (None, "transformers"):
        return await adapters.check(request, metadata["base_model"], source, settings, statuses)
    # Cheap checks go before those that may ask the network.
    _serving_args(metadata)
    if provider == "openai":
        facts = await _check_endpoint(request, source, settings)
    else:
        facts = await sources.check(source, settings)
    if facts.kind == "adapter":
        raise BadRequest(
            f"{source} is a LoRA adapter: set metadata.base_model to the id of the registered model that it "
            "was trained on"
        )
    model_type = request.model_type or _type_of(facts) or ("llm" if provider == "openai" else None)
    if model_type is None:
        raise BadRequest(
            f"what {source} holds is known only once it is downloaded; say model_type 'llm' or 'embedding'"
        )
    provider = provider or ("sentence-transformers" if model_type == "embedding" else "transformers")
    _check_type(source, provider, model_type, facts)
    return Model(
        identifier=request.model_id,
        provider_resource_id=source,
        provider_id=provider,
        model_type=model_type,
        metadata=_filled(metadata, source, model_type, facts),
    )


async def _check_endpoint(request: RegisterModelRequest, source: str, settings: Settings) -> Facts:
    """Whether anything answers there, and an embedding model's dimension."""
    args = ModelArgs(
        model_id=request.model_id, source=source, provider_id="openai", model_type=request.model_type or "llm"
    )
    endpoint = Endpoint.parse(source, request.model_id)
    try:
        async with asyncio.timeout(_ENDPOINT_TIMEOUT_S), open_client(settings) as client:
            # What it answers does not matter: a key may come with each request only.
            async with client.stream("GET", f"{endpoint.base_url}/models"):
                pass
            if args.model_type == "llm" or "embedding_dimension" in (request.metadata or {}):
                return Facts()
            described = await OpenAIModel(args, client, api_key(args, settings, {})).describe()
            return Facts(kind="embedding", embedding_dimension=described["embedding_dimension"])
    except (httpx.HTTPError, TimeoutError) as error:
        raise BadRequest(
            f"{endpoint.base_url} cannot be reached; start it, or correct the URL, and register again"
        ) from error
    except StackError as error:
        if args.model_type == "llm":
            raise
        raise BadRequest(
            f"{error}. Or set metadata.embedding_dimension, then nothing is asked now"
        ) from error


def to_args(model: Model) -> ModelArgs:
    """How a registered model is served."""
    return ModelArgs.model_validate(
        {
            "model_id": model.identifier,
            "source": model.provider_resource_id,
            "model_type": model.model_type,
            "provider_id": model.provider_id,
            "metadata": model.metadata,
            **_serving_args(model.metadata),
        }
    )


def _serving_args(metadata: dict[str, Any]) -> dict[str, Any]:
    """The part of `metadata` that says how the model is served, checked."""
    args = {key: value for key, value in metadata.items() if key in SERVING_FIELDS}
    try:
        checked = ModelArgs.model_validate({"model_id": "-", "source": "-", **args})
    except ValidationError as error:
        first = error.errors()[0]
        name, given = ".".join(str(part) for part in first["loc"]), first["input"]
        raise BadRequest(f"metadata.{name}: {first['msg']}, not {given!r}") from error
    if checked.min_replicas > checked.max_replicas:
        raise BadRequest(
            f"metadata.min_replicas is {checked.min_replicas}, above max_replicas ({checked.max_replicas})"
        )
    return args


def _type_of(facts: Facts) -> ModelType | None:
    """The API has two types of models; a classifier is an `llm`, which reads text."""
    if facts.kind is None:
        return None
    return "embedding" if facts.kind == "embedding" else "llm"


def _check_type(source: str, provider: str, model_type: str, facts: Facts) -> None:
    if model_type not in _KINDS[provider]:
        raise BadRequest(
            f"provider {provider!r} serves models of type {_KINDS[provider][0]!r}, not {model_type!r}; "
            "leave provider_id out to have it chosen"
        )
    if facts.kind == "embedding" and model_type == "llm":
        raise BadRequest(f"{source} is an embedding model; register it with model_type 'embedding'")
    if facts.kind == "classifier" and model_type == "embedding":
        raise BadRequest(f"{source} is a classifier, which gives no embeddings; leave model_type out")


def _filled(metadata: dict[str, Any], source: str, model_type: str, facts: Facts) -> dict[str, Any]:
    """The caller's metadata with what is known of the model; BadRequest where they disagree."""
    limit, wanted = facts.context_length, metadata.get("context_length")
    if limit is not None and wanted is not None and wanted > limit:
        raise BadRequest(f"metadata.context_length is {wanted}, but {source} takes at most {limit} tokens")
    if limit is not None and wanted is None:
        metadata["context_length"] = min(limit, _DEFAULT_CONTEXT)
    dimension, given = facts.embedding_dimension, metadata.get("embedding_dimension")
    if model_type != "embedding":
        return metadata
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
        raise BadRequest(f"metadata.embedding_dimension is a positive integer, not {given!r}")
    if dimension is not None and given not in (None, dimension):
        raise BadRequest(
            f"metadata.embedding_dimension is {given}, but {source} gives {dimension} dimensions"
        )
    if dimension is not None:
        metadata["embedding_dimension"] = dimension
    return metadata
