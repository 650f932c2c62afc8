"""Vector databases over HTTP and through llama-stack-client, with real MiniLM and real LanceDB."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from llama_stack_client import AsyncLlamaStackClient

from stack.app import create_app
from stack.settings import Settings
from tests.api.test_tracing import spans_of
from tests.vector.conftest import embedder, minilm, opened
from tests.vector.embedder import Embedder

__all__ = ["embedder", "minilm"]  # fixtures

INSERT, QUERY = "/v1/vector-io/insert", "/v1/vector-io/query"


@pytest.fixture
async def app(tmp_path: Path, embedder: Embedder) -> AsyncIterator[FastAPI]:
    app = create_app(lambda: opened(Settings(home=tmp_path / "home"), embedder))
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def llama(client: httpx.AsyncClient) -> AsyncLlamaStackClient:
    found = AsyncLlamaStackClient(base_url="http://stack", http_client=client, max_retries=0)
    await found.vector_dbs.register(
        vector_db_id="org/db", embedding_model="mini", embedding_dimension=384, provider_id="lancedb"
    )
    return found


async def test_a_vector_database_s_life(llama: AsyncLlamaStackClient, client: httpx.AsyncClient) -> None:
    found = await llama.vector_dbs.retrieve("org/db")
    assert found.model_dump() == {
        "identifier": "org/db",
        "type": "vector_db",
        "provider_id": "lancedb",
        "provider_resource_id": "org/db",
        "embedding_model": "mini",
        "embedding_dimension": 384,
    }
    assert [one.identifier for one in await llama.vector_dbs.list()] == ["org/db"]
    await llama.vector_io.insert(
        vector_db_id="org/db",
        chunks=[
            {"content": "Llamas carry loads.", "metadata": {"document_id": "a", "page": 1}},
            {"content": "Wings give lift.", "metadata": {"document_id": "b", "page": 2}},
        ],
    )
    answer = await llama.vector_io.query(vector_db_id="org/db", query="pack animals")
    assert answer.chunks[0].metadata == {"document_id": "a", "page": 1}
    assert len(answer.scores) == len(answer.chunks) == 2
    condition = {"type": "gt", "key": "page", "value": 1}
    filtered: Any = {"max_chunks": 1, "mode": "vector", "filters": condition}
    answer = await llama.vector_io.query(vector_db_id="org/db", query="pack animals", params=filtered)
    assert [chunk.content for chunk in answer.chunks] == ["Wings give lift."]
    await llama.vector_dbs.unregister("org/db")
    gone = await client.get("/v1/vector-dbs/org/db")
    assert (gone.status_code, gone.json()["title"]) == (404, "Not Found")


async def test_what_is_embedded_on_the_way_has_spans(
    llama: AsyncLlamaStackClient, client: httpx.AsyncClient
) -> None:
    for path, body in (
        (INSERT, {"chunks": [{"content": "Llamas carry loads.", "metadata": {"document_id": "a"}}]}),
        (QUERY, {"query": "pack animals"}),
    ):
        answer = await client.post(path, json={"vector_db_id": "org/db"} | body)
        assert answer.status_code == 200, answer.text
        spans = await spans_of(client, answer.headers["x-trace-id"], 2)
        (embedding,) = (span for span in spans if span["name"] == "embeddings mini")
        assert embedding["attributes"]["gen_ai.request.model"] == "mini"
        assert embedding["parent_span_id"] in {span["span_id"] for span in spans}


async def test_providers_name_the_store(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/providers")).json()["data"]
    assert {"lancedb"} == {one["provider_id"] for one in listed if one["api"] == "vector_io"}


@pytest.mark.parametrize(
    ("path", "body", "status", "detail"),
    [
        ("/v1/vector-dbs", {"vector_db_id": "x", "embedding_model": "no"}, 400, "not registered"),
        (
            "/v1/vector-dbs",
            {"vector_db_id": "x", "embedding_model": "mini", "embedding_dimension": 3},
            400,
            "gives 384",
        ),
        ("/v1/vector-dbs", {"vector_db_id": "", "embedding_model": "mini"}, 400, "vector_db_id"),
        (INSERT, {"vector_db_id": "no", "chunks": [{"content": "x", "metadata": {}}]}, 404, "'no'"),
        (INSERT, {"vector_db_id": "org/db", "chunks": [{"content": "x"}]}, 400, "metadata: is required"),
        (INSERT, {"vector_db_id": "org/db", "chunks": [{"content": "", "metadata": {}}]}, 400, "is empty"),
        (INSERT, {"vector_db_id": "org/db", "chunks": [], "ttl_seconds": -1}, 400, "ttl_seconds"),
        (QUERY, {"vector_db_id": "no", "query": "x"}, 404, "'no'"),
        (QUERY, {"vector_db_id": "org/db", "query": "x", "params": {"mode": "m"}}, 400, "params.mode"),
        (QUERY, {"vector_db_id": "org/db", "query": "x", "params": {"top": 1}}, 400, "params.top"),
    ],
)
async def test_bad_requests(
    llama: AsyncLlamaStackClient,
    client: httpx.AsyncClient,
    path: str,
    body: dict[str, Any],
    status: int,
    detail: str,
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert detail in answer.json()["detail"]
    assert set(answer.json()) == {"status", "title", "detail"}


async def test_odd_queries_are_answered(llama: AsyncLlamaStackClient, client: httpx.AsyncClient) -> None:
    chunk = {"content": "Llamas carry loads.", "metadata": {}}
    assert (await client.post(INSERT, json={"vector_db_id": "org/db", "chunks": [chunk]})).json() is None
    for query in ("", " ", "?", "\x00", "'; DROP TABLE x --", 'a"b AND (c', "word " * 5000, "中文", "🚀"):
        answer = await client.post(QUERY, json={"vector_db_id": "org/db", "query": query})
        assert answer.status_code == 200, (query[:20], answer.text)
        assert len(answer.json()["chunks"]) == 1
    condition = {"type": "eq", "key": "no such key", "value": "x"}
    body = {"vector_db_id": "org/db", "query": "x", "params": {"filters": condition}}
    assert (await client.post(QUERY, json=body)).json() == {"chunks": [], "scores": []}
