"""SyntheticDataGeneration: answers to dialogs, the best of them, and what there was to choose from."""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json, to_json

from stack.batch.parts import Lines, Results
from stack.batch.shared import SharedJobs
from stack.batch.work import Work, answer_now, work
from stack.datasets.datasets import Datasets
from stack.errors import BadRequest, StackError
from stack.jobs.context import JobContext
from stack.jobs.logs import files_of
from stack.schemas.datasets import RegisterDatasetRequest, RowsDataSource
from stack.schemas.models import Model
from stack.schemas.synthetic_data import SyntheticDataGenerateRequest, SyntheticDataGenerationResponse
from stack.settings import Settings
from stack.store.jobs import Job, Jobs
from stack.store.registry import Registry
from stack.store.storage import Lost, Storage
from stack.synthetic.dialogs import Dialog, split
from stack.synthetic.filters import Filter
from stack.synthetic.generate import Generates, Recipe, Row, generating

KIND = "synthesize"
DIRECT = 20
"""Up to so many dialogs are answered while the request waits."""

AT_ONCE = 16  # dialogs, each with its candidates


class Synthesis(BaseModel):
    """What is submitted. The dialogs are in `input_path` of the job's id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: Recipe
    filter: dict[str, Any]
    dataset_id: str


def input_path(job_id: str) -> str:
    return f"{files_of(job_id)}/dialogs.jsonl"


class Synthesizer:
    def __init__(
        self,
        settings: Settings,
        stack: Generates,
        models: Registry[Model],
        jobs: Jobs,
        storage: Storage,
        datasets: Datasets,
    ) -> None:
        self._settings, self._stack, self._models = settings, stack, models
        self._jobs, self._storage, self._datasets = jobs, storage, datasets

    async def generate(self, request: SyntheticDataGenerateRequest) -> SyntheticDataGenerationResponse:
        """Raises BadRequest or NotFound for a model that cannot be asked; NotReady while a job works."""
        dialogs = split(request.dialogs)
        settings = self._settings
        recipe = Recipe(
            model=await self._model(request.model),
            candidates=settings.synthetic_candidates,
            max_tokens=settings.synthetic_max_tokens,
            temperature=settings.synthetic_temperature,
            scoring_fn_id=settings.synthetic_scoring_fn,
        )
        if recipe.scoring_fn_id is not None:
            await self._stack.scoring.open({recipe.scoring_fn_id: None})
        rows = [_row(dialog) for dialog in dialogs]
        chosen = Filter(request.filtering_function, settings.synthetic_top_k, settings.synthetic_top_p)
        if len(rows) <= DIRECT:
            results = await answer_now(
                lambda: generating(lambda: nullcontext(self._stack), recipe), rows, AT_ONCE
            )
            return response_of(rows, results, chosen, recipe.model)
        return await self._by_job(recipe, rows, chosen)

    async def _model(self, model_id: str | None) -> str:
        if model_id is None:
            known = [model.identifier for model in await self._models.list() if model.model_type == "llm"]
            if len(known) != 1:
                raise BadRequest(f"model: name the one that answers; there are {', '.join(known) or 'none'}")
            model_id = known[0]
        await self._stack.serving(model_id, "llm")
        return model_id

    async def _by_job(
        self, recipe: Recipe, rows: Sequence[Row], chosen: Filter
    ) -> SyntheticDataGenerationResponse:
        lines = await asyncio.to_thread(lambda: b"".join(to_json(row) + b"\n" for row in rows))
        fields = {"function": chosen.function, "k": chosen.k, "p": chosen.p}
        said = json.dumps([recipe.model_dump(), fields], sort_keys=True).encode()
        key = f"{KIND}-{hashlib.sha256(said + lines).hexdigest()[:24]}"

        async def submit(job_id: str) -> Job:
            await self._storage.write(input_path(job_id), lines)
            synthesis = Synthesis(recipe=recipe, filter=fields, dataset_id=job_id)
            return await self._jobs.submit(KIND, synthesis.model_dump(mode="json"), job_id)

        return await SharedJobs(self._jobs).result(key, submit, self._response)

    async def _response(self, job: Job) -> SyntheticDataGenerationResponse:
        result = job.result or {}
        try:
            data = [row async for page in self._datasets.batches(result["dataset_id"]) for row in page]
        except StackError as error:
            raise Lost(result["dataset_id"]) from error
        return SyntheticDataGenerationResponse(synthetic_data=data, statistics=result["statistics"])


async def run(context: JobContext, storage: Storage, datasets: Datasets, open_answer: Work) -> dict[str, Any]:
    """Generate what no earlier attempt has, then filter all; the result is a registered dataset."""
    synthesis = Synthesis.model_validate(context.job.request)
    path = input_path(context.job.id)
    done = await work(context, Lines(path), open_answer)
    context.progress(phase="filtering")
    rows = [from_json(line) for line in (await storage.read(path)).splitlines()]
    pages = Results(storage, context.job.id).read(done.parts)
    results = [result async for page in pages for result in page]
    response = response_of(rows, results, Filter(**synthesis.filter), synthesis.recipe.model)
    await datasets.register(
        RegisterDatasetRequest(
            dataset_id=synthesis.dataset_id,
            purpose="post-training/messages",
            source=RowsDataSource(rows=response.synthetic_data),
            metadata={"job_id": context.job.id, "model": synthesis.recipe.model},
        )
    )
    statistics = {**(response.statistics or {}), "dataset_id": synthesis.dataset_id}
    return {"dataset_id": synthesis.dataset_id, "statistics": statistics}


def response_of(
    rows: Sequence[Row], results: Sequence[Row], chosen: Filter, model: str
) -> SyntheticDataGenerationResponse:
    """The candidates that the filter keeps, as rows for post-training/messages, and counts."""
    scores = [each["score"] for result in results for each in result.get("candidates", ())]
    mean = statistics.fmean(scores) if scores else 0.0
    deviation = statistics.pstdev(scores) if len(scores) > 1 else 0.0
    data: list[Row] = []
    for number, (row, result) in enumerate(zip(rows, results, strict=True)):
        candidates = result.get("candidates", [])
        kept = chosen.keep([each["score"] for each in candidates], mean, deviation or 1.0, number)
        for place in kept:
            answer = {"role": "assistant", "content": candidates[place]["answer"]}
            data.append(
                {
                    "messages": [*row["messages"], answer | {"stop_reason": "end_of_turn"}],
                    "score": candidates[place]["score"],
                    "model": model,
                }
            )
    kept_scores = [row["score"] for row in data]
    counted = {
        name: sum(result.get(name, 0) for result in results)
        for name in ("generated", "duplicates", "unscored")
    }
    return SyntheticDataGenerationResponse(
        synthetic_data=data,
        statistics={
            "dialogs": len(rows),
            "failed": sum("error" in result for result in results),
            **counted,
            "kept": len(data),
            "mean_score": mean if scores else None,
            "mean_score_kept": statistics.fmean(kept_scores) if kept_scores else None,
        },
    )


def _row(dialog: Dialog) -> Row:
    return {"messages": [message.model_dump(mode="json", exclude_none=True) for message in dialog]}
