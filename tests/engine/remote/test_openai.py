"""OpenAIModel against a real HTTP server on loopback that speaks the protocol."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from pydantic import SecretStr

from stack.engine.fold import fold_chat_completion, fold_completion
from stack.engine.remote.openai import OpenAIModel, api_key, open_client
from stack.errors import BadRequest, Overloaded, StackError, UpstreamError
from stack.models.args import ModelArgs
from stack.schemas.content import TextDelta, ToolCall, ToolCallDelta
from stack.schemas.inference import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionResponseStreamChunk,
    CompletionRequest,
    EmbeddingsRequest,
)
from stack.settings import Settings
from tests.engine.remote.openai_server import USAGE, Endpoint, call_delta, delta, whole

PNG = b"\x89PNG\r\n\x1a\n"
TOOL = {
    "tool_name": "add",
    "description": "Adds.",
    "parameters": {
        "a": {"param_type": "int", "description": "First"},
        "b": {"param_type": "number", "required": False, "default": 1},
    },
}


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with Endpoint().serving() as endpoint:
        yield endpoint


@pytest.fixture
async def model(endpoint: Endpoint) -> AsyncIterator[OpenAIModel]:
    settings = Settings(egress_allow="127.0.0.1")
    async with open_client(settings) as client:
        yield OpenAIModel(args(endpoint), client, "sk-key")


def args(endpoint: Endpoint, **more: Any) -> ModelArgs:
    return ModelArgs(model_id="remote", source=f"{endpoint.base_url}#gpt", provider_id="openai", **more)


def chat(text: str = "hi", **more: Any) -> ChatCompletionRequest:
    messages = more.pop("messages", [{"role": "user", "content": text}])
    return ChatCompletionRequest.model_validate({"model_id": "remote", "messages": messages, **more})


async def answer(model: OpenAIModel, **more: Any) -> ChatCompletionResponse:
    return await fold_chat_completion(model.chat_completion(chat(**more)))


async def stream(model: OpenAIModel, **more: Any) -> list[ChatCompletionResponseStreamChunk]:
    return [chunk async for chunk in model.chat_completion(chat(stream=True, **more))]


async def test_a_chat_that_is_not_streamed(model: OpenAIModel, endpoint: Endpoint) -> None:
    endpoint.answer = whole("hello")
    response = await answer(model)
    assert response.completion_message.content == "hello"
    assert response.completion_message.stop_reason == "end_of_turn"
    assert {m.metric: m.value for m in response.metrics or ()} == USAGE
    assert endpoint.keys == ["Bearer sk-key"]
    assert endpoint.bodies == [
        {"model": "gpt", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.0}
    ]


async def test_a_streamed_chat(model: OpenAIModel, endpoint: Endpoint) -> None:
    endpoint.events = [
        delta(role="assistant", content=""),
        delta(content="he"),
        delta(content="llo"),
        delta(finish_reason="length"),
        {"choices": [], "usage": USAGE},
    ]
    chunks = await stream(model)
    assert [chunk.event.event_type for chunk in chunks] == ["start", "progress", "progress", "complete"]
    deltas = [chunk.event.delta for chunk in chunks]
    assert deltas == [TextDelta(text=text) for text in ("", "he", "llo", "")]
    assert chunks[-1].event.stop_reason == "out_of_tokens"
    assert {m.metric: m.value for m in chunks[-1].metrics or ()} == USAGE
    assert endpoint.bodies[0]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"strategy": {"type": "greedy"}, "max_tokens": 5}, {"temperature": 0.0, "max_tokens": 5}),
        (
            {"strategy": {"type": "top_p", "temperature": 0.7, "top_p": 0.9}},
            {"temperature": 0.7, "top_p": 0.9},
        ),
        ({"strategy": {"type": "top_k", "top_k": 40}}, {"temperature": 1.0, "top_k": 40}),
        (
            {"strategy": {"type": "greedy"}, "stop": ["a", "b"], "repetition_penalty": 1.3},
            {"temperature": 0.0, "stop": ["a", "b"], "repetition_penalty": 1.3, "repeat_penalty": 1.3},
        ),
    ],
)
async def test_sampling(
    model: OpenAIModel, endpoint: Endpoint, params: dict[str, Any], expected: dict[str, Any]
) -> None:
    endpoint.answer = whole("x")
    await answer(model, sampling_params=params)
    body = endpoint.bodies[0]
    assert {key: body[key] for key in body.keys() - {"model", "messages"}} == expected


async def test_messages_of_all_kinds(model: OpenAIModel, endpoint: Endpoint) -> None:
    endpoint.answer = whole("x")
    image = base64.b64encode(PNG).decode()
    await answer(
        model,
        messages=[
            {"role": "system", "content": "One."},
            {"role": "user", "content": [{"type": "text", "text": "a"}], "context": "b"},
            {
                "role": "assistant",
                "content": "",
                "stop_reason": "end_of_message",
                "tool_calls": [{"call_id": "c1", "tool_name": "add", "arguments": {"a": 1}}],
            },
            {"role": "tool", "call_id": "c1", "content": "2"},
            {"role": "system", "content": "Two."},
            {
                "role": "user",
                "content": [{"type": "image", "image": {"data": image}}, {"type": "text", "text": "what?"}],
            },
        ],
    )
    function = {"name": "add", "arguments": '{"a": 1}'}
    assert endpoint.bodies[0]["messages"] == [
        {"role": "system", "content": "One.\n\nTwo."},
        {"role": "user", "content": "a\n\nb"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
                {"type": "text", "text": "what?"},
            ],
        },
    ]


async def test_an_image_s_url_is_fetched_here_and_guarded(model: OpenAIModel, endpoint: Endpoint) -> None:
    content = {"type": "image", "image": {"url": {"uri": "http://127.0.0.1:1/private.png"}}}
    with pytest.raises(BadRequest, match="not a public host"):
        await answer(model, messages=[{"role": "user", "content": content}])
    assert endpoint.bodies == []


async def test_tools_and_choices(model: OpenAIModel, endpoint: Endpoint) -> None:
    endpoint.answer = whole("x")
    named = {"type": "function", "function": {"name": "add"}}
    for choice, expected in {"auto": "auto", "none": "none", "required": "required", "add": named}.items():
        await answer(model, tools=[TOOL], tool_config={"tool_choice": choice})
        assert endpoint.bodies[-1]["tool_choice"] == expected
    parameters = {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "description": "First"},
            "b": {"type": "number", "default": 1},
        },
        "required": ["a"],
    }
    assert endpoint.bodies[-1]["tools"] == [
        {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": parameters}}
    ]
    for tools, choice in [([TOOL], "subtract"), ([], "required")]:
        with pytest.raises(BadRequest, match="tool_choice is"):
            await answer(model, tools=tools, tool_config={"tool_choice": choice})


async def test_streamed_tool_calls_are_assembled(model: OpenAIModel, endpoint: Endpoint) -> None:
    endpoint.events = [
        delta(role="assistant", content="Well."),
        call_delta(0, "c1", "add"),
        call_delta(0, arguments='{"a"'),
        call_delta(0, arguments=": 1}"),
        call_delta(1, "c2", "add", '{"a": '),
        call_delta(1, arguments="[1, {"),
        delta(finish_reason="tool_calls"),
    ]
    chunks = await stream(model, tools=[TOOL])
    deltas = [c.event.delta for c in chunks if isinstance(c.event.delta, ToolCallDelta)]
    call = ToolCall(call_id="c1", tool_name="add", arguments={"a": 1}, arguments_json='{"a": 1}')
    assert deltas == [
        ToolCallDelta(tool_call=call, parse_status="succeeded"),
        ToolCallDelta(tool_call='add({"a": [1, {)', parse_status="failed"),
    ]
    assert chunks[-1].event.stop_reason == "end_of_message"


async def test_whole_calls_without_index_or_id(model: OpenAIModel, endpoint: Endpoint) -> None:
    functions = [{"name": "add", "arguments": '{"a": {"b": {"c": [1]}}}'}, {"name": "now", "arguments": ""}]
    # A call of a named tool ends with "stop".
    endpoint.answer = whole(tool_calls=[{"type": "function", "function": f} for f in functions])
    message = (await answer(model, tools=[TOOL])).completion_message
    first, second = message.tool_calls or ()
    assert (first.arguments, first.arguments_json) == (functions[0]["arguments"], functions[0]["arguments"])
    assert (second.tool_name, second.arguments, second.arguments_json) == ("now", {}, "{}")
    assert first.call_id != second.call_id
    assert message.stop_reason == "end_of_message"


async def test_logprobs_streamed_and_not(model: OpenAIModel, endpoint: Endpoint) -> None:
    tops = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -2.5}]
    found = {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": tops}]}
    endpoint.answer = whole("a", logprobs=found)
    endpoint.events = [delta(content="a", logprobs=found), delta(finish_reason="stop")]
    response = await answer(model, logprobs={"top_k": 2})
    assert endpoint.bodies[0]["top_logprobs"] == 2
    assert endpoint.bodies[0]["logprobs"] is True
    chunks = await stream(model, logprobs={"top_k": 2})
    expected = [{"a": -0.1, "b": -2.5}]
    assert [p.logprobs_by_token for p in response.logprobs or ()] == expected
    assert [p.logprobs_by_token for c in chunks for p in c.event.logprobs or ()] == expected


async def test_a_json_schema_is_sent_and_its_answer_checked(model: OpenAIModel, endpoint: Endpoint) -> None:
    wanted = {"type": "json_schema", "json_schema": {"type": "object"}}
    endpoint.answer = whole("{}")
    assert (await answer(model, response_format=wanted)).completion_message.content == "{}"
    assert endpoint.bodies[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}
    endpoint.answer = whole("Sure! {}")
    with pytest.raises(UpstreamError, match="does not enforce response_format"):
        await answer(model, response_format=wanted)
    with pytest.raises(BadRequest, match="takes no grammars"):
        await answer(model, response_format={"type": "grammar", "bnf": {"root": "x"}})


async def test_completion(model: OpenAIModel, endpoint: Endpoint) -> None:
    found = {"tokens": ["x"], "token_logprobs": [-0.5], "top_logprobs": [{"y": -0.7}]}
    endpoint.answer = {"choices": [{"text": "x", "finish_reason": "stop", "logprobs": found}], "usage": USAGE}
    request = {"model_id": "remote", "content": "once", "logprobs": {"top_k": 1}}
    response = await fold_completion(model.completion(CompletionRequest.model_validate(request)))
    assert (response.content, response.stop_reason) == ("x", "end_of_turn")
    assert [p.logprobs_by_token for p in response.logprobs or ()] == [{"x": -0.5, "y": -0.7}]
    expected = {"model": "gpt", "prompt": "once", "max_tokens": None, "temperature": 0.0, "logprobs": 1}
    assert endpoint.bodies == [expected]
    endpoint.events = [
        {"choices": [{"text": t, "finish_reason": f}]} for t, f in (("a", None), ("b", "length"))
    ]
    streamed = model.completion(CompletionRequest(model_id="remote", content="once", stream=True))
    chunks = [(chunk.delta, chunk.stop_reason) async for chunk in streamed]
    assert chunks == [("a", None), ("b", None), ("", "out_of_tokens")]
    image = {"type": "image", "image": {"data": "AA=="}}
    with pytest.raises(BadRequest, match="use text"):
        await anext(model.completion(CompletionRequest.model_validate(request | {"content": image})))


async def test_embeddings(model: OpenAIModel, endpoint: Endpoint) -> None:
    texts = ["a" * n for n in range(1, 301)]
    request = EmbeddingsRequest(model_id="remote", contents=texts, output_dimension=2)
    embeddings = (await model.embeddings(request)).embeddings
    assert [vector[0] for vector in embeddings] == [float(n) for n in range(1, 301)]
    assert [len(body["input"]) for body in endpoint.bodies] == [256, 44]
    assert endpoint.bodies[0]["dimensions"] == 2
    assert (await model.embeddings(EmbeddingsRequest(model_id="remote", contents=[]))).embeddings == []
    endpoint.error = 400, {}, {"error": {"message": "8193 tokens, at most 8192"}}
    for truncation, words in {
        "none": "at most 8192",
        "end": "does not truncate, so send shorter texts",
    }.items():
        with pytest.raises(BadRequest, match=words):
            await model.embeddings(request.model_copy(update={"text_truncation": truncation}))


async def test_describe(model: OpenAIModel, endpoint: Endpoint) -> None:
    assert await model.describe() == {"context_length": 4096}
    embedder = OpenAIModel(args(endpoint, model_type="embedding"), model._client)
    assert await embedder.describe() == {"embedding_dimension": 2}


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (400, BadRequest, "maximum context"),
        (401, BadRequest, "openai_api_key"),
        (404, BadRequest, "maximum context"),
        (422, BadRequest, "maximum context"),
        (429, Overloaded, "overloaded"),
        (500, UpstreamError, "failed"),
        (503, UpstreamError, "failed"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_errors(
    model: OpenAIModel,
    endpoint: Endpoint,
    status: int,
    error: type[StackError],
    words: str,
    streamed: bool,
) -> None:
    message = "maximum context is 8 tokens. Key sk-key, sk-proj-abc, Bearer xyz"
    endpoint.error = status, {"Retry-After": "7"}, {"error": {"message": message, "code": None}}
    with pytest.raises(error, match=words) as raised:
        await anext(model.chat_completion(chat(stream=streamed)))
    assert len(endpoint.bodies) == 1  # nothing is sent twice
    for secret in ("sk-key", "proj-abc", "xyz", "127.0.0.1"):
        assert secret not in str(raised.value)
    if isinstance(raised.value, Overloaded):
        assert raised.value.retry_after_s == 7


@pytest.mark.parametrize(
    "malformed",
    [[], {}, "text", {"choices": None}, {"choices": [3]}, {"choices": [{"message": {"content": [1]}}]}],
)
async def test_what_is_not_the_protocol_is_the_endpoint_s_fault(
    model: OpenAIModel, endpoint: Endpoint, malformed: Any
) -> None:
    endpoint.answer = malformed
    with pytest.raises(UpstreamError, match="protocol"):
        await answer(model)


async def test_an_error_within_a_stream(model: OpenAIModel, endpoint: Endpoint) -> None:
    endpoint.events = [delta(content="a"), {"error": {"message": "out of memory", "code": 500}}]
    with pytest.raises(UpstreamError, match="out of memory"):
        await stream(model)


@pytest.mark.parametrize("breaks_off", [False, True])
async def test_a_stream_that_ends_early(model: OpenAIModel, endpoint: Endpoint, breaks_off: bool) -> None:
    endpoint.events = [delta(content="a"), delta(content="b")]
    endpoint.breaks_off = breaks_off
    with pytest.raises(UpstreamError, match="broke off"):
        await stream(model)


async def test_closing_the_stream_disconnects(model: OpenAIModel, endpoint: Endpoint) -> None:
    endpoint.events = [delta(content="a")] * 1000
    endpoint.event_delay_s = 0.02
    async with aclosing(model.chat_completion(chat(stream=True))) as chunks:  # type: ignore[type-var]
        assert (await anext(chunks)).event.event_type == "start"
        assert (await anext(chunks)).event.delta == TextDelta(text="a")
    await asyncio.wait_for(endpoint.disconnected.wait(), 2)
    assert endpoint.events_sent < 50


async def test_pieces_come_when_they_are_sent(model: OpenAIModel, endpoint: Endpoint) -> None:
    endpoint.events = [*[delta(content="a")] * 3, delta(finish_reason="stop")]
    endpoint.event_delay_s = 0.1
    sent = [endpoint.events_sent async for _ in model.chat_completion(chat(stream=True))]
    assert sent[1] < 3


async def test_an_endpoint_that_is_not_there(endpoint: Endpoint) -> None:
    gone = ModelArgs(model_id="remote", source="http://127.0.0.1:9/v1", provider_id="openai")
    async with open_client(Settings(egress_allow="127.0.0.1")) as client:
        with pytest.raises(UpstreamError, match="cannot be reached"):
            await answer(OpenAIModel(gone, client))
    async with open_client(Settings()) as client:
        with pytest.raises(BadRequest, match="not a public host"):
            await answer(OpenAIModel(args(endpoint), client))
    assert endpoint.bodies == []


def test_the_server_s_key_goes_to_its_own_endpoint_only() -> None:
    settings = Settings(openai_api_key=SecretStr("sk-own"), openai_base_url="https://api.example/v1/")

    def key(source: str, **provider_data: Any) -> str | None:
        return api_key(ModelArgs(model_id="m", source=source, provider_id="openai"), settings, provider_data)

    assert key("https://api.example/v1#m") == "sk-own"
    assert key("https://api.example/v1/#m") == "sk-own"
    for foreign in (
        "https://evil.example/v1#m",
        "https://api.example.evil/v1",
        "http://api.example/v1",
        "https://api.example/v1.evil#m",
        "https://evil.example/#https://api.example/v1",
    ):
        assert key(foreign) is None
    assert key("https://evil.example/v1#m", openai_api_key="sk-mine") == "sk-mine"
    for bad in (3, "a\nb", "é"):
        with pytest.raises(BadRequest, match="openai_api_key"):
            key("https://api.example/v1#m", openai_api_key=bad)
