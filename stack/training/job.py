"""A training job, from its row to a model that is served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, TypeVar

from stack.errors import AlreadyRegistered, StackError
from stack.files.uploads import Uploads
from stack.jobs.context import JobContext
from stack.schemas.models import Model
from stack.store.registry import Registry
from stack.store.storage import Storage
from stack.training.curve import learning_curve
from stack.training.fit import Outcome, fit
from stack.training.plan import Plan
from stack.training.prepare import prepare
from stack.training.run import FINAL, RUN

log = logging.getLogger(__name__)

T = TypeVar("T")

BUCKET = "post-training"
"""Of the Files API: where the pictures of jobs are."""


async def run(
    context: JobContext, storage: Storage, models: Registry[Model], uploads: Uploads
) -> dict[str, Any]:
    """Returns the job's result: `model_id`, `checkpoints`, `artifacts` and `metrics`."""
    plan = Plan.model_validate(context.job.request)
    data = {"train": plan.data, "validation": plan.validation}
    counts = {
        split: (await prepare(plan, split, dataset, context, storage))._asdict()
        for split, dataset in data.items()
        if dataset is not None
    }
    outcome, artifacts = await _train(plan, context, storage)
    # What is shown at the end is this process's word, and its last one was about the data.
    if (step := outcome.metrics.get("step")) is not None:
        context.progress(phase="saving", done=int(step), total=int(step), unit="steps")
    await publish(plan, outcome, storage, models)
    history = json.loads(await storage.read(f"{plan.run_folder}/{outcome.name}/{FINAL}/trainer_state.json"))
    curve = await asyncio.to_thread(learning_curve, history["log_history"], plan.job_uuid)
    artifacts.append(await _picture(plan, curve, uploads))
    run = f"{plan.run_folder}/{outcome.name}/"
    noted = [item.result async for item in context.finished_items() if item.result]
    stored = await storage.find(run)
    checkpoints = [each for each in noted if any(path.startswith(f"{each['path']}/") for path in stored)]
    if checkpoints:
        checkpoints[-1] |= {"model_id": plan.job_uuid}
    return {
        "model_id": plan.job_uuid,
        "checkpoints": checkpoints,
        "artifacts": artifacts,
        "metrics": outcome.metrics,
        "data": counts,
    }


async def _train(plan: Plan, context: JobContext, storage: Storage) -> tuple[Outcome, list[dict[str, Any]]]:
    """The run that is served, and what else is to be shown."""
    context.end_stage()
    if plan.search is None:
        return await _in_thread(lambda: fit(plan, context.lease, RUN, context.settings)), []
    from stack.training.search import search, sweep

    found = await _in_thread(lambda: search(plan, context.lease, context.settings))
    await sweep(plan, found.outcome.name, storage)
    return found.outcome, [
        {"identifier": f"{plan.job_uuid}/trials", "type": "trials", "trials": found.trials}
    ]


async def publish(plan: Plan, outcome: Outcome, storage: Storage, models: Registry[Model]) -> None:
    """Copy the model to where it stays, and register it. May be repeated."""
    for path in await storage.find(outcome.model):
        name = path.removeprefix(f"{outcome.model}/")
        await storage.copy(path, f"{plan.folder}/model/{name}")
    metadata: dict[str, Any] = {"job_uuid": plan.job_uuid}
    if plan.trains_adapter:
        metadata["base_model"] = plan.start.model_id
    model = Model(
        identifier=plan.job_uuid,
        provider_id="transformers",
        provider_resource_id=f"storage://{plan.folder}/model",
        model_type="llm",
        metadata=metadata,
    )
    try:
        await models.register(model)
    except AlreadyRegistered:
        raise StackError(
            f"training is complete, but a model {plan.job_uuid!r} was registered meanwhile: register "
            f"storage://{plan.folder}/model under another id"
        ) from None


async def _picture(plan: Plan, png: bytes, uploads: Uploads) -> dict[str, Any]:
    key = f"{plan.job_uuid}/learning-curve.png"
    upload = await uploads.create(BUCKET, key, "image/png", len(png))

    async def content() -> AsyncIterator[bytes]:
        yield png

    await uploads.append(upload.id, content())
    return {"identifier": key, "type": "image", "uri": f"files://{BUCKET}/{key}"}


async def _in_thread(function: Callable[[], T]) -> T:
    """In a daemon thread: a job that is told to stop does not wait for it, and leaves Ray."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def work() -> None:
        try:
            result = function()
            end = partial(_settle, done, result, None)
        except BaseException as error:  # handed over to who waits
            end = partial(_settle, done, None, error)
        with contextlib.suppress(RuntimeError):  # the job has ended without us
            loop.call_soon_threadsafe(end)

    threading.Thread(target=work, name="training", daemon=True).start()
    return await done


def _settle(done: asyncio.Future[T], result: T | None, error: BaseException | None) -> None:
    if done.done():  # cancelled meanwhile
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(result)  # type: ignore[arg-type]  # T, when there is no error
