"""Every schema of the spec is a type of ours, of the same name and with the same contents."""

import importlib
import pkgutil
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from itertools import chain
from typing import Any

import pytest
from pydantic import TypeAdapter
from typing_extensions import TypeAliasType

import stack.schemas
from stack.schemas.common import Schema
from tests.spec.compare import SIMPLE, Comparison, JsonSchema, load_spec

SPEC: dict[str, JsonSchema] = load_spec()["components"]["schemas"]

JUSTIFIED = {
    "a limit that the spec gives in words": {
        "SamplingParams.repetition_penalty minimum",
        "SamplingParams.repetition_penalty maximum",
        "SamplingParams.stop maxItems",
        "CreateUploadSessionRequest.bucket pattern",
        "CreateUploadSessionRequest.key pattern",
    },
    "a number outside has no meaning": {
        "SamplingParams.max_tokens minimum",
        "TopPSamplingStrategy.temperature minimum",
        "TopPSamplingStrategy.top_p minimum",
        "TopPSamplingStrategy.top_p maximum",
        "TopKSamplingStrategy.top_k minimum",
        "ChatCompletionRequest.logprobs.top_k minimum",
        "CompletionRequest.logprobs.top_k minimum",
        "BatchChatCompletionRequest.logprobs.top_k minimum",
        "BatchCompletionRequest.logprobs.top_k minimum",
        "EmbeddingsRequest.output_dimension minimum",
        "AgentConfig.max_infer_iters minimum",
        "BenchmarkConfig.num_examples minimum",
        "CreateUploadSessionRequest.size minimum",
        "InsertRequest.chunk_size_in_tokens minimum",
        "RAGQueryConfig.max_chunks minimum",
        "RAGQueryConfig.max_tokens_in_context minimum",
        "RegisterVectorDbRequest.embedding_dimension minimum",
        "QueryTracesRequest.limit minimum",
        "QueryTracesRequest.offset minimum",
        "DataConfig.batch_size minimum",
    },
    "no model can answer an empty conversation": {"ChatCompletionRequest.messages minItems"},
    "has a default, so a request may leave it out": {
        "DefaultRAGQueryGeneratorConfig.separator required",
        "Model.model_type required",
        "RAGQueryConfig.max_chunks required",
        "RAGQueryConfig.max_tokens_in_context required",
        "ToolParameter.required required",
    },
    "the spec says nothing about a checkpoint, ours are objects": {
        "Checkpoint type",
        "Checkpoint additionalProperties",
    },
}
ALL_JUSTIFIED = frozenset(chain.from_iterable(JUSTIFIED.values()))


def our_types() -> dict[str, Any]:
    """Models and named unions, by name."""
    types: dict[str, Any] = {}
    for module in pkgutil.iter_modules(stack.schemas.__path__, "stack.schemas."):
        for name, value in vars(importlib.import_module(module.name)).items():
            is_model = isinstance(value, type) and issubclass(value, Schema)
            if is_model or isinstance(value, TypeAliasType):
                assert types.setdefault(name, value) is value, f"{name} is defined twice"
    return types


TYPES = our_types()


@cache
def our_schema(name: str) -> tuple[JsonSchema, dict[str, JsonSchema]]:
    """The JSON schema of one of our types, and the named schemas that it refers to."""
    schema = TypeAdapter(TYPES[name]).json_schema()
    return schema, schema.get("$defs", {})


def differences(name: str, spec: dict[str, JsonSchema] = SPEC) -> list[str]:
    ours, named = our_schema(name)
    return list(Comparison(spec, named).differences(name, spec[name], ours))


def test_the_spec_is_whole() -> None:
    assert len(SPEC) == 202


@pytest.mark.parametrize("name", SPEC)
def test_schema(name: str) -> None:
    assert name in TYPES
    assert [line for line in differences(name) if line.partition(":")[0] not in ALL_JUSTIFIED] == []


def test_justified_differences_exist() -> None:
    """An entry that is no longer a difference must go."""
    found = {line.partition(":")[0] for name in SPEC for line in differences(name)}
    assert found >= ALL_JUSTIFIED


def changes(schema: JsonSchema) -> Iterator[None]:
    """Change one thing after another in the schema, in place, each undone before the next."""
    for keyword in sorted(SIMPLE & schema.keys()):
        value = schema.pop(keyword)
        yield
        schema[keyword] = value
    for keyword in ("required", "oneOf"):
        for index in range(len(schema.get(keyword, []))):
            value = schema[keyword].pop(index)
            yield
            schema[keyword].insert(index, value)
    for keyword in ("properties", "mapping"):
        for name, value in list(schema.get(keyword, {}).items()):
            del schema[keyword][name]
            yield
            schema[keyword][name] = value
    for keyword, other in (
        ("$ref", "#/components/schemas/VersionInfo"),
        ("additionalProperties", {"const": "another"}),
        ("items", {"const": "another"}),
    ):
        if keyword in schema:
            value, schema[keyword] = schema[keyword], other
            yield
            schema[keyword] = value
    for inner in (*schema.get("properties", {}).values(), *schema.get("oneOf", [])):
        yield from changes(inner)
    for keyword in ("items", "additionalProperties", "discriminator"):
        if isinstance(schema.get(keyword), dict):
            yield from changes(schema[keyword])


@pytest.mark.parametrize("name", SPEC)
def test_comparison_sees_every_change(name: str) -> None:
    """Whatever is changed in the spec, the comparison says so."""
    spec = SPEC | {name: deepcopy(SPEC[name])}
    before = differences(name, spec)
    seen = [differences(name, spec) != before for _ in changes(spec[name])]
    assert seen or name == "Checkpoint"
    assert all(seen)
    assert spec == SPEC
