"""An ingestion on a real cluster, whose process is killed half-way: every document is there once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.serve.conftest import Server

DOCUMENTS = 300
END_S = 240


@pytest.fixture
def vector_db(http: httpx.Client) -> Iterator[str]:
    body = {"vector_db_id": "jobs", "embedding_model": "all-MiniLM-L6-v2"}
    http.post("/v1/vector-dbs", json=body).raise_for_status()
    yield "jobs"
    http.delete("/v1/vector-dbs/jobs").raise_for_status()


def documents() -> list[dict[str, Any]]:
    made = [
        {"document_id": f"d{n}", "content": f"Document number {n} is about wing {n}.", "metadata": {"n": n}}
        for n in range(DOCUMENTS)
    ]
    made[7]["content"] = "   "
    return made


def process_of(job_id: str) -> psutil.Process | None:
    for process in psutil.process_iter(["cmdline"]):
        if "jobs.ingest" in (process.info["cmdline"] or []) and job_id in process.info["cmdline"]:
            return process
    return None


def until(http: httpx.Client, job_id: str, done: int) -> dict[str, Any]:
    """The job when so many documents are done, or when it has ended."""
    deadline = time.monotonic() + END_S
    while True:
        job: dict[str, Any] = http.get(f"/v1/jobs/{job_id}").json()
        if job["ended_at"] or job["progress"].get("done", 0) >= done:
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.05)


def test_a_killed_ingestion_goes_on_where_it_was(server: Server, http: httpx.Client, vector_db: str) -> None:
    body = {"vector_db_id": vector_db, "documents": documents(), "chunk_size_in_tokens": 64}
    known = {job["job_id"] for job in http.get("/v1/jobs").json()["data"]}
    url = f"{server.url}/v1/tool-runtime/rag-tool/insert"
    inserting = threading.Thread(target=httpx.post, args=[url], kwargs={"json": body, "timeout": END_S})
    inserting.start()  # the answer comes after the job's end, or after a while
    job_id = _new_job(http, known)
    job = until(http, job_id, 10)
    assert not job["ended_at"], job
    process = process_of(job_id)
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    job = until(http, job_id, DOCUMENTS + 1)
    assert (job["status"], job["attempt"]) == ("completed", 2), job
    assert job["result"] == {"documents": DOCUMENTS - 1, "failed": 1, "chunks": DOCUMENTS - 1}
    assert job["failed_items"] == [{"item": 7, "error": "document 'd7': it has no text"}]
    assert http.get(f"/v1/jobs/{job_id}/logs").text.count("begins, attempt") == 2
    assert stored(http, vector_db) == {f"d{n}" for n in range(DOCUMENTS) if n != 7}
    inserting.join()


def _new_job(http: httpx.Client, known: set[str]) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for job in http.get("/v1/jobs").json()["data"]:
            if job["job_id"] not in known:
                return str(job["job_id"])
        time.sleep(0.1)
    raise AssertionError("no job was submitted")


def stored(http: httpx.Client, vector_db: str) -> set[str]:
    """The ids of all documents; each has one chunk, so as many chunks."""
    query = {"vector_db_id": vector_db, "query": "wing", "params": {"max_chunks": 1000, "mode": "vector"}}
    answer = http.post("/v1/vector-io/query", json=query)
    answer.raise_for_status()
    ids = [chunk["metadata"]["document_id"] for chunk in answer.json()["chunks"]]
    assert len(ids) == len(set(ids))
    return set(ids)
