"""LoRA adapters as models: a registered text model whose metadata.base_model names another one.

An adapter has no replicas of its own. Its base model's serve it, and its status is its base's.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from stack.engine.base import Adapter
from stack.errors import BadRequest, NotFound, NotReady
from stack.models import lora, sources
from stack.models.args import SERVING_FIELDS
from stack.models.folders import Folder, facts, tensor_shapes
from stack.schemas.models import Model, RegisterModelRequest
from stack.settings import Settings
from stack.store.model_status import ModelStatus, ModelStatuses
from stack.store.registry import Registry


def base_of(model: Model) -> str | None:
    """The id of an adapter's base model; None for a whole model."""
    base = model.metadata.get("base_model")
    is_adapter = model.provider_id == "transformers" and isinstance(base, str) and bool(base)
    return str(base) if is_adapter else None


async def find(statuses: ModelStatuses, model_id: str) -> tuple[Model, ModelStatus | None]:
    """A model and how far serving it has come: for an adapter, how far its base is. Raises NotFound."""
    model, status = await statuses.find(model_id)
    base_id = base_of(model)
    if base_id is None:
        return model, status
    try:
        return model, (await statuses.find(base_id))[1]
    except NotFound:
        return model, ModelStatus(model_id, "failed", f"its base model {base_id!r} is not registered")


async def find_all(statuses: ModelStatuses) -> list[tuple[Model, ModelStatus | None]]:
    """As `find`, of all models, in the order of their identifiers."""
    found = await statuses.find_all()
    by_id = {model.identifier: status for model, status in found}
    shown = []
    for model, status in found:
        base_id = base_of(model)
        if base_id is not None and base_id not in by_id:
            detail = f"its base model {base_id!r} is not registered"
            status = ModelStatus(model.identifier, "failed", detail)
        shown.append((model, status if base_id is None else by_id.get(base_id, status)))
    return shown


async def resolve(statuses: ModelStatuses, model: Model, base_id: str) -> tuple[Adapter, ModelStatus | None]:
    """What the base model's replicas are told of an adapter, and the base's status.

    The version is that of the registration: weights that are registered anew under an id are others.
    """
    try:
        (base, status), found = await asyncio.gather(
            statuses.find(base_id), registered(statuses, [(model.identifier, model.provider_resource_id)])
        )
    except NotFound as error:
        raise NotReady(f"model {model.identifier!r} is an adapter: {error}", None) from error
    if base_of(base) is not None or base.model_type != "llm" or base.provider_id != "transformers":
        raise BadRequest(f"model {model.identifier!r} is an adapter of {base_id!r}, which takes none")
    if not found:  # deleted in the meantime
        raise NotFound("model", model.identifier)
    return found[0], status


async def registered(statuses: ModelStatuses, adapters: Sequence[tuple[str, str]]) -> list[Adapter]:
    """Of these adapters, each an id and a source, those that are registered, in their present version."""
    times = await statuses.registered_at([model_id for model_id, _ in adapters])
    return [
        Adapter(model_id, source, _version(source, times[model_id]))
        for model_id, source in adapters
        if model_id in times
    ]


def _version(source: str, registered_at: datetime) -> str:
    return hashlib.sha256(f"{source}\n{registered_at.isoformat()}".encode()).hexdigest()[:16]


async def check(
    request: RegisterModelRequest, base_id: object, source: str, settings: Settings, statuses: ModelStatuses
) -> Model:
    """The adapter to register; BadRequest, within seconds, when it could not be served."""
    metadata = dict(request.metadata or {})
    if not isinstance(base_id, str) or not base_id:
        raise BadRequest(f"metadata.base_model is the id of a model, not {base_id!r}")
    if (request.model_type or "llm") != "llm":
        raise BadRequest("an adapter is of model_type 'llm'; adapters of embedding models are not served")
    if own := sorted(SERVING_FIELDS & metadata.keys()):
        raise BadRequest(f"metadata.{own[0]} is set by the base model {base_id!r}, which serves the adapter")
    base = await _base(base_id, request.model_id, statuses)
    found = await sources.check(source, settings)
    if found.kind not in (None, "adapter"):
        raise BadRequest(
            f"{source} is a whole model, not a LoRA adapter; leave metadata.base_model out to serve it"
        )
    await asyncio.to_thread(_check_fit, source, base, settings)
    return Model(
        identifier=request.model_id,
        provider_resource_id=source,
        provider_id="transformers",
        model_type="llm",
        metadata=metadata,
    )


async def _base(base_id: str, model_id: str, statuses: ModelStatuses) -> Model:
    """The base model, if it takes adapters."""
    try:
        base, status = await statuses.find(base_id)
    except NotFound as error:
        raise BadRequest(
            f"metadata.base_model is {base_id!r}, which is not registered; register the base model first"
        ) from error
    if base_id == model_id or base_of(base) is not None:
        raise BadRequest(f"metadata.base_model is {base_id!r}, an adapter itself; name a whole model")
    if base.model_type != "llm":
        raise BadRequest(f"metadata.base_model is {base_id!r}, an embedding model, which takes no adapters")
    if base.provider_id != "transformers":
        raise BadRequest(
            f"metadata.base_model is {base_id!r}, which another server computes; adapters need a model "
            "of the provider transformers"
        )
    if status is not None and status.description.get("takes_adapters") is False:
        raise BadRequest(f"metadata.base_model is {base_id!r}, {TAKES_NONE}")
    return base


TAKES_NONE = "which takes no adapters: only models that read and write text alone do"


def _check_fit(source: str, base: Model, settings: Settings) -> None:
    """BadRequest when the files on this machine show that the adapter cannot be served on the base model."""
    folder = sources.local_folder(base.provider_resource_id, settings)
    if folder is None:
        return
    kind = facts(Folder.local(folder)).kind
    config = Folder.local(folder).json("config.json")
    if kind != "llm" or "vision_config" in config:
        raise BadRequest(f"metadata.base_model is {base.identifier!r}, {TAKES_NONE}")
    adapter = sources.local_folder(source, settings)
    if adapter is not None and (adapter / lora.WEIGHTS).is_file():
        lora.check_shapes(tensor_shapes(adapter / lora.WEIGHTS), _shapes(folder), source)


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    return {
        name: shape for file in folder.glob("*.safetensors") for name, shape in tensor_shapes(file).items()
    }


async def refuse_with_adapters(models: Registry[Model], model_id: str) -> None:
    """BadRequest when registered adapters need the model."""
    needing = [model.identifier for model in await models.list(declared=False) if base_of(model) == model_id]
    if needing:
        raise BadRequest(
            f"model {model_id!r} is the base of {', '.join(map(repr, needing))}; delete those adapters first"
        )
