"""The rules that all wire types share: what is left out, kept and refused, and how it is said."""

import json
import pickle
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from stack.schemas import agents, datasets, files, inference, messages, models, sampling, telemetry, tools
from stack.schemas.common import Schema


class Answer(Schema):
    """A type that refers to others in each way that a field can."""

    required: int | None
    model: models.Model | None = None
    listed: list[models.Model] | None = None
    content: messages.InterleavedContent | None = None
    count: int = 0


MODEL = models.Model(identifier="m", provider_resource_id="m", provider_id="p", metadata={"a": None})
MODEL_JSON = {
    "identifier": "m",
    "provider_resource_id": "m",
    "provider_id": "p",
    "type": "model",
    "metadata": {"a": None},
    "model_type": "llm",
}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(required=None), {"required": None, "count": 0}),
        (Answer(required=1, content=""), {"required": 1, "content": "", "count": 0}),
        (
            Answer(required=1, model=MODEL, listed=[MODEL]),
            {"required": 1, "model": MODEL_JSON, "listed": [MODEL_JSON], "count": 0},
        ),
    ],
)
def test_optional_fields_are_left_out_and_all_else_is_kept(answer: Answer, expected: dict[str, Any]) -> None:
    """However the value is written: alone, in a list, as a part of a type that has other rules."""

    class Other(BaseModel):
        answer: Answer
        nothing: None = None

    assert json.loads(answer.model_dump_json()) == answer.model_dump(mode="json") == expected
    assert json.loads(TypeAdapter(list[Answer]).dump_json([answer])) == [expected]
    assert Other(answer=answer).model_dump() == {"answer": expected, "nothing": None}


def test_null_is_accepted_for_an_optional_field() -> None:
    request = {"model_id": "m", "content": "a", "sampling_params": None, "stream": None, "logprobs": None}
    assert inference.CompletionRequest.model_validate(request).model_dump() == {
        "model_id": "m",
        "content": "a",
    }


def test_null_is_a_value_to_compare_with() -> None:
    condition = telemetry.QueryCondition(key="k", op="eq", value=None)
    assert condition.model_dump() == {"key": "k", "op": "eq", "value": None}


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("2025-01-02T03:04:05", "2025-01-02T03:04:05Z"),
        ("2025-01-02T03:04:05Z", "2025-01-02T03:04:05Z"),
        ("2025-01-02T03:04:05.5+05:30", "2025-01-02T03:04:05.500000+05:30"),
        (datetime(2025, 1, 2), "2025-01-02T00:00:00Z"),
    ],
)
def test_times_have_an_offset(given: str | datetime, written: str) -> None:
    trace = telemetry.Trace.model_validate({"trace_id": "t", "root_span_id": "s", "start_time": given})
    assert trace.start_time.tzinfo is not None
    assert trace.model_dump(mode="json")["start_time"] == written


GREEDY = {"strategy": {"type": "greedy"}}
CHAT = {"model_id": "m", "messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("type_", "value", "where", "what"),
    [
        (sampling.SamplingParams, GREEDY | {"stop": list("abcde")}, "stop", "at most 4 items"),
        (sampling.SamplingParams, GREEDY | {"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        (sampling.SamplingParams, GREEDY | {"seed": 1}, "seed", "not permitted"),
        (
            sampling.SamplingParams,
            {"strategy": {"type": "top_p", "temperature": float("nan")}},
            "strategy.top_p.temperature",
            "finite number",
        ),
        (sampling.SamplingParams, {"strategy": {"type": "beam"}}, "strategy", "'greedy', 'top_p', 'top_k'"),
        (inference.ChatCompletionRequest, CHAT | {"messages": []}, "messages", "at least 1 item"),
        (
            inference.ChatCompletionRequest,
            CHAT | {"messages": [{"role": "user", "content": 3}]},
            "messages.0.user.content",
            "Content should be a string, an item",
        ),
        (
            inference.ChatCompletionRequest,
            CHAT | {"messages": [{"role": "user", "content": [{"type": "image", "image": {}}]}]},
            "messages.0.user.content.items.0.image.image",
            'an image needs "url" or "data"',
        ),
        (inference.EmbeddingsRequest, {"model_id": "m", "contents": "a"}, "contents", "a list of strings or"),
        (models.RegisterModelRequest, {"model_id": " "}, "model_id", "at least one visible character"),
        (models.RegisterModelRequest, {"model_id": "a\0b"}, "model_id", "no control characters"),
        (
            models.RegisterModelRequest,
            {"model_id": "m", "metadata": {"a": [float("inf")]}},
            "metadata.a.list.0.float",
            "finite number",
        ),
        (
            files.CreateUploadSessionRequest,
            {"bucket": "a/b", "key": "k", "mime_type": "text/plain", "size": 1},
            "bucket",
            "should match pattern",
        ),
        (
            datasets.RegisterDatasetRequest,
            {"purpose": "x", "source": {}},
            "purpose",
            "post-training/messages",
        ),
    ],
)
def test_errors_name_the_place_and_the_rule(
    type_: type[Schema], value: dict[str, Any], where: str, what: str
) -> None:
    with pytest.raises(ValidationError) as error:
        type_.model_validate(value)
    found = {".".join(map(str, each["loc"])): each["msg"] for each in error.value.errors()}
    assert what in found[where]


def test_deep_json_is_refused() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValidationError, match="depth"):
        models.RegisterModelRequest.model_validate({"model_id": "m", "metadata": {"a": value}})


def test_a_clients_tool_may_carry_a_prompt_format() -> None:
    """llama-stack-client 0.1.9 sends one with each tool that it runs itself; nothing else is let in."""
    tool = {"name": "add", "parameters": [], "metadata": {}}
    assert tools.ToolDef.model_validate(tool | {"tool_prompt_format": "json"}).model_dump() == tool
    with pytest.raises(ValidationError):
        tools.ToolDef.model_validate(tool | {"another": 1})


def test_another_process_reads_the_pickle() -> None:
    """Ray carries wire types between replicas as pickles; the reader has not imported them before."""
    turn = agents.Turn(
        turn_id="t",
        session_id="s",
        input_messages=[messages.UserMessage(content="a")],
        steps=[],
        output_message=messages.CompletionMessage(content="b", stop_reason="end_of_turn"),
        started_at=datetime(2025, 1, 2, tzinfo=UTC),
    )
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).model_dump_json())"
    result = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(turn), capture_output=True, check=True
    )
    assert agents.Turn.model_validate_json(result.stdout) == turn


def test_import_is_fast() -> None:
    """Each API replica imports all wire types. It takes about 100 ms of an idle core."""
    code = """
import importlib, pkgutil, time
import pydantic, typing_extensions, stack.schemas
start = time.process_time()
for module in pkgutil.iter_modules(stack.schemas.__path__, "stack.schemas."):
    importlib.import_module(module.name)
print(time.process_time() - start)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert float(result.stdout) < 0.5
