"""Which providers exist for each API. A provider is one file and one entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import JsonValue, SecretStr

from stack.models.args import ModelArgs
from stack.safety.providers import PROVIDERS as SHIELD_PROVIDERS
from stack.scoring.judge import MAX_TOKENS
from stack.scoring.model_scorer import CONCURRENCY
from stack.settings import Settings
from stack.vector.params import QueryParams

MASK = "********"


@dataclass(frozen=True, slots=True)
class Provider:
    """`provider_type` is `inline::…` where this server computes, `remote::…` where another one does."""

    api: str
    provider_id: str
    provider_type: str
    config: Callable[[Settings], dict[str, JsonValue]]


def masked(value: SecretStr | None) -> JsonValue:
    """Whether a secret is set, and nothing else about it."""
    return MASK if value is not None and value.get_secret_value() else None


def _serving_defaults(settings: Settings) -> dict[str, JsonValue]:
    """What a model is served with unless its metadata or stack.yaml says otherwise."""
    names = ("dtype", "max_batch", "max_queue", "num_cpus", "num_gpus", "min_replicas", "max_replicas")
    return {name: ModelArgs.model_fields[name].default for name in names}


def _openai(settings: Settings) -> dict[str, JsonValue]:
    return {"api_key": masked(settings.openai_api_key)}


def _storage(settings: Settings) -> dict[str, JsonValue]:
    """Not the URL itself, which may carry a key."""
    scheme = settings.storage_url.partition("://")[0] if settings.storage_url else "file"
    return {"protocol": scheme, "max_file_gb": settings.max_file_gb}


def _datasets(settings: Settings) -> dict[str, JsonValue]:
    return {"max_dataset_gb": settings.max_dataset_gb}


def _vectors(settings: Settings) -> dict[str, JsonValue]:
    """What a query does unless its params say otherwise."""
    names = ("max_chunks", "mode")
    return {name: QueryParams.model_fields[name].default for name in names}


def _rag(settings: Settings) -> dict[str, JsonValue]:
    return {"max_document_mb": settings.max_document_mb}


def _training(settings: Settings) -> dict[str, JsonValue]:
    return {
        "workers": settings.train_workers,
        "gpus_per_worker": settings.train_gpus,
        "strategy": settings.train_strategy,
        "max_tokens": settings.train_max_tokens,
    }


def _judges(settings: Settings) -> dict[str, JsonValue]:
    return {"concurrency": CONCURRENCY, "max_tokens": MAX_TOKENS}


def _key(name: str) -> Callable[[Settings], dict[str, JsonValue]]:
    return lambda settings: {"api_key": masked(getattr(settings, name))}


def _sandbox(settings: Settings) -> dict[str, JsonValue]:
    return {"timeout_s": settings.sandbox_timeout_s, "memory_mb": settings.sandbox_memory_mb}


def _shield(name: str) -> Callable[[Settings], dict[str, JsonValue]]:
    """What a shield does unless its params say otherwise."""
    params = SHIELD_PROVIDERS[name].params
    required = {field for field, info in params.model_fields.items() if info.is_required()}
    defaults = params.model_construct().model_dump(mode="json", exclude=required)
    return lambda settings: defaults


PROVIDERS: tuple[Provider, ...] = (
    Provider("files", "fsspec", "inline::fsspec", _storage),
    Provider("inference", "transformers", "inline::transformers", _serving_defaults),
    Provider("inference", "sentence-transformers", "inline::sentence-transformers", _serving_defaults),
    Provider("inference", "openai", "remote::openai", _openai),
    Provider("datasets", "lancedb", "inline::lancedb", _datasets),
    Provider("datasetio", "lancedb", "inline::lancedb", _datasets),
    Provider("vector_io", "lancedb", "inline::lancedb", _vectors),
    Provider("post_training", "ray-train", "inline::ray-train", _training),
    *(Provider("safety", name, f"inline::{name}", _shield(name)) for name in SHIELD_PROVIDERS),
    Provider("scoring", "basic", "inline::basic", lambda settings: {}),
    Provider("scoring", "llm-as-judge", "inline::llm-as-judge", _judges),
    Provider("tool_runtime", "rag-runtime", "inline::rag-runtime", _rag),
    Provider("tool_runtime", "tavily-search", "remote::tavily-search", _key("tavily_api_key")),
    Provider("tool_runtime", "brave-search", "remote::brave-search", _key("brave_api_key")),
    Provider("tool_runtime", "bing-search", "remote::bing-search", _key("bing_api_key")),
    Provider("tool_runtime", "wolfram-alpha", "remote::wolfram-alpha", _key("wolfram_alpha_api_key")),
    Provider("tool_runtime", "code-interpreter", "inline::code-interpreter", _sandbox),
    Provider("tool_runtime", "model-context-protocol", "remote::model-context-protocol", lambda settings: {}),
)


def provider_types(api: str) -> list[str]:
    return [provider.provider_type for provider in PROVIDERS if provider.api == api]
