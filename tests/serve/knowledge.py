"""A file, a dataset and a vector database on a running server: made before a restart, checked after it."""

from __future__ import annotations

from typing import Any

import httpx

TEXT = b'{"question": "What is 6 x 7?", "answer": "42"}\n{"question": "And 6 + 7?", "answer": "13"}\n'
DOCUMENT = {
    "document_id": "d",
    "content": "# Llamas\n\nLlamas carry loads over passes.",
    "mime_type": "text/markdown",
    "metadata": {"n": 2**70},
}


def make(http: httpx.Client, embedding_model: str) -> dict[str, Any]:
    """Upload half a file; the rest of the file, when it is made whole, is the dataset's source."""
    upload = {"bucket": "b", "key": "rows/q.jsonl", "mime_type": "application/jsonl", "size": len(TEXT)}
    session = answered(http.post("/v1/files", json=upload))
    half = http.post(f"/v1/files/session:{session['id']}", content=TEXT[:50])
    assert answered(half) is None
    rows = {"type": "rows", "rows": [{"question": "q", "answer": "a", "n": 2**70}]}
    answered(
        http.post(
            "/v1/datasets", json={"dataset_id": "rows", "purpose": "eval/question-answer", "source": rows}
        )
    )
    answered(http.post("/v1/vector-dbs", json={"vector_db_id": "notes", "embedding_model": embedding_model}))
    insert = {"vector_db_id": "notes", "documents": [DOCUMENT], "chunk_size_in_tokens": 64}
    answered(http.post("/v1/tool-runtime/rag-tool/insert", json=insert))
    found: dict[str, Any] = {"upload": session["id"], "chunks": chunks(http)}
    return found


def check(http: httpx.Client, made: dict[str, Any]) -> None:
    """Everything that was made is there, and the upload goes on where it was."""
    session = answered(http.get(f"/v1/files/session:{made['upload']}"))
    assert session["offset"] == 50
    file = answered(http.post(f"/v1/files/session:{made['upload']}", content=TEXT[50:]))
    assert http.get(file["url"]).content == TEXT
    assert http.get(file["url"], headers={"range": "bytes=2-9"}).content == b"question"
    source = {"type": "uri", "uri": file["url"]}
    body = {"dataset_id": "uploaded", "purpose": "eval/question-answer", "source": source}
    answered(http.post("/v1/datasets", json=body))
    answered(
        http.post("/v1/datasetio/append-rows/uploaded", json={"rows": [{"question": "x", "answer": "y"}]})
    )
    page = answered(http.get("/v1/datasetio/iterrows/uploaded", params={"start_index": 1, "limit": 5}))
    assert [row["answer"] for row in page["data"]] == ["13", "y"]
    (row,) = answered(http.get("/v1/datasetio/iterrows/rows"))["data"]
    assert row["n"] == 2**70
    assert chunks(http) == made["chunks"]


def chunks(http: httpx.Client) -> Any:
    body = {"vector_db_id": "notes", "query": "animals that carry things"}
    (chunk,) = answered(http.post("/v1/vector-io/query", json=body))["chunks"]
    assert chunk["metadata"]["n"] == 2**70
    assert chunk["metadata"]["title"] == "Llamas"
    return chunk


def answered(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()
