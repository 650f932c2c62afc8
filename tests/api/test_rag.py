"""The RAG tool over HTTP, with real files, real MiniLM and real LanceDB."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from llama_stack_client import AsyncLlamaStackClient
from llama_stack_client.types import Document

from stack.api import rag as rag_routes
from stack.app import create_app
from stack.context import Stack, open_stack
from stack.rag import ingest, job
from stack.schemas.vector_dbs import RegisterVectorDbRequest
from stack.schemas.vector_io import Chunk
from stack.settings import Settings
from stack.store.job_items import JobItems
from tests.api.fake import FakeInference, complete, progress, start
from tests.rag import files
from tests.store.examples import model
from tests.vector.conftest import embedder, minilm
from tests.vector.embedder import Embedder

__all__ = ["embedder", "minilm"]  # fixtures

INSERT, QUERY = "/v1/tool-runtime/rag-tool/insert", "/v1/tool-runtime/rag-tool/query"


@pytest.fixture
async def app(tmp_path: Path, embedder: Embedder, fake: FakeInference) -> AsyncIterator[Any]:
    """With the vector databases `db` and `other`, the models `mini` and `tiny`."""
    settings = Settings(home=tmp_path / "home", file_root=tmp_path / "shared", max_document_mb=1)
    models = {"mini": embedder, "tiny": fake}
    app = create_app(lambda: open_stack(settings, lambda model_id: models[model_id], "s"))
    async with app.router.lifespan_context(app):
        stack: Stack = app.state.stack
        await stack.models.declare(model("mini", model_type="embedding"))
        await stack.models.declare(model("tiny"))
        await stack.model_status.set("mini", "ready", None, {"embedding_dimension": 384, "session": "s"})
        await stack.model_status.set("tiny", "ready", None, {"session": "s"})
        for name in ("db", "other"):
            await stack.vector_dbs.register(
                RegisterVectorDbRequest(vector_db_id=name, embedding_model="mini")
            )
        yield app


@pytest.fixture
def rag(client: httpx.AsyncClient) -> Rag:
    return Rag(client)


class Rag:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def insert(self, *documents: dict[str, Any], db: str = "db", size: int = 64) -> httpx.Response:
        body = {"documents": documents, "vector_db_id": db, "chunk_size_in_tokens": size}
        return await self.client.post(INSERT, json=body)

    async def inserted(self, *documents: dict[str, Any], **fields: Any) -> None:
        answer = await self.insert(*documents, **fields)
        assert (answer.status_code, answer.json()) == (200, None)

    async def refused(self, *documents: dict[str, Any], **fields: Any) -> str:
        answer = await self.insert(*documents, **fields)
        assert answer.status_code == 400, answer.text
        detail: str = answer.json()["detail"]
        return detail

    async def query(self, content: Any, dbs: tuple[str, ...] = ("db",), **config: Any) -> dict[str, Any]:
        body: dict[str, Any] = {"content": content, "vector_db_ids": dbs}
        if config:
            defaults = {
                "query_generator_config": {"type": "default", "separator": " "},
                "max_tokens_in_context": 4096,
                "max_chunks": 5,
            }
            body["query_config"] = defaults | config
        answer = await self.client.post(QUERY, json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def texts(self, content: str, db: str = "db") -> list[str]:
        found = await self.query(content, (db,), max_chunks=100)
        texts: list[str] = found["metadata"]["chunks"]
        return texts


def document(document_id: str, content: Any, mime_type: str | None = None, **metadata: Any) -> dict[str, Any]:
    mime = {"mime_type": mime_type} if mime_type else {}
    return {"document_id": document_id, "content": content, "metadata": metadata, **mime}


CATS = document("cats", "Cats sleep for most of the day. They hunt mice at night.", topic="animals")
TRAINS = document("trains", "The train to Vienna leaves at noon from platform four.")


async def test_question_finds_its_document(rag: Rag) -> None:
    await rag.inserted(CATS, TRAINS)
    found = await rag.query("when does the train go?", max_chunks=1)
    assert found["content"] == [
        {"type": "text", "text": "knowledge_search tool found 1 chunks:\n"
         "BEGIN of knowledge_search tool results.\n"},
        {"type": "text", "text": "Result 1:\nDocument_id:trains\nContent: "
         "The train to Vienna leaves at noon from platform four.\n"},
        {"type": "text", "text": "END of knowledge_search tool results.\n"},
    ]  # fmt: skip
    assert found["metadata"]["document_ids"] == ["trains"]
    assert found["metadata"]["vector_db_ids"] == ["db"]
    assert len(found["metadata"]["scores"]) == 1


async def test_files_of_every_kind(rag: Rag) -> None:
    pdf = files.pdf([["The capital of Peru is Lima."]], "Peru")
    await rag.inserted(
        document("html", files.HTML, "text/html"),
        document("md", "# Moon\n\nThe moon is far away.", "text/markdown"),
        document("csv", "name,color\nplum,violet\n", "text/csv"),
        document("docx", {"uri": files.data_url(files.word(), "application/octet-stream")}),
        document("pdf", files.data_url(pdf, "application/pdf")),
        document(
            "items", [{"type": "text", "text": "Owls see well."}, {"type": "text", "text": "At night."}]
        ),
    )
    for question, expected in {
        "mice and fish": "html", "distance of the moon": "md", "which color is a plum": "csv",
        "apple table": "docx", "capital of Peru": "pdf", "what do owls do": "items",
    }.items():  # fmt: skip
        assert (await rag.query(question))["metadata"]["document_ids"][0] == expected, question


async def test_chunks_carry_where_they_are_from(rag: Rag, stack: Stack) -> None:
    text = "# Tea\n\n" + "Green tea comes from China and is drunk everywhere. " * 30
    await rag.inserted(
        document("tea", text, "text/markdown", source="book", n=None, chunk_id="mine"), size=50
    )
    answer = await rag.client.post("/v1/vector-io/query", json={"vector_db_id": "db", "query": "Green tea"})
    chunks = [Chunk.model_validate(chunk) for chunk in answer.json()["chunks"]]
    assert len(chunks) == 5  # of more: a chunk_id of the document does not make them one
    for chunk in chunks:
        metadata = chunk.metadata
        assert chunk.content == text[metadata["char_start"] : metadata["char_end"]]  # type: ignore[misc]
        assert metadata["chunk_id"] == f"mine:{metadata['chunk_index']}"
        assert metadata | {"document_id": "tea", "title": "Tea", "source": "book", "n": None} == metadata
        assert 12 <= metadata["token_count"] <= 50  # type: ignore[operator]


async def test_inserting_again_replaces(rag: Rag) -> None:
    await rag.inserted(document("a", "one one one. " * 200))
    assert len(await rag.texts("one")) > 5
    await rag.inserted(document("a", "two"), document("b", "three"))
    assert sorted(await rag.texts("one")) == ["three", "two"]


async def test_a_bad_document_keeps_out_all(rag: Rag) -> None:
    detail = await rag.refused(CATS, document("bad", files.data_url(b"%PDF-1.4 x", "application/pdf")))
    assert detail.startswith("document 'bad': it is a damaged PDF")
    assert (await rag.query("cats")).get("content") is None
    assert (await rag.query("cats"))["metadata"]["document_ids"] == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (document("d", " \n "), "document 'd': it has no text"),
        (document("d", []), "document 'd': it has no text"),
        (document("", "x"), "documents.1.document_id is empty"),
        (document("cats", "x"), "documents.1.document_id: 'cats' comes twice"),
        (document("d", {"uri": "http://127.0.0.1:1/x"}), "document 'd': 127.0.0.1 is not a public host"),
        (document("d", "http://169.254.169.254/x"), "is not a public host"),
        (document("d", {"uri": "file:///etc/passwd"}), "document 'd': "),
        (document("d", {"uri": "ftp://x/y"}), "document 'd': "),
        (document("d", "text", "application/pdf"), "text inside a request is no application/pdf"),
        (document("d", {"uri": "http://stack/v1/files/content:b/none"}), "there is no file 'none'"),
        (document("d", files.data_url(b"x" * (2 << 20), "text/plain")), "1048576 bytes"),
        (document("d", "x", big="y" * 70_000), "documents.1.metadata has 70011 characters"),
        (document("d", {"type": "image", "image": {"data": "aGk="}}), "image"),
    ],
)
async def test_bad_documents(rag: Rag, bad: dict[str, Any], message: str) -> None:
    assert message in await rag.refused(CATS, bad)
    assert (await rag.query("cats"))["metadata"]["document_ids"] == []


async def test_unknown_vector_databases(rag: Rag) -> None:
    assert (await rag.insert(CATS, db="none")).status_code == 404
    body = {"content": "x", "vector_db_ids": ["db", "none"]}
    assert (await rag.client.post(QUERY, json=body)).status_code == 404
    nowhere = await rag.client.post(QUERY, json={"content": "x", "vector_db_ids": []})
    assert nowhere.json()["detail"].startswith("vector_db_ids is empty")
    assert nowhere.status_code == 400


async def test_own_upload_and_shared_folder(rag: Rag, tmp_path: Path) -> None:
    upload = {"bucket": "b", "key": "peru.pdf", "mime_type": "application/pdf"}
    content = files.pdf([["The capital of Peru is Lima."]])
    session = (await rag.client.post("/v1/files", json={**upload, "size": len(content)})).json()
    done = await rag.client.post(
        f"/v1/files/session:{session['id']}",
        content=content,
        headers={"content-type": "application/octet-stream"},
    )
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "note.md").write_text("# Note\n\nBuy bread.")
    await rag.inserted(
        document("pdf", {"uri": done.json()["url"]}), document("note", {"uri": "lsfs://note.md"})
    )
    assert (await rag.query("Lima"))["metadata"]["document_ids"][0] == "pdf"
    assert "# Note\n\nBuy bread." in await rag.texts("bread")


async def test_several_databases(rag: Rag) -> None:
    await rag.inserted(CATS)
    await rag.inserted(TRAINS, db="other")
    found = await rag.query("trains to Vienna", ("db", "other", "db"))
    assert found["metadata"]["vector_db_ids"] == ["other", "db"]
    assert found["metadata"]["scores"] == sorted(found["metadata"]["scores"], reverse=True)


async def test_context_is_limited(rag: Rag) -> None:
    await rag.inserted(*(document(f"d{i}", f"Fact {i} about apples. " * 8) for i in range(4)))
    found = await rag.query("apples", max_tokens_in_context=100)
    assert len(found["metadata"]["chunks"]) == 2
    assert found["content"][0]["text"].startswith("knowledge_search tool found 2 chunks")
    (cut,) = (await rag.query("apples", max_tokens_in_context=10))["metadata"]["chunks"]
    assert 0 < len(cut) < 60


async def test_tokens_of_other_chunks_are_counted(rag: Rag) -> None:
    chunks = [{"content": f"pear {i} " * 30, "metadata": {}} for i in range(3)]
    body = {"vector_db_id": "db", "chunks": chunks}
    assert (await rag.client.post("/v1/vector-io/insert", json=body)).status_code == 200
    found = await rag.query("pear", max_tokens_in_context=130)
    assert len(found["metadata"]["chunks"]) == 2
    assert found["metadata"]["document_ids"] == ["", ""]


LLM = {"type": "llm", "model": "tiny", "template": "Query for {{ messages | join(' / ') }}"}


async def test_a_model_writes_the_query(rag: Rag, fake: FakeInference) -> None:
    await rag.inserted(CATS, TRAINS)
    fake.script = [start(), progress(" train to Vienna "), complete()]
    content = [{"type": "text", "text": "hi"}, {"type": "text", "text": "mice?"}]
    found = await rag.query(content, query_generator_config=LLM, max_chunks=1)
    assert found["metadata"]["document_ids"] == ["trains"]
    (request,) = fake.requests
    assert request.messages[0].content == "Query for hi / mice?"
    assert request.sampling_params.max_tokens == 128


async def test_an_empty_answer_falls_back(rag: Rag, fake: FakeInference) -> None:
    await rag.inserted(CATS, TRAINS)
    fake.script = [start(), complete()]
    found = await rag.query("cats hunting", query_generator_config=LLM, max_chunks=1)
    assert found["metadata"]["document_ids"] == ["cats"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for", "template"),
        ("{{ nothing }}", "'nothing' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "takes more than"),
        ("{{ 'x' * 1000000000 }}", "template"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages[7] }}", "no element 7"),
        (" ", "renders to nothing"),
        ("x" * 30_000, "more than 20000 characters"),
    ],
)
async def test_bad_templates(rag: Rag, template: str, message: str) -> None:
    config = {"query_generator_config": {**LLM, "template": template}}
    defaults = {"max_tokens_in_context": 9, "max_chunks": 1}
    body = {"content": "x", "vector_db_ids": ["db"], "query_config": {**defaults, **config}}
    answer = await rag.client.post(QUERY, json=body)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("query_generator_config.template")
    assert message in answer.json()["detail"]


async def test_many_documents_become_a_job(rag: Rag, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "WAIT_S", 0.2)
    many = [document(f"d{i}", f"text {i}") for i in range(201)]
    answer = await rag.insert(*many)
    assert (answer.status_code, answer.json()) == (202, None)
    submitted = await stack.jobs.get(answer.headers["x-job-id"])
    assert answer.headers["location"] == f"/v1/jobs/{submitted.id}"
    assert submitted.kind == "ingest"
    assert submitted.request == {"vector_db_id": "db", "chunk_size_in_tokens": 64, "documents": 201}
    lines = (await stack.storage.read(job.documents_path(submitted.id))).splitlines()
    assert len(lines) == 201
    assert (await rag.insert(*many, db="none")).status_code == 404


async def test_large_urls_become_a_job(rag: Rag, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "MAX_CHARS_AT_ONCE", 1000)
    monkeypatch.setattr(job, "WAIT_S", 0.0)
    answer = await rag.insert(CATS, document("long", files.data_url(b"word " * 300, "text/plain")))
    assert answer.status_code == 202
    assert (await rag.query("cats"))["metadata"]["document_ids"] == []


async def test_too_many_chunks(rag: Rag, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "MAX_CHUNKS", 50)
    assert "larger ones" in await rag.refused(document("d", "word " * 60), size=1)
    monkeypatch.setattr(ingest, "MAX_CHUNKS_AT_ONCE", 10)
    monkeypatch.setattr(job, "WAIT_S", 0.0)
    assert (await rag.insert(document("d", "word " * 60), size=5)).status_code == 202


async def test_a_job_that_ends_in_time(rag: Rag, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rag_routes.job, "is_large", lambda documents: True)

    async def work(fails: bool) -> None:
        while not (active := await stack.jobs.active()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        lease = await stack.jobs.claim(active[0].id, "test")
        items = JobItems(stack.database)
        await items.finish(lease, {0: None})
        await (items.fail(lease, {1: "document 'trains': bad"}) if fails else items.finish(lease, {1: None}))
        await stack.jobs.finish(lease)

    answer, _ = await asyncio.gather(rag.insert(CATS, TRAINS), work(False))
    assert (answer.status_code, answer.json()) == (200, None)
    answer, _ = await asyncio.gather(rag.insert(CATS, TRAINS), work(True))
    assert answer.status_code == 400
    assert "document 'trains': bad" in answer.json()["detail"]


async def test_store_for_jobs(rag: Rag, stack: Stack) -> None:
    from stack.rag.load import Loaded
    from stack.schemas.tools import RAGDocument

    loaded = Loaded(RAGDocument.model_validate(CATS), "Cats sleep.", None)
    for _ in range(2):
        assert await stack.rag.ingest.store("db", [loaded], 64) == [1]
    assert await rag.texts("cats") == ["Cats sleep."]


async def test_the_client_library(client: httpx.AsyncClient) -> None:
    llama = AsyncLlamaStackClient(base_url="http://stack", http_client=client)
    text = Document(document_id="x", content="The sea is salty.", mime_type="text/plain", metadata={})
    await llama.tool_runtime.rag_tool.insert(
        documents=[text.model_dump()],  # type: ignore[list-item]
        vector_db_id="db",
        chunk_size_in_tokens=512,
    )
    found = await llama.tool_runtime.rag_tool.query(content="how is the sea?", vector_db_ids=["db"])
    assert found.metadata["document_ids"] == ["x"]
    assert isinstance(found.content, list)
    assert "The sea is salty." in found.content[1].text  # type: ignore[union-attr]
