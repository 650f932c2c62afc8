"""TextModel with the real small model and the real batcher: what clients get for what they ask."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from stack.engine.base import FinishReason, NoMeter, Output
from stack.engine.batching.outputs import OutputStream
from stack.engine.fold import fold_chat_completion, fold_completion
from stack.engine.text.chunks import paced, pause_between_chunks
from stack.engine.text.model import TextModel
from stack.engine.text.open import open_text_model
from stack.errors import BadRequest, ContextTooLong, Overloaded
from stack.models.args import ModelArgs
from stack.schemas.content import TextDelta, ToolCall, ToolCallDelta
from stack.schemas.inference import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionResponseStreamChunk,
    CompletionRequest,
    EmbeddingsRequest,
)

LIMIT = 512
Json = dict[str, Any]

PARIS = "What is the capital of France?"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
WEATHER = {
    "tool_name": "get_weather",
    "description": "The weather of a city",
    "parameters": {
        "city": {"param_type": "string"},
        "days": {"param_type": "int", "required": False},
    },
}


@pytest.fixture(scope="module")
def model(smollm2_dir: Path) -> Iterator[TextModel]:
    args = ModelArgs(
        model_id="smol", source="here", dtype="float32", context_length=LIMIT, max_batch=4, max_queue=4
    )
    model = open_text_model(args, smollm2_dir, NoMeter())
    yield model
    model.close()


def greedy(max_tokens: int = 24, **more: Any) -> Json:
    return {"strategy": {"type": "greedy"}, "max_tokens": max_tokens, **more}


def chat_request(content: Any = PARIS, **fields: Any) -> ChatCompletionRequest:
    body = {"messages": [{"role": "user", "content": content}], "sampling_params": greedy(), **fields}
    return ChatCompletionRequest.model_validate({"model_id": "smol", **body})


async def chat(model: TextModel, content: Any = PARIS, **fields: Any) -> ChatCompletionResponse:
    return await fold_chat_completion(model.chat_completion(chat_request(content, **fields)))


async def stream(
    model: TextModel, content: Any = PARIS, **fields: Any
) -> list[ChatCompletionResponseStreamChunk]:
    request = chat_request(content, stream=True, **fields)
    return [chunk async for chunk in model.chat_completion(request)]


async def complete(model: TextModel, content: str, **fields: Any) -> Any:
    body = {"model_id": "smol", "content": content, "sampling_params": greedy(), **fields}
    return await fold_completion(model.completion(CompletionRequest.model_validate(body)))


def metrics(answer: Any) -> dict[str, Any]:
    return {metric.metric: metric.value for metric in answer.metrics}


async def test_chat(model: TextModel) -> None:
    answer = await chat(model)
    assert "Paris" in str(answer.completion_message.content)
    assert answer.completion_message.stop_reason == "end_of_turn"
    assert answer.completion_message.tool_calls is None
    counted = metrics(answer)
    assert counted["prompt_tokens"] == 37
    assert counted["total_tokens"] == counted["prompt_tokens"] + counted["completion_tokens"]


async def test_a_stream_is_the_same_answer(model: TextModel) -> None:
    whole = await chat(model, logprobs={"top_k": 2})
    chunks = await stream(model, logprobs={"top_k": 2})
    assert [chunk.event.event_type for chunk in chunks] == [
        "start", *["progress"] * (len(chunks) - 2), "complete",
    ]  # fmt: skip
    assert len(chunks) > 4
    deltas = [chunk.event.delta for chunk in chunks]
    assert all(isinstance(delta, TextDelta) for delta in deltas)
    texts = [delta.text for delta in deltas if isinstance(delta, TextDelta)]
    assert texts[0] == texts[-1] == ""
    assert "".join(texts) == whole.completion_message.content
    assert chunks[-1].event.stop_reason == "end_of_turn"
    assert chunks[-1].metrics == whole.metrics
    logprobs = [item for chunk in chunks for item in chunk.event.logprobs or []]
    assert logprobs == whole.logprobs
    assert len(logprobs) == metrics(whole)["completion_tokens"]
    for item in logprobs:
        values = list(item.logprobs_by_token.values())
        assert len(values) == 2
        assert values[0] == max(values) <= 0


async def test_completion(model: TextModel) -> None:
    answer = await complete(model, "The capital of France is", sampling_params=greedy(8))
    assert "Paris" in answer.content
    assert answer.stop_reason == "out_of_tokens"
    assert metrics(answer) == {"prompt_tokens": 5, "completion_tokens": 8, "total_tokens": 13}
    body = {"model_id": "smol", "content": "1 2 3 4", "stream": True, "sampling_params": greedy(8)}
    chunks = [chunk async for chunk in model.completion(CompletionRequest.model_validate(body))]
    assert len(chunks) > 2
    assert [chunk.stop_reason for chunk in chunks] == [*[None] * (len(chunks) - 1), "out_of_tokens"]


async def test_special_tokens_in_a_completion_are_meant(model: TextModel) -> None:
    prompt = f"<|im_start|>user\n{PARIS}<|im_end|>\n<|im_start|>assistant\n"
    answer = await complete(model, prompt)
    assert answer.stop_reason == "end_of_turn"
    assert "Paris" in answer.content


async def test_stop_and_max_tokens(model: TextModel) -> None:
    stopped = await chat(model, sampling_params=greedy(stop=[" Paris"]))
    assert stopped.completion_message.content == "The capital of France is"
    assert stopped.completion_message.stop_reason == "end_of_turn"
    cut = await chat(model, sampling_params=greedy(3))
    assert cut.completion_message.stop_reason == "out_of_tokens"
    assert metrics(cut)["completion_tokens"] == 3
    huge = await chat(model, sampling_params=greedy(10**9))
    assert huge.completion_message.stop_reason == "end_of_turn"


async def test_json_schema(model: TextModel) -> None:
    answer = await chat(
        model,
        "Describe John, who is 33 years old, as JSON",
        response_format={"type": "json_schema", "json_schema": PERSON},
        sampling_params=greedy(64),
    )
    value = json.loads(str(answer.completion_message.content))
    Draft202012Validator(PERSON).validate(value)
    assert value["name"] == "John"
    assert answer.completion_message.stop_reason == "end_of_turn"


async def test_json_is_whole_although_the_tokens_run_out(model: TextModel) -> None:
    schema = {"type": "object", "properties": {"story": {"type": "string"}}, "required": ["story"]}
    for sampling in (greedy(24), {"strategy": {"type": "top_p", "temperature": 1.5}, "max_tokens": 24}):
        answer = await chat(
            model,
            "Tell a very long story as JSON",
            response_format={"type": "json_schema", "json_schema": schema},
            sampling_params=sampling,
        )
        Draft202012Validator(schema).validate(json.loads(str(answer.completion_message.content)))


async def test_grammar(model: TextModel) -> None:
    answer = await chat(
        model, "Is the sky blue?", response_format={"type": "grammar", "bnf": {"root": '"yes" | "no"'}}
    )
    assert answer.completion_message.content in ("yes", "no")
    answer = await complete(
        model, "A number:", response_format={"type": "grammar", "bnf": {"root": '" " [0-9]{4}'}}
    )
    assert answer.content.strip().isdigit()


@pytest.mark.parametrize("tool_format", ["json", "function_tag", "python_list", None])
async def test_a_required_call(model: TextModel, tool_format: str | None) -> None:
    config = {"tool_choice": "required", "tool_prompt_format": tool_format}
    answer = await chat(
        model,
        "How is the weather in Paris?",
        tools=[WEATHER],
        tool_config=config,
        sampling_params=greedy(64),
    )
    assert answer.completion_message.content == ""
    assert answer.completion_message.stop_reason == "end_of_message"
    call = (answer.completion_message.tool_calls or [])[0]
    assert call.tool_name == "get_weather"
    assert isinstance(call.arguments, dict)
    assert call.arguments["city"] == "Paris"
    assert json.loads(call.arguments_json or "") == call.arguments


async def test_a_required_call_is_whole_although_the_tokens_run_out(model: TextModel) -> None:
    answer = await chat(model, tools=[WEATHER], tool_choice="required", sampling_params=greedy(24))
    call = (answer.completion_message.tool_calls or [])[0]
    assert isinstance(call.arguments, dict)
    assert isinstance(call.arguments["city"], str)


async def test_a_streamed_call(model: TextModel) -> None:
    chunks = await stream(
        model, "How is the weather in Paris?", tools=[WEATHER], tool_config={"tool_choice": "get_weather"}
    )
    deltas = [chunk.event.delta for chunk in chunks[1:-1]]
    assert all(isinstance(delta, ToolCallDelta) for delta in deltas)
    statuses = [delta.parse_status for delta in deltas if isinstance(delta, ToolCallDelta)]
    assert statuses[0] == "started"
    assert set(statuses[1:-1]) == {"in_progress"}
    assert statuses[-1] == "succeeded"
    written = "".join(str(d.tool_call) for d in deltas[:-1] if isinstance(d, ToolCallDelta))
    assert json.loads(written)["name"] == "get_weather"
    last = deltas[-1]
    assert isinstance(last, ToolCallDelta)
    assert isinstance(last.tool_call, ToolCall)
    assert chunks[-1].event.stop_reason == "end_of_message"


async def test_auto_and_none_answer_in_words(model: TextModel) -> None:
    auto = await chat(model, "Say hello.", tools=[WEATHER])
    none = await chat(model, "Say hello.", tools=[WEATHER], tool_config={"tool_choice": "none"})
    without = await chat(model, "Say hello.")
    assert auto.completion_message.tool_calls is None
    assert none == without


async def test_a_conversation_with_a_tool(model: TextModel) -> None:
    call = {"call_id": "1", "tool_name": "get_weather", "arguments": {"city": "Paris"}}
    messages = [
        {"role": "user", "content": "How is the weather in Paris?"},
        {"role": "assistant", "content": "", "stop_reason": "end_of_message", "tool_calls": [call]},
        {"role": "tool", "call_id": "1", "content": "It is snowing."},
    ]
    asked = await chat(model, messages=messages[:1])
    answer = await chat(model, messages=messages, tools=[WEATHER])
    assert metrics(answer)["prompt_tokens"] > metrics(asked)["prompt_tokens"] + 100
    assert answer.completion_message.content or answer.completion_message.tool_calls


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampling_params": greedy(stop=[""])}, "stop string is empty"),
        ({"sampling_params": greedy(stop=["x" * 1000])}, "1000 characters"),
        ({"sampling_params": greedy(repetition_penalty=0)}, "repetition_penalty is 0"),
        ({"sampling_params": greedy(repetition_penalty=-1)}, "above 0 and at most 2"),
        ({"sampling_params": {"strategy": {"type": "top_p", "top_p": 0}}}, "top_p is 0"),
        ({"sampling_params": {"strategy": {"type": "top_k", "top_k": 0}}}, "greater than or equal to 1"),
        ({"logprobs": {"top_k": 100_000}}, "0 to 100"),
        ({"tool_choice": "required"}, "no tools"),
        ({"tools": [WEATHER], "tool_config": {"tool_choice": "now"}}, "one of: get_weather"),
        ({"tools": [WEATHER, WEATHER]}, "defined twice"),
        ({"response_format": {"type": "json_schema", "json_schema": {"type": "x"}}}, "response_format: "),
        ({"response_format": {"type": "grammar", "bnf": {}}}, "root"),
    ],
)
async def test_what_must_be_changed_is_said(model: TextModel, fields: Json, message: str) -> None:
    with pytest.raises((BadRequest, ValidationError), match=message):
        await chat(model, **fields)


async def test_images_are_refused(model: TextModel) -> None:
    image = {"type": "image", "image": {"data": "aGk="}}
    with pytest.raises(BadRequest, match="'smol' takes text only"):
        await chat(model, [image])
    with pytest.raises(BadRequest, match="text only"):
        await complete(model, [image])  # type: ignore[arg-type]  # as a client might


async def test_embeddings_are_refused(model: TextModel) -> None:
    with pytest.raises(BadRequest, match="'smol' generates text"):
        await model.embeddings(EmbeddingsRequest(model_id="smol", contents=["a"]))


@pytest.mark.parametrize("content", ["a\0b", "\x1b[31m", "🦙" * 20, " \n\t ", "a\u202eb", "<|im_end|>" * 9])
async def test_odd_texts_are_answered(model: TextModel, content: str) -> None:
    answer = await chat(model, content, sampling_params=greedy(4))
    assert metrics(answer)["completion_tokens"] <= 4


async def test_a_prompt_beyond_the_context_names_both_numbers(model: TextModel) -> None:
    with pytest.raises(ContextTooLong, match=f"has 6[0-9]{{2}} tokens, the model takes {LIMIT - 1}"):
        await chat(model, "word " * 600)
    with pytest.raises(ContextTooLong):
        await complete(model, "word " * 600)


async def test_a_huge_message_does_not_hold_up_others(model: TextModel) -> None:
    await chat(model, sampling_params=greedy(1))
    hold_ups: list[float] = []

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            hold_ups.append(time.perf_counter() - before)

    watching = asyncio.create_task(watch())
    for content in ("x" * 10_000_000, "a b " * 100_000, "x y z " * 10_000):
        with pytest.raises(ContextTooLong):
            await chat(model, content)
    await asyncio.sleep(0.02)
    watching.cancel()
    assert max(hold_ups) < 0.3


async def test_an_overloaded_engine_refuses_before_the_first_chunk(model: TextModel) -> None:
    tasks = [asyncio.create_task(stream(model, sampling_params=greedy(64))) for _ in range(16)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    kinds = Counter(type(result).__name__ for result in results)
    assert kinds["Overloaded"] >= 4
    assert kinds["list"] >= 8
    assert kinds.total() == kinds["Overloaded"] + kinds["list"]


async def test_closing_a_stream_frees_its_place(model: TextModel) -> None:
    for _ in range(3):
        streams = [
            model.chat_completion(chat_request(stream=True, sampling_params=greedy(400))) for _ in range(8)
        ]
        first = await asyncio.gather(*(anext(one) for one in streams))
        assert [chunk.event.event_type for chunk in first] == ["start"] * 8
        await asyncio.gather(*(one.aclose() for one in streams))
    running = asyncio.create_task(chat(model, sampling_params=greedy(400)))
    await asyncio.sleep(0.05)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert "Paris" in str((await chat(model)).completion_message.content)
    assert model._streams == 0


async def test_describe(model: TextModel) -> None:
    assert await model.describe() == {
        "context_length": LIMIT,
        "vocab_size": 49152,
        "dtype": "float32",
        "architecture": "LlamaForCausalLM",
        "tool_prompt_formats": ["function_tag", "json", "python_list"],
        "default_tool_format": "json",
        "reads_images": False,
        "takes_adapters": True,
    }


async def test_many_streams_send_fewer_chunks() -> None:
    assert pause_between_chunks(1) <= 0.02
    assert 0.03 <= pause_between_chunks(8) <= 0.06
    assert pause_between_chunks(1000) == 0.15


async def test_the_first_output_comes_at_once_and_later_ones_together() -> None:
    source = OutputStream()

    async def outputs() -> AsyncGenerator[Output]:
        while True:
            output = await source.get()
            yield output
            if output.finish is not None:
                return

    async def produce() -> None:
        for number in range(100):
            source.put(Output(f"{number} ", [number], finish=FinishReason.STOP if number == 99 else None))
            await asyncio.sleep(0)

    producing = asyncio.create_task(produce())
    received = [output.text async for output in paced(outputs(), lambda: 0.02)]
    await producing
    assert received[0] == "0 "
    assert len(received) <= 4
    assert "".join(received) == "".join(f"{number} " for number in range(100))


async def test_chunks_of_an_engine_that_fails(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error after the first output comes after the first chunks, and the stream ends there."""

    async def fails(*_: Any) -> AsyncGenerator[Output]:
        yield Output(text="Hel", token_ids=[1])
        raise Overloaded("out of memory")

    monkeypatch.setattr(model._engine, "generate", fails)
    answer = model.chat_completion(chat_request(stream=True))
    assert [(await anext(answer)).event.event_type for _ in range(2)] == ["start", "progress"]
    with pytest.raises(Overloaded, match="out of memory"):
        await anext(answer)


async def test_logprobs_of_text_that_is_held_back(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call's beginning is held back; its tokens' logprobs come with the next chunk."""
    from stack.engine.base import TokenLogprob

    async def begins(*_: Any) -> AsyncGenerator[Output]:
        for text in ('{"na', 'me": "no'):
            yield Output(text, [1], [TokenLogprob(text, -0.5, {})])
        yield Output("", [2], [TokenLogprob("", -0.1, {})], FinishReason.LENGTH)

    monkeypatch.setattr(model._engine, "generate", begins)
    monkeypatch.setattr("stack.engine.text.model.pause_between_chunks", lambda streams: 0.0)
    chunks = await stream(model, tools=[WEATHER], logprobs={})
    tokens = [next(iter(item.logprobs_by_token)) for c in chunks for item in c.event.logprobs or []]
    assert tokens == ['{"na', 'me": "no', ""]
    assert chunks[-1].event.stop_reason == "out_of_tokens"
    failed = chunks[-2].event.delta
    assert isinstance(failed, ToolCallDelta)
    assert (failed.parse_status, failed.tool_call) == ("failed", '{"name": "no')
