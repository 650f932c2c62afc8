"""Benchmarks: register, list and get datasets with the functions that score answers to them."""

from __future__ import annotations

from stack.api.routing import api_router
from stack.context import CurrentStack
from stack.schemas.benchmarks import Benchmark, ListBenchmarksResponse, RegisterBenchmarkRequest

router = api_router("Benchmarks")


@router.get("/v1/eval/benchmarks")
async def list_benchmarks(stack: CurrentStack) -> ListBenchmarksResponse:
    """List benchmarks."""
    return ListBenchmarksResponse(data=await stack.benchmarks.list())


@router.post("/v1/eval/benchmarks")
async def register_benchmark(request: RegisterBenchmarkRequest, stack: CurrentStack) -> None:
    """Register a benchmark. Its dataset and scoring functions are there already."""
    await stack.benchmarks.register(request)


@router.get("/v1/eval/benchmarks/{benchmark_id:path}")
async def get_benchmark(benchmark_id: str, stack: CurrentStack) -> Benchmark:
    """Get a benchmark."""
    return await stack.benchmarks.get(benchmark_id)
