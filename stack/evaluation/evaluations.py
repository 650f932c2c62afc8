"""Eval: benchmarks are run by jobs; a few rows, by the request that brings them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from stack.batch.parts import Results
from stack.batch.work import answer_now
from stack.datasets.datasets import Datasets
from stack.errors import BadRequest, NotFound
from stack.evaluation.benchmarks import Benchmarks, check_functions
from stack.evaluation.evaluate import KIND, Evaluates, Evaluation, evaluating, response_of
from stack.evaluation.interval import difference
from stack.evaluation.questions import Row, completion_of, messages_of
from stack.schemas.benchmarks import Benchmark
from stack.schemas.eval import BenchmarkConfig, EvaluateResponse, EvaluateRowsRequest, ModelCandidate
from stack.schemas.eval import Job as EvalJob
from stack.schemas.scoring_functions import ScoringFnParams
from stack.store.jobs import Job, Jobs
from stack.store.storage import Lost, Storage

MAX_ROWS = 1000
"""Of one request; a benchmark has as many as its dataset."""

Functions = dict[str, ScoringFnParams | None]


class Evaluations:
    def __init__(
        self, stack: Evaluates, benchmarks: Benchmarks, datasets: Datasets, jobs: Jobs, storage: Storage
    ) -> None:
        self._stack, self._benchmarks = stack, benchmarks
        self._datasets, self._jobs, self._storage = datasets, jobs, storage

    async def run(self, benchmark_id: str, config: BenchmarkConfig) -> EvalJob:
        """Submit a job. Raises NotFound, and BadRequest for what cannot be evaluated."""
        benchmark = await self._benchmarks.get(benchmark_id)
        await self._check_candidate(config)
        functions = await self._functions(benchmark, benchmark.scoring_functions, config)
        table, rows = await self._rows(benchmark, config.num_examples)
        evaluation = Evaluation(
            benchmark_id=benchmark_id,
            dataset_id=benchmark.dataset_id,
            table=table,
            rows=rows,
            candidate=config.eval_candidate,
            scoring=functions,
        )
        return _shown(await self._jobs.submit(KIND, evaluation.model_dump(mode="json", exclude_none=True)))

    async def evaluate_rows(self, benchmark_id: str, request: EvaluateRowsRequest) -> EvaluateResponse:
        """Raises NotFound, and BadRequest for what cannot be evaluated."""
        benchmark = await self._benchmarks.get(benchmark_id)
        await self._check_candidate(request.benchmark_config)
        functions = await self._functions(benchmark, request.scoring_functions, request.benchmark_config)
        rows = request.input_rows
        if len(rows) > MAX_ROWS:
            raise BadRequest(
                f"one request evaluates at most {MAX_ROWS} rows, not {len(rows)}: register them as a dataset "
                "and run a benchmark on it"
            )
        candidate = request.benchmark_config.eval_candidate
        results = await answer_now(
            lambda: evaluating(lambda: nullcontext(self._stack), candidate, functions), rows
        )
        return await response_of(_one(results), functions, self._stack.scoring)

    async def status(self, benchmark_id: str, job_id: str) -> EvalJob:
        """Raises NotFound."""
        return _shown(await self._job(benchmark_id, job_id))

    async def cancel(self, benchmark_id: str, job_id: str) -> None:
        """Raises NotFound, or BadRequest for a job that has ended."""
        await self._job(benchmark_id, job_id)
        await self._jobs.cancel(job_id)

    async def result(self, benchmark_id: str, job_id: str) -> EvaluateResponse:
        """Raises NotFound, or BadRequest for a job that is not completed."""
        job = await self._job(benchmark_id, job_id)
        _check_completed(job)
        evaluation = Evaluation.model_validate(job.request)
        pages = self._pages(job)
        return await response_of(pages, evaluation.scoring, self._stack.scoring)

    async def compare(self, baseline_id: str, candidate_id: str) -> dict[str, Any]:
        """Two runs of a benchmark, row by row, for each scoring function that both have.

        Raises NotFound; BadRequest for runs that are not completed, or of different rows.
        """
        baseline, candidate = await self._of_kind(baseline_id), await self._of_kind(candidate_id)
        for job in (baseline, candidate):
            _check_completed(job)
        ours, theirs = (Evaluation.model_validate(job.request) for job in (baseline, candidate))
        if (ours.table, ours.rows) != (theirs.table, theirs.rows):
            raise BadRequest(
                f"runs are compared row by row, and these have different rows: {ours.rows} of "
                f"{ours.dataset_id!r} and {theirs.rows} of {theirs.dataset_id!r}"
            )
        shared = [name for name in ours.scoring if name in theirs.scoring]
        scores = [await self._scores(job, shared) for job in (baseline, candidate)]
        return {
            "benchmark_id": ours.benchmark_id,
            "baseline": baseline_id,
            "candidate": candidate_id,
            "scores": {name: _compared(scores[0][name], scores[1][name]) for name in shared},
        }

    async def _scores(self, job: Job, names: Sequence[str]) -> dict[str, list[float | None]]:
        found: dict[str, list[float | None]] = {name: [] for name in names}
        async for page in self._pages(job):
            for result in page:
                for name in names:
                    score = result.get("scores", {}).get(name, {}).get("score")
                    found[name].append(score if isinstance(score, int | float) else None)
        return found

    async def _pages(self, job: Job) -> AsyncGenerator[list[Row]]:
        try:
            async for page in Results(self._storage, job.id).read((job.result or {})["parts"]):
                yield page
        except Lost:
            raise NotFound("the result of evaluation", job.id) from None

    async def _check_candidate(self, config: BenchmarkConfig) -> None:
        candidate = config.eval_candidate
        if isinstance(candidate, ModelCandidate):
            try:
                model, _ = await self._stack.serving.find(candidate.model)
            except NotFound:
                raise BadRequest(f"eval_candidate.model: there is no model {candidate.model!r}") from None
            if model.model_type != "llm":
                raise BadRequest(
                    f"eval_candidate.model: {candidate.model!r} is an embedding model, which writes no text"
                )
        else:
            await self._stack.agents.check(candidate.config, {})

    async def _functions(
        self, benchmark: Benchmark, names: Sequence[str], config: BenchmarkConfig
    ) -> Functions:
        """Each with its parameters. Raises BadRequest for unknown ones, and parameters that do not fit."""
        await check_functions(self._stack.scoring, names)
        if strange := [name for name in config.scoring_params if name not in names]:
            raise BadRequest(
                f"scoring_params has {strange[0]!r}, which is none of the functions that score: "
                f"{', '.join(names) or 'there are none'}"
            )
        functions: Functions = {name: config.scoring_params.get(name) for name in names}
        if functions:
            await self._stack.scoring.open(functions)
        return functions

    async def _rows(self, benchmark: Benchmark, limit: int | None) -> tuple[str, int]:
        """The table's name, and how many of its rows."""
        try:
            table = await self._datasets.table(benchmark.dataset_id)
            rows = await self._datasets.count(benchmark.dataset_id)
            first = await self._datasets.read(benchmark.dataset_id, 0, 1)
        except NotFound:
            raise BadRequest(f"the benchmark's dataset {benchmark.dataset_id!r} was deleted") from None
        if first and completion_of(first[0]) is None:
            messages_of(first[0])
        return table, rows if limit is None else min(limit, rows)

    async def _job(self, benchmark_id: str, job_id: str) -> Job:
        job = await self._of_kind(job_id)
        if job.request["benchmark_id"] != benchmark_id:
            raise NotFound("evaluation", job_id)
        return job

    async def _of_kind(self, job_id: str) -> Job:
        job = await self._jobs.get(job_id)
        if job.kind != KIND:
            raise NotFound("evaluation", job_id)
        return job


def _shown(job: Job) -> EvalJob:
    return EvalJob(job_id=job.id, status=job.status)


def _check_completed(job: Job) -> None:
    if job.status == "completed":
        return
    if not job.ended:
        done, total = job.progress.get("done", 0), job.progress.get("total", "all")
        raise BadRequest(
            f"evaluation {job.id!r} is {job.status}, {done} of {total} rows are done: its result is there "
            "when it is completed"
        )
    reason = f": {job.detail}" if job.detail else ""
    raise BadRequest(f"evaluation {job.id!r} has no result, it is {job.status}{reason}")


async def _one(page: list[Row]) -> AsyncGenerator[list[Row]]:
    yield page


def _compared(baseline: Sequence[float | None], candidate: Sequence[float | None]) -> Mapping[str, Any]:
    """Over the rows that both scored."""
    pairs = [(a, b) for a, b in zip(baseline, candidate, strict=True) if a is not None and b is not None]
    left_out = len(baseline) - len(pairs)
    if not pairs:
        return {"rows": 0, "unscored": left_out}
    return difference([a for a, _ in pairs], [b for _, b in pairs]) | {"unscored": left_out}
