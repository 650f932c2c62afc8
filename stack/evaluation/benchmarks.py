"""Benchmarks: the registry of datasets with the functions that score answers to them."""

from __future__ import annotations

from collections.abc import Sequence

from stack.datasets.datasets import Datasets
from stack.errors import BadRequest, NotFound
from stack.schemas.benchmarks import Benchmark, RegisterBenchmarkRequest
from stack.scoring.scoring import Scoring
from stack.store.database import Database
from stack.store.registry import Registry

PROVIDER = "ray-data"


class Benchmarks:
    def __init__(self, database: Database, datasets: Datasets, scoring: Scoring) -> None:
        self._registry = Registry(database, Benchmark)
        self._datasets, self._scoring = datasets, scoring

    async def list(self) -> list[Benchmark]:
        return await self._registry.list()

    async def get(self, benchmark_id: str) -> Benchmark:
        """Raises NotFound."""
        return await self._registry.get(benchmark_id)

    async def register(self, request: RegisterBenchmarkRequest) -> Benchmark:
        """Raises BadRequest for a dataset or scoring functions that are not there."""
        if request.provider_id not in (None, PROVIDER):
            raise BadRequest(f"provider_id: there is {PROVIDER!r}, not {request.provider_id!r}; leave it out")
        try:
            await self._datasets.registry.get(request.dataset_id)
        except NotFound:
            raise BadRequest(
                f"dataset_id: there is no dataset {request.dataset_id!r}; register it first, with a purpose "
                "eval/question-answer or eval/messages-answer"
            ) from None
        await check_functions(self._scoring, request.scoring_functions)
        return await self._registry.register(
            Benchmark(
                identifier=request.benchmark_id,
                provider_resource_id=request.provider_benchmark_id or request.benchmark_id,
                provider_id=PROVIDER,
                dataset_id=request.dataset_id,
                scoring_functions=request.scoring_functions,
                metadata=request.metadata or {},
            )
        )


async def check_functions(scoring: Scoring, names: Sequence[str]) -> None:
    """Raises BadRequest for a function that is not registered, or one named twice."""
    known = [function.identifier for function in await scoring.functions.list()]
    for name in names:
        if name not in known:
            raise BadRequest(
                f"scoring_functions: {name!r} is not registered; there are {', '.join(known)[:2000]}"
            )
    if len(set(names)) < len(names):
        raise BadRequest("scoring_functions names a function twice")
