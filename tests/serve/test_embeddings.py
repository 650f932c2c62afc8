"""Embeddings through a real cluster: calls larger than one message between replicas."""

from __future__ import annotations

import time

import httpx
import numpy as np

from tests.serve.conftest import Server

EMBEDDING = "all-MiniLM-L6-v2"


def embed(server: Server, contents: list[object], **fields: object) -> httpx.Response:
    body = {"model_id": EMBEDDING, "contents": contents} | fields
    return httpx.post(f"{server.url}/v1/inference/embeddings", json=body, timeout=120)


def test_a_large_call_is_answered_in_order(server: Server) -> None:
    words = ["wing", "plate", "shock", "flow", "jet"]
    rows = np.array(embed(server, [words[n % 5] for n in range(1500)]).json()["embeddings"])
    few = np.array(embed(server, [{"type": "text", "text": word} for word in words]).json()["embeddings"])
    assert rows.shape == (1500, 384)
    np.testing.assert_allclose(rows, np.tile(few, (300, 1)), atol=1e-3)
    assert embed(server, []).json() == {"embeddings": []}


def test_an_error_names_the_content_of_the_whole_call(server: Server) -> None:
    answer = embed(server, ["wing"] * 500 + ["wing " * 300])
    assert answer.status_code == 400
    assert "contents[500] has 302 tokens, the model takes 256" in answer.json()["detail"]


def test_a_text_of_ten_megabytes_is_answered_at_once(server: Server) -> None:
    text = "boundary layer " * 700_000
    started = time.monotonic()
    answer = embed(server, [text])
    assert answer.status_code == 400
    assert "more than" in answer.json()["detail"]
    assert time.monotonic() - started < 3
    assert len(embed(server, [text], text_truncation="end").json()["embeddings"][0]) == 384
