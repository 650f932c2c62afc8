"""Inference on the running server, through the client library."""

from __future__ import annotations

import concurrent.futures
import json
import time

import httpx
import numpy as np
import pytest
from jsonschema import validate
from llama_stack_client import BadRequestError, LlamaStackClient, NotFoundError

MODEL, EMBEDDING = "smollm2-135m", "all-MiniLM-L6-v2"
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
GREEDY = {"strategy": {"type": "greedy"}, "max_tokens": 24}


def test_chat(client: LlamaStackClient) -> None:
    answer = client.inference.chat_completion(model_id=MODEL, messages=QUESTION, sampling_params=GREEDY)
    assert "Paris" in answer.completion_message.content
    assert answer.completion_message.stop_reason in ("end_of_turn", "out_of_tokens")
    metrics = {metric.metric: metric.value for metric in answer.metrics or []}
    assert metrics["total_tokens"] == metrics["prompt_tokens"] + metrics["completion_tokens"]
    assert 0 < metrics["completion_tokens"] <= 24


def test_a_stream_says_the_same(client: LlamaStackClient) -> None:
    whole = client.inference.chat_completion(model_id=MODEL, messages=QUESTION, sampling_params=GREEDY)
    chunks = list(
        client.inference.chat_completion(
            model_id=MODEL, messages=QUESTION, sampling_params=GREEDY, stream=True
        )
    )
    kinds = [chunk.event.event_type for chunk in chunks]
    assert (kinds[0], kinds[-1]) == ("start", "complete")
    assert set(kinds[1:-1]) == {"progress"}
    assert "".join(chunk.event.delta.text for chunk in chunks) == whole.completion_message.content
    assert chunks[-1].event.stop_reason == whole.completion_message.stop_reason
    assert chunks[-1].metrics


def test_completion_with_logprobs(client: LlamaStackClient) -> None:
    answer = client.inference.completion(
        model_id=MODEL,
        content="The capital of France is",
        sampling_params={"strategy": {"type": "greedy"}, "max_tokens": 4},
        logprobs={"top_k": 3},
    )
    assert answer.content.startswith(" Paris")
    assert answer.logprobs
    assert len(answer.logprobs) == 4
    for position in answer.logprobs:
        assert len(position.logprobs_by_token) == 3
        assert max(position.logprobs_by_token.values()) <= 0


def test_a_schema_is_kept(client: LlamaStackClient) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 40}, "population": {"type": "integer"}},
        "required": ["city", "population"],
        "additionalProperties": False,
    }
    answer = client.inference.chat_completion(
        model_id=MODEL,
        messages=QUESTION,
        sampling_params={"strategy": {"type": "top_p", "temperature": 1.5, "top_p": 0.99}, "max_tokens": 200},
        response_format={"type": "json_schema", "json_schema": schema},
    )
    validate(json.loads(answer.completion_message.content), schema)


def test_a_required_tool_is_called(client: LlamaStackClient) -> None:
    answer = client.inference.chat_completion(
        model_id=MODEL,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[
            {
                "tool_name": "get_weather",
                "description": "The weather in a city",
                "parameters": {"city": {"param_type": "string", "description": "The city"}},
            }
        ],
        tool_config={"tool_choice": "required"},
        sampling_params={"strategy": {"type": "greedy"}, "max_tokens": 100},
    )
    call = answer.completion_message.tool_calls[0]
    assert call.tool_name == "get_weather"
    assert isinstance(call.arguments["city"], str)
    assert answer.completion_message.stop_reason == "end_of_message"


def test_embeddings(client: LlamaStackClient) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose again."]
    rows = np.array(client.inference.embeddings(model_id=EMBEDDING, contents=texts).embeddings)
    assert rows.shape == (3, 384)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-2)
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.2


def test_many_at_once(client: LlamaStackClient) -> None:
    def ask(number: int) -> str:
        answer = client.inference.completion(
            model_id=MODEL,
            content=f"Count: {number}, {number + 1}, {number + 2},",
            sampling_params={"strategy": {"type": "greedy"}, "max_tokens": 8},
        )
        return answer.content

    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(ask, range(40)))
    assert sum(str(number + 3) in answer for number, answer in enumerate(answers)) >= 30


def test_unknown_model(client: LlamaStackClient) -> None:
    with pytest.raises(NotFoundError) as error:
        client.inference.chat_completion(model_id="nobody", messages=QUESTION)
    assert error.value.body["status"] == 404  # type: ignore[index]
    assert "nobody" in error.value.body["detail"]  # type: ignore[index]


def test_models_asked_for_what_they_are_not(client: LlamaStackClient) -> None:
    with pytest.raises(BadRequestError, match="embedding"):
        client.inference.chat_completion(model_id=EMBEDDING, messages=QUESTION)
    with pytest.raises(BadRequestError, match="text model"):
        client.inference.embeddings(model_id=MODEL, contents=["x"])


def test_a_prompt_beyond_the_context_names_both_numbers(client: LlamaStackClient) -> None:
    # One token must be left for the answer.
    limit = int(client.models.retrieve(MODEL).metadata["context_length"])  # type: ignore[arg-type]
    with pytest.raises(BadRequestError, match=rf"has \d+ tokens.* takes {limit - 1}"):
        client.inference.completion(model_id=MODEL, content="word " * (limit + 10))


def test_an_early_error_of_a_stream_keeps_its_status(http: httpx.Client) -> None:
    body = {"model_id": MODEL, "content": "word " * 20_000, "stream": True}
    answer = http.post("/v1/inference/completion", json=body)
    assert answer.status_code == 400
    assert answer.json()["title"] == "Context Too Long"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(http: httpx.Client, stream: bool) -> None:
    """Many long answers are abandoned; a short one right after is as quick as if they had never been."""
    body = {
        "model_id": MODEL,
        "content": "Once upon a time",
        "sampling_params": {"strategy": {"type": "top_p", "temperature": 1.0}, "max_tokens": 1500},
        "stream": stream,
    }

    def abandon(_: int) -> None:
        with httpx.Client(base_url=http.base_url, timeout=httpx.Timeout(10, read=0.7)) as leaving:
            try:
                with leaving.stream("POST", "/v1/inference/completion", json=body) as answer:
                    for _ in answer.iter_raw():
                        return
            except httpx.ReadTimeout:
                return

    short = body | {"sampling_params": {"strategy": {"type": "greedy"}, "max_tokens": 8}, "stream": False}
    began = time.monotonic()
    http.post("/v1/inference/completion", json=short).raise_for_status()
    alone = time.monotonic() - began
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        list(pool.map(abandon, range(40)))
    time.sleep(0.5)
    began = time.monotonic()
    http.post("/v1/inference/completion", json=short).raise_for_status()
    assert time.monotonic() - began < 3 * alone + 1
