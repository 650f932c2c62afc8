"""Training jobs: a request is checked completely and becomes a Plan, which is the job's request."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from stack.datasets.datasets import Datasets
from stack.errors import BadRequest, NotFound
from stack.schemas.models import Model
from stack.schemas.post_training import (
    AlgorithmConfig,
    DPOAlignmentConfig,
    EfficiencyConfig,
    LoraFinetuningConfig,
    PostTrainingJob,
    PreferenceOptimizeRequest,
    SupervisedFineTuneRequest,
)
from stack.settings import Settings
from stack.store.jobs import Jobs
from stack.store.registry import Registry
from stack.store.storage import Storage
from stack.training.checks import check_dtype, check_lora, check_numbers, check_preferences, check_quantizer
from stack.training.data_checks import resolve
from stack.training.efficiency import check_divisible, strategy_of
from stack.training.folder import check_apart, folder_of
from stack.training.options import check_trials, parse_loggers, parse_search
from stack.training.plan import KINDS, Data, Plan, Resources
from stack.training.start import Known, Starts, check_same, check_whole

_LOCK = "training-folders"


class Submissions:
    def __init__(
        self, settings: Settings, models: Registry[Model], jobs: Jobs, datasets: Datasets, storage: Storage
    ) -> None:
        self._settings, self._models, self._jobs = settings, models, jobs
        self._datasets, self._storage = datasets, storage
        self._starts = Starts(settings, models, jobs, storage)

    async def supervised_fine_tune(self, request: SupervisedFineTuneRequest) -> PostTrainingJob:
        """Raises BadRequest for all that can be known to be wrong by now."""
        check_numbers(request.training_config, request.algorithm_config, None)
        known = await self._starts.find("model", request.model)
        algorithm = _algorithm(request.model, known, request.algorithm_config)
        return await self._submit(request, "sft", known, algorithm)

    async def preference_optimize(self, request: PreferenceOptimizeRequest) -> PostTrainingJob:
        """As `supervised_fine_tune`. An adapter is gone on with; on a whole model a new one is trained."""
        check_numbers(request.training_config, None, request.algorithm_config)
        check_preferences(request.training_config)
        known = await self._starts.find("finetuned_model", request.finetuned_model)
        if known.start.adapter is None:
            algorithm = _new_adapter(
                "finetuned_model",
                request.finetuned_model,
                known,
                self._settings.dpo_adapter,
                "the adapter of STACK_DPO_ADAPTER does not fit: ",
            )
        elif known.adapter is None:
            raise BadRequest(
                f"finetuned_model: the adapter {request.finetuned_model!r} is not on this machine yet; "
                "register it from a folder or the server's storage"
            )
        else:
            check_whole("finetuned_model", request.finetuned_model, known)
            algorithm = known.adapter
        return await self._submit(request, "dpo", known, algorithm, request.algorithm_config)

    async def _submit(
        self,
        request: SupervisedFineTuneRequest | PreferenceOptimizeRequest,
        method: Literal["sft", "dpo"],
        known: Known,
        algorithm: AlgorithmConfig | None,
        alignment: DPOAlignmentConfig | None = None,
    ) -> PostTrainingJob:
        check_dtype(request.training_config.dtype, self._settings)
        config = request.training_config.data_config
        validated = config.validation_dataset_id is not None
        plan = Plan(
            job_uuid=request.job_uuid,
            method=method,
            start=known.start,
            algorithm=algorithm,
            alignment=alignment,
            training=request.training_config,
            search=parse_search(request.hyperparam_search_config, method, validated),
            loggers=parse_loggers(request.logger_config),
            data=await self._data(method, request, "dataset_id"),
            validation=await self._data(method, request, "validation_dataset_id") if validated else None,
            resources=_resources(self._settings, request.training_config.efficiency_config, algorithm),
            folder=folder_of(request.job_uuid, getattr(request, "checkpoint_dir", None)),
            max_tokens=_max_tokens(self._settings, known),
            checkpoint_s=self._settings.train_checkpoint_s,
            checkpoints_kept=self._settings.train_checkpoints_kept,
        )
        await asyncio.to_thread(check_trials, plan, known.linears)
        return await self._enter(plan)

    async def _data(
        self,
        method: str,
        request: SupervisedFineTuneRequest | PreferenceOptimizeRequest,
        field: Literal["dataset_id", "validation_dataset_id"],
    ) -> Data:
        config = request.training_config.data_config
        return await resolve(self._datasets, method, config, field, getattr(config, field))

    async def _enter(self, plan: Plan) -> PostTrainingJob:
        """Add the job, unless its name or its folder is taken."""
        (kind,) = (kind for kind, method in KINDS.items() if method == plan.method)
        async with self._jobs.database.lock(_LOCK):
            await self._check_free(plan)
            job = await self._jobs.submit(kind, plan.model_dump(mode="json"), plan.job_uuid)
        return PostTrainingJob(job_uuid=job.id)

    async def _check_free(self, plan: Plan) -> None:
        if await _there(self._jobs.get, plan.job_uuid):
            raise BadRequest(f"job_uuid: there is a job {plan.job_uuid!r} already: choose another id")
        if await _there(self._models.get, plan.job_uuid):
            raise BadRequest(
                f"job_uuid: a model is registered as {plan.job_uuid!r}, and the job's model gets the job's "
                "id: choose another id"
            )
        requests = await self._jobs.requests(tuple(KINDS))
        check_apart(plan.folder, ((job_id, str(request.get("folder"))) for job_id, request in requests))
        if await self._storage.find(plan.folder):
            raise BadRequest(
                f"checkpoint_dir: the storage has files in {plan.folder} already: take another folder or "
                "job_uuid"
            )


async def _there(get: Any, identifier: str) -> bool:
    try:
        await get(identifier)
    except NotFound:
        return False
    return True


def _algorithm(name: str, known: Known, wanted: AlgorithmConfig | None) -> AlgorithmConfig | None:
    """What is asked for, checked against the model."""
    if wanted is None:
        return None
    if not isinstance(wanted, LoraFinetuningConfig):
        return check_quantizer(wanted, known.linears)
    if known.start.adapter is None:
        return _new_adapter("model", name, known, wanted)
    wanted = check_lora(wanted, known.linears)
    check_whole("model", name, known)
    if known.adapter is not None:
        check_same("model", name, known.adapter, wanted)
    return wanted


def _new_adapter(
    field: str, name: str, known: Known, wanted: LoraFinetuningConfig, setting: str = ""
) -> LoraFinetuningConfig:
    if not known.is_registered:
        raise BadRequest(
            f"{field}: an adapter is served by its base model, and the checkpoint {name!r} is no registered "
            f"model; register it (provider_model_id {known.start.source!r}) and name that model"
        )
    try:
        return check_lora(wanted, known.linears)
    except BadRequest as error:
        raise BadRequest(f"{setting}{error}") from error


def _resources(
    settings: Settings, config: EfficiencyConfig | None, algorithm: AlgorithmConfig | None
) -> Resources:
    strategy = strategy_of(config, settings)
    check_divisible(strategy, algorithm)
    return Resources(
        workers=settings.train_workers,
        cpus_per_worker=settings.train_cpus,
        gpus_per_worker=settings.train_gpus,
        strategy=strategy,
    )


def _max_tokens(settings: Settings, known: Known) -> int:
    """No more than the model reads."""
    limit = known.facts.context_length if known.facts is not None else None
    return settings.train_max_tokens if limit is None else min(limit, settings.train_max_tokens)
