"""Datasets and DatasetIO over HTTP, with the client's library where it has a call."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from llama_stack_client import AsyncLlamaStackClient

from stack.app import create_app
from stack.context import Stack, open_stack

GSM8K = Path(__file__).parents[1] / "data/gsm8k_train.jsonl"
QA = "eval/question-answer"


def rows(count: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in GSM8K.read_text().splitlines()[:count]]


async def register(client: httpx.AsyncClient, given: Any, dataset_id: str = "org/d") -> httpx.Response:
    body = {"purpose": QA, "source": {"type": "rows", "rows": given}, "dataset_id": dataset_id}
    return await client.post("/v1/datasets", json=body)


async def test_a_dataset_from_registration_to_deletion(client: httpx.AsyncClient) -> None:
    answer = await register(client, rows(3))
    assert answer.status_code == 200
    dataset = answer.json()
    assert dataset["source"] == {"type": "rows", "rows": rows(3)}
    assert (dataset["identifier"], dataset["type"], dataset["metadata"]) == ("org/d", "dataset", {})
    assert (await client.get("/v1/datasets/org/d")).json() == dataset
    assert (await client.get("/v1/datasets")).json() == {"data": [dataset]}

    page = await client.get("/v1/datasetio/iterrows/org/d")
    assert page.json() == {"data": rows(3)}
    assert (page.headers["x-total-rows"], page.headers["content-type"]) == ("3", "application/json")
    page = await client.get("/v1/datasetio/iterrows/org/d?start_index=1&limit=1")
    assert page.json() == {"data": rows(2)[1:], "next_start_index": 2}
    assert (await client.get("/v1/datasetio/iterrows/org/d?limit=-1")).json() == {"data": rows(3)}
    assert (await client.get("/v1/datasetio/iterrows/org/d?start_index=9")).json() == {"data": []}

    appended = await client.post("/v1/datasetio/append-rows/org/d", json={"rows": rows(5)[3:]})
    assert (appended.status_code, appended.json()) == (200, None)
    assert (await client.get("/v1/datasetio/iterrows/org/d")).json() == {"data": rows(5)}

    deleted = await client.delete("/v1/datasets/org/d")
    assert (deleted.status_code, deleted.json()) == (200, None)
    for answer in (
        await client.delete("/v1/datasets/org/d"),
        await client.get("/v1/datasets/org/d"),
        await client.get("/v1/datasetio/iterrows/org/d"),
        await client.post("/v1/datasetio/append-rows/org/d", json={"rows": rows(1)}),
    ):
        assert (answer.status_code, answer.json()["title"]) == (404, "Not Found")


async def test_any_json_over_the_wire(client: httpx.AsyncClient) -> None:
    text = (
        '{"question":"q\\u0000","answer":"é\\ud83d\\ude00","n":1e22,"i":123456789012345678901234567890,'
        '"z":null,"f":0.1,"g":-0.0,"h":1.0,"b":{"z":[],"a":{}}}'
    )
    body = f'{{"purpose":"{QA}","dataset_id":"d","source":{{"type":"rows","rows":[{text}]}}}}'
    headers = {"content-type": "application/json"}
    assert (await client.post("/v1/datasets", content=body, headers=headers)).status_code == 200
    answer = await client.get("/v1/datasetio/iterrows/d")
    assert json.dumps(answer.json()["data"]) == json.dumps([json.loads(text)])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([{"question": "q", "answer": "a"}, {"question": "q"}], "row 1 (the first is 0), column 'answer'"),
        ([{"question": 1, "answer": "a"}], "column 'question': is a text, not 1"),
        ([1], "source.rows.0"),
    ],
)
async def test_bad_rows(client: httpx.AsyncClient, given: Any, problem: str) -> None:
    answer = await register(client, given)
    assert answer.status_code == 400
    assert problem in answer.json()["detail"]
    assert (await client.get("/v1/datasets")).json() == {"data": []}


@pytest.mark.parametrize(
    "query", ["start_index=-1", "limit=-2", "limit=x", "start_index=1.5", "start_index=-" + "9" * 30]
)
async def test_bad_pages(client: httpx.AsyncClient, query: str) -> None:
    await register(client, rows(1))
    answer = await client.get(f"/v1/datasetio/iterrows/org/d?{query}")
    assert answer.status_code == 400
    assert query.partition("=")[0] in answer.json()["detail"]


async def test_bad_sources(client: httpx.AsyncClient) -> None:
    for uri, problem in {
        "http://127.0.0.1/x.csv": "not a public host",
        "http://2130706433/x.csv": "unusual spelling",
        "file:///etc/passwd": "STACK_FILE_ROOT",
        "data:text/html,<p>": "csv, tsv, json, jsonl or parquet",
        "data:csv,a%0Ab": "column 'question': is missing",
        "x": "of no kind that is read here",
    }.items():
        body = {"purpose": QA, "source": {"type": "uri", "uri": uri}}
        answer = await client.post("/v1/datasets", json=body)
        assert answer.status_code == 400, uri
        assert problem in answer.json()["detail"]
    for change in ({"purpose": "x"}, {"source": {"type": "x"}}, {"dataset_id": ""}, {"more": 1}):
        body = {"purpose": QA, "source": {"type": "rows", "rows": []}} | change
        assert (await client.post("/v1/datasets", json=body)).status_code == 400


async def test_conflicts(client: httpx.AsyncClient) -> None:
    first = await register(client, rows(2))
    assert (await register(client, rows(2))).json() == first.json()
    conflict = await register(client, rows(3))
    assert (conflict.status_code, conflict.json()["title"]) == (400, "Already Registered")


async def test_an_uploaded_file(client: httpx.AsyncClient) -> None:
    data = GSM8K.read_bytes()
    upload = {"bucket": "b", "key": "dir/x.jsonl", "mime_type": "application/jsonl", "size": len(data)}
    session = (await client.post("/v1/files", json=upload)).json()
    url = session.get("url") or f"/v1/files/session:{session['id']}"
    headers = {"content-type": "application/octet-stream"}
    sent = await client.post(url, content=data, headers=headers)
    assert sent.status_code == 200, sent.text
    for uri in (sent.json()["url"], "files://b/dir/x.jsonl"):
        body = {"purpose": QA, "dataset_id": "d", "source": {"type": "uri", "uri": uri}}
        answer = await client.post("/v1/datasets", json=body)  # the second time: the same
        assert answer.status_code == 200, answer.text
        assert answer.json()["source"]["uri"] == "files://b/dir/x.jsonl"
    assert (await client.get("/v1/datasetio/iterrows/d?limit=2")).json()["data"] == rows(2)


async def test_two_replicas_of_one_stack(client: httpx.AsyncClient, stack: Stack) -> None:
    app = create_app(lambda: open_stack(stack.settings))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://other") as other:
            await register(client, [])
            for number in range(4):
                sender = (client, other)[number % 2]
                body = {"rows": [{"question": "q", "answer": str(number)}]}
                await sender.post("/v1/datasetio/append-rows/org/d", json=body)
                for reader in (client, other):
                    page = (await reader.get("/v1/datasetio/iterrows/org/d")).json()
                    assert [row["answer"] for row in page["data"]] == [str(n) for n in range(number + 1)]


async def test_the_clients_calls(app: FastAPI) -> None:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://stack")
    async with AsyncLlamaStackClient(base_url="http://stack", http_client=http) as client:
        csv = base64.b64encode(b"question,answer\nq,a\n").decode()
        source = {"type": "uri", "uri": f"data:csv;base64,{csv}"}
        made = await client.datasets.register(purpose=QA, source=source, dataset_id="d")  # type: ignore[arg-type]
        assert made.identifier == "d"
        assert [dataset.identifier for dataset in await client.datasets.list()] == ["d"]
        found = await client.datasets.retrieve("d")
        assert found is not None
        assert found.purpose == QA
        page = await client.datasets.iterrows("d", limit=1)
        assert page.data == [{"question": "q", "answer": "a"}]
        await client.datasets.unregister("d")
        assert await client.datasets.list() == []
