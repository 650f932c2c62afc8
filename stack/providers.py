"""Which providers exist for each API. A provider is one file and one entry here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import JsonValue, SecretStr

from stack.models.args import ModelArgs
from stack.settings import Settings

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


PROVIDERS: tuple[Provider, ...] = (
    Provider("inference", "transformers", "inline::transformers", _serving_defaults),
    Provider("inference", "sentence-transformers", "inline::sentence-transformers", _serving_defaults),
    Provider("inference", "openai", "remote::openai", _openai),
)


def provider_types(api: str) -> list[str]:
    return [provider.provider_type for provider in PROVIDERS if provider.api == api]
