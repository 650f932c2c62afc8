"""A replica that is killed costs the answers that it was giving, and nothing else."""

from __future__ import annotations

import json
import time

import httpx
import psutil

from tests.serve.conftest import Server

BODY = {
    "model_id": "smollm2-135m",
    "content": "Once upon a time",
    "sampling_params": {"strategy": {"type": "top_p", "temperature": 1.0}, "max_tokens": 4000},
    "stream": True,
}


def replica(server: Server) -> psutil.Process:
    """The process of the text model."""
    for process in psutil.Process(server.process.pid).children(recursive=True):
        if any(part.startswith("ray::ServeReplica:model-smollm2-135m") for part in process.cmdline()):
            return process
    raise AssertionError("the model has no replica")


def test_a_killed_replica_ends_its_streams_and_is_replaced(server: Server, http: httpx.Client) -> None:
    killed = replica(server)
    began = time.monotonic()
    with http.stream("POST", "/v1/inference/completion", json=BODY) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        killed.kill()
        last = [line for line in lines if line.startswith("data: ")][-1]
    assert time.monotonic() - began < 20
    message = json.loads(last.removeprefix("data: "))["error"]["message"]
    assert "lost its replica" in message, message
    short = BODY | {"sampling_params": {"strategy": {"type": "greedy"}, "max_tokens": 4}, "stream": False}
    while (again := http.post("/v1/inference/completion", json=short)).status_code == 503:
        assert time.monotonic() - began < 60
        time.sleep(0.5)
    assert again.status_code == 200
    assert replica(server).pid != killed.pid
