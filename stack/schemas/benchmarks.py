"""Benchmarks: a dataset and the functions that score answers to it."""

from typing import Literal

from stack.schemas.common import Identifier, JsonObject, Schema


class Benchmark(Schema):
    identifier: str
    provider_resource_id: str
    provider_id: str
    type: Literal["benchmark"] = "benchmark"
    dataset_id: str
    scoring_functions: list[str]
    metadata: JsonObject


class RegisterBenchmarkRequest(Schema):
    benchmark_id: Identifier
    dataset_id: str
    scoring_functions: list[str]
    provider_benchmark_id: str | None = None
    provider_id: str | None = None
    metadata: JsonObject | None = None


class ListBenchmarksResponse(Schema):
    data: list[Benchmark]
