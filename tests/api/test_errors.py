"""Bad input: each answers quickly, with the right status and what to change, and leaves no trace."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from stack.logs import configure_logging
from tests.api.fake import FakeInference, complete, start
from tests.api.test_inference import CHAT, chat

JSON = {"content-type": "application/json"}
STATUSES = {400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 413: "Content Too Large"}


def check(answer: httpx.Response, status: int, *says: str) -> None:
    """The answer is the spec's Error, no more, and says what it should."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body.keys() == {"status", "title", "detail"}
    assert (body["status"], body["title"]) == (status, STATUSES[status])
    assert [part for part in says if part not in body["detail"]] == [], body["detail"]
    assert len(body["detail"]) < 600
    for leak in ("Traceback", ".py", "site-packages", "127.0.0.1", "pydantic"):
        assert leak not in answer.text
    assert len(answer.headers["x-trace-id"]) == 32


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "a JSON body is required"),
        (b"hello", "the body is not JSON"),
        (b'{"model_id": "tiny",}', "trailing comma at line 1 column 21"),
        (b"\xff\xfe{}", "the body is not JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "nested too deep"),
        (b'{"model_id": NaN}', "JSON has no NaN"),
        (b'{"model_id": -Infinity}', "JSON has no NaN and no Infinity"),
        (b'{"model_id": "\\ud800"}', "surrogate"),
        (b'{"model_id": "\xed\xa0\x80"}', "surrogate"),
        (b'{"model_id": ' + b"9" * 100_000 + b"}", "number out of range"),
        (b"null", "the body"),
        (b"[]", "the body"),
        (b'"x"', "the body"),
    ],
)
async def test_bodies_that_are_not_json(client: httpx.AsyncClient, content: bytes, says: str) -> None:
    began = time.perf_counter()
    check(await client.post(CHAT, content=content, headers=JSON), 400, says)
    assert time.perf_counter() - began < 1


async def test_a_body_without_a_content_type_is_not_read(client: httpx.AsyncClient) -> None:
    """A browser can be made to send such a body to a server on its own machine without asking it first."""
    content = json.dumps(chat()).encode()
    check(await client.post(CHAT, content=content), 400, "content-type: application/json", "no content-type")
    form = {"content-type": "application/x-www-form-urlencoded"}
    check(await client.post(CHAT, content=content, headers=form), 400, "x-www-form-urlencoded")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, ["model_id: is required", "messages: is required"]),
        (chat(messages=[]), ["messages", "not []"]),
        (chat(model_id=7), ["model_id: input should be a valid string, not 7"]),
        (chat(colour="red"), ["colour: there is no such field"]),
        (chat(messages=[{"role": "user"}]), ["messages.0.content: is required"]),
        (chat(messages=[{"role": "wizard", "content": "x"}]), ["messages.0", "wizard"]),
        (chat(stream="perhaps"), ["stream", '"perhaps"']),
        (chat(sampling_params={"strategy": {"type": "greedy"}, "max_tokens": -1}), ["max_tokens", "not -1"]),
        (chat(sampling_params={"strategy": {"type": "greedy"}, "max_tokens": 1e300}), ["max_tokens"]),
        (chat(sampling_params={"strategy": {"type": "top_p", "temperature": -1}}), ["temperature", "not -1"]),
        (chat(sampling_params={"strategy": {"type": "top_p", "temperature": "hot"}}), ['not "hot"']),
        (chat(logprobs={"top_k": -5}), ["logprobs.top_k", "not -5"]),
        (chat(messages=[{"role": "user", "content": "x" * 10**6, "a": 1}]), ["messages.0.a: there is no"]),
        (chat(messages="x" * 10**6), ["messages", "xxx…"]),
    ],
)
async def test_bodies_with_wrong_values(client: httpx.AsyncClient, body: Any, says: list[str]) -> None:
    check(await client.post(CHAT, json=body), 400, *says)


async def test_numbers_beyond_floats_are_refused(client: httpx.AsyncClient) -> None:
    content = json.dumps(chat(sampling_params={"strategy": {"type": "top_p", "temperature": 0.5}}))
    for number in ("1e999", "-1e999", "1" * 400 + ".0"):
        answer = await client.post(CHAT, content=content.replace("0.5", number), headers=JSON)
        check(answer, 400, "temperature", "finite")


async def test_many_problems_are_summed_up(client: httpx.AsyncClient) -> None:
    body = chat(**{f"field_{number}": number for number in range(50)})
    check(await client.post(CHAT, json=body), 400, "field_0", "field_2", "and 47 more")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_ids_with_nul_bytes_or_of_absurd_length(client: httpx.AsyncClient, method: str) -> None:
    check(await client.request(method, "/v1/models/a%00b"), 400, "U+0000")
    check(await client.request(method, "/v1/models/" + "x" * 5000), 400, "5000 characters, at most 255")
    check(await client.request(method, "/v1/models/"), 400, "empty")


async def test_nul_bytes_in_a_model_id(client: httpx.AsyncClient) -> None:
    check(await client.post(CHAT, json=chat(model_id="a\0b")), 400, "U+0000")
    check(await client.post(CHAT, json=chat(model_id="x" * 10**6)), 400, "1000000 characters")


async def test_a_message_of_10_mb_and_odd_characters_reach_the_model(
    client: httpx.AsyncClient, fake: FakeInference
) -> None:
    """Whether they fit is the model's to say, in tokens."""
    fake.script = [start(), complete()]
    for text in ("x" * 10_000_000, "a\0b", "\u2028😀"):
        body = chat(messages=[{"role": "user", "content": text}])
        assert (await client.post(CHAT, json=body)).status_code == 200
        assert fake.requests[-1].messages[0].content == text


async def test_unknown_paths(client: httpx.AsyncClient) -> None:
    for path in ("/", "/v1", "/v1/nothing", "/v2/models", "/v1/health/", "/v1/inference/chat-completion/x"):
        check(await client.get(path), 404, path, "/v1/inspect/routes")


async def test_wrong_methods(client: httpx.AsyncClient) -> None:
    answer = await client.put("/v1/models/x/y")
    check(answer, 405, "/v1/models/x/y takes DELETE, GET, not PUT")
    assert answer.headers["allow"] == "DELETE, GET"
    answer = await client.delete("/v1/models")
    check(answer, 405, "takes GET, POST, not DELETE")
    assert (await client.get(CHAT)).headers["allow"] == "POST"


async def test_bodies_that_are_too_large(client: httpx.AsyncClient) -> None:
    check(
        await client.post(CHAT, content=b"x", headers={**JSON, "content-length": "99999999999"}),
        413,
        "64 MiB",
    )

    async def chunks() -> Any:
        for _ in range(70):
            yield b"x" * 2**20

    check(await client.post(CHAT, content=chunks(), headers=JSON), 413, "64 MiB")


async def test_a_crash_tells_nothing(
    app: FastAPI, client: httpx.AsyncClient, fake: FakeInference, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging()  # now to the captured stderr
    fake.script = [RuntimeError("password hunter2 in /opt/stack/secret.py at 10.0.0.7")]
    for stream in (False, True):
        answer = await client.post(CHAT, json=chat(stream=stream))
        assert answer.status_code == 500
        assert answer.json().keys() == {"status", "title", "detail"}
        for word in ("hunter2", "/opt", "10.0.0.7", "RuntimeError", "Traceback"):
            assert word not in answer.text
        log = capfd.readouterr().err
        assert f"trace_id={answer.headers['x-trace-id']}" in log
        assert "RuntimeError" in log
    fake.script = [start(), complete()]
    assert (await client.post(CHAT, json=chat())).status_code == 200


async def test_secrets_of_a_request_are_not_logged(
    client: httpx.AsyncClient, fake: FakeInference, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging()
    fake.script = [RuntimeError("no")]
    header = {"X-LlamaStack-Provider-Data": '{"openai_api_key": "sk-callers-own-key"}', "cookie": "c00kie"}
    await client.post(
        f"{CHAT}?key=in-the-query",
        json=chat(messages=[{"role": "user", "content": "private"}]),
        headers=header,
    )
    log = capfd.readouterr().err
    assert "level=error" in log
    for secret in ("callers-own", "c00kie", "in-the-query", "private"):
        assert secret not in log


async def test_bad_requests_leave_no_trace(client: httpx.AsyncClient, fake: FakeInference) -> None:
    fake.script = [start(), complete()]
    before = (await client.post(CHAT, json=chat())).json()
    for content in (b"[" * 100_000, b"NaN", b'{"a": "\\ud800"}', b"{}"):
        await client.post(CHAT, content=content, headers=JSON)
    assert (await client.post(CHAT, json=chat())).json() == before
