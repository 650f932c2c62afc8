"""The model that a request names -> what training begins with: a registered one, or a checkpoint."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from stack.errors import BadRequest, NotFound, StackError
from stack.models import lora
from stack.models.adapters import base_of
from stack.models.folders import Facts
from stack.schemas.models import Model
from stack.schemas.post_training import LoraFinetuningConfig
from stack.settings import Settings
from stack.store.jobs import Jobs
from stack.store.registry import Registry
from stack.store.storage import Storage
from stack.training.modules import Linears
from stack.training.plan import KINDS, Plan, Start
from stack.training.run import RUN
from stack.training.weights import STORAGE, Weights, open_weights

_CHECKPOINT = re.compile(r"(?P<job>[^/]+)/(?:(?P<run>[A-Za-z0-9._-]+)/)?(?P<name>checkpoint-\d+)")


@dataclass(frozen=True, slots=True)
class Known:
    """What training begins with, and what is known of it now. None: only once it is fetched."""

    start: Start
    is_registered: bool = True  # False for a checkpoint, which serves no adapters
    facts: Facts | None = None
    linears: Linears | None = None
    adapter: LoraFinetuningConfig | None = None  # of `start.adapter`
    left_out: str | None = None  # a layer that the adapter lacks, so that it can only be merged


class Starts:
    def __init__(self, settings: Settings, models: Registry[Model], jobs: Jobs, storage: Storage) -> None:
        self._settings, self._models, self._jobs, self._storage = settings, models, jobs, storage

    async def find(self, field: str, name: str) -> Known:
        """`field` is the request's. Raises BadRequest for what is unknown or cannot be trained."""
        try:
            model = await self._models.get(name)
        except NotFound:
            if (found := _CHECKPOINT.fullmatch(name)) is not None:
                return await self._checkpoint(field, name, found)
            raise BadRequest(
                f"{field}: model {name[:80]!r} is not registered; GET /v1/models lists those, and the status "
                "of a training job its checkpoints"
            ) from None
        if (base := base_of(model)) is not None:
            return await self._adapter(field, name, base, model.provider_resource_id)
        return await self._whole(field, model)

    async def _whole(self, field: str, model: Model) -> Known:
        if model.model_type != "llm":
            raise BadRequest(
                f"{field}: {model.identifier!r} is an embedding model; text models are trained here"
            )
        if model.provider_id != "transformers":
            raise BadRequest(
                f"{field}: {model.identifier!r} is served elsewhere (provider {model.provider_id}), so its "
                "weights are not here to be trained"
            )
        source = model.provider_resource_id
        known = await self._known(field, Start(model_id=model.identifier, source=source))
        if known.facts is None and isinstance(limit := model.metadata.get("context_length"), int):
            return replace(known, facts=Facts(context_length=limit))
        return known

    async def _adapter(self, field: str, name: str, base: str, source: str) -> Known:
        try:
            model = await self._models.get(base)
        except NotFound:
            raise BadRequest(
                f"{field}: {name!r} is an adapter of {base!r}, which is not registered any more"
            ) from None
        known = await self._whole(field, model)
        start = known.start.model_copy(update={"adapter": source})
        if (weights := await self._open(source)) is None:
            return replace(known, start=start)
        adapted = Linears.adapted(await weights.shapes())
        left_out = None if known.linears is None else known.linears.lacks(adapted)
        return replace(known, start=start, adapter=await adapter_of(weights, adapted), left_out=left_out)

    async def _checkpoint(self, field: str, name: str, parts: re.Match[str]) -> Known:
        try:
            job = await self._jobs.get(parts["job"])
        except NotFound as error:
            raise BadRequest(
                f"{field}: there is no model and no training job {parts['job'][:80]!r}"
            ) from error
        if job.kind not in KINDS:
            raise BadRequest(f"{field}: job {job.id!r} is of kind {job.kind}, which has no checkpoints")
        plan = Plan.model_validate(job.request)
        path = f"{plan.run_folder}/{parts['run'] or RUN}/{parts['name']}"
        if not await self._storage.find(path):
            raise BadRequest(
                f"{field}: checkpoint {name!r} is not there (any more): of a run the "
                f"last {plan.checkpoints_kept} are kept; the status of job {job.id!r} lists them"
            )
        if plan.trains_adapter:
            await self._check_unchanged(field, name, plan.start)
            return await self._adapter(field, name, plan.start.model_id, f"{STORAGE}{path}")
        known = await self._known(field, Start(model_id=name, source=f"{STORAGE}{path}"))
        return replace(known, is_registered=False)

    async def _check_unchanged(self, field: str, name: str, start: Start) -> None:
        """Raises BadRequest for an adapter of a base model that is another one by now."""
        with suppress(NotFound):
            source = (await self._models.get(start.model_id)).provider_resource_id
            if source != start.source:
                raise BadRequest(
                    f"{field}: the adapter {name!r} is of {start.model_id!r} as it was at {start.source!r}, "
                    f"but that is registered with {source!r} by now; register the former under another id"
                )

    async def _known(self, field: str, start: Start) -> Known:
        """Look into a whole model's files."""
        weights = await self._open(start.source)
        if weights is None:
            return Known(start)
        facts = await weights.facts()
        if facts.kind not in (None, "llm"):
            raise BadRequest(f"{field}: {start.model_id!r} is no model that writes text ({facts.kind})")
        config = await weights.json("config.json")
        if "vision_config" in config:
            raise BadRequest(
                f"{field}: {start.model_id!r} reads pictures; models that read and write text "
                "alone are trained"
            )
        if "quantization_config" in config:
            raise BadRequest(
                f"{field}: the weights of {start.model_id!r} are quantised and cannot be trained; take the "
                "model that they were made from"
            )
        shapes = await weights.shapes()
        return Known(start, facts=facts, linears=Linears.of(shapes) if shapes else None)

    async def _open(self, source: str) -> Weights | None:
        try:
            return await open_weights(source, self._settings, self._storage)
        except OSError as error:
            raise StackError(f"the weights at {source} cannot be read: {error.strerror}") from error


async def adapter_of(weights: Weights, adapted: Linears) -> LoraFinetuningConfig:
    """What an adapter trains, in the terms of a request. Raises BadRequest for what is none."""
    if not {lora.CONFIG, lora.WEIGHTS} <= weights.names:
        raise BadRequest(f"{weights.where} is no adapter: it lacks {lora.CONFIG} or {lora.WEIGHTS}")
    config: dict[str, Any] = await weights.json(lora.CONFIG)
    try:
        return LoraFinetuningConfig(
            lora_attn_modules=sorted(adapted.attention),
            apply_lora_to_mlp=bool(adapted.mlp),
            apply_lora_to_output=adapted.output,
            rank=int(config["r"]),
            alpha=int(config["lora_alpha"]),
            use_dora=bool(config.get("use_dora")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadRequest(f"{weights.where}: {lora.CONFIG} has no numbers r and lora_alpha") from error


def check_whole(field: str, name: str, known: Known) -> None:
    """Raises BadRequest for an adapter that no LoraFinetuningConfig tells: it is not trained on."""
    if known.left_out is not None:
        raise BadRequest(
            f"{field}: the adapter {name!r} leaves out some layers ({known.left_out}), and only those on all "
            "layers of their kinds are trained on; supervised-fine-tune without algorithm_config merges it"
        )


def check_same(field: str, name: str, adapter: LoraFinetuningConfig, wanted: LoraFinetuningConfig) -> None:
    """Raises BadRequest, which names the first difference, when `wanted` is not how the adapter was made."""
    has, asked = (
        config.model_dump(exclude={"quantize_base"})
        | {"lora_attn_modules": sorted(set(config.lora_attn_modules))}
        for config in (adapter, wanted)
    )
    for key, value in has.items():
        if value != asked[key]:
            raise BadRequest(
                f"algorithm_config.{key}: {field} {name!r} is an adapter with {value}, not {asked[key]}; "
                "ask for the same to train it on, or leave algorithm_config out to train all weights with "
                "the adapter merged in"
            )
