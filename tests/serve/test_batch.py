"""Batches on the real stack: in the request, by a job, by Ray Data's workers; a job's process is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from llama_stack_client import LlamaStackClient
from typer.testing import CliRunner

from stack.batch.work import INLINE_ROWS
from stack.cli.app import app
from tests.training.tiny import write_tiny_model

if TYPE_CHECKING:
    from tests.serve.conftest import Server

ONE_TOKEN = {"strategy": {"type": "greedy"}, "max_tokens": 1}


@pytest.fixture(scope="module")
def tiny(server: Server, client: LlamaStackClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    client.models.register(
        model_id="tiny-batch", provider_model_id=str(folder), metadata={"num_cpus": 0.2, "max_batch": 64}
    )
    for _ in range(300):
        body = {"model_id": "tiny-batch", "content": "a", "sampling_params": ONE_TOKEN}
        if httpx.post(f"{server.url}/v1/inference/completion", json=body).status_code == 200:
            break
        time.sleep(0.2)
    yield "tiny-batch"
    client.models.unregister("tiny-batch")


def test_chats_in_order(client: LlamaStackClient) -> None:
    batch = [[{"role": "user", "content": "word " * n}] for n in range(1, 41)]
    answer = client.batch_inference.chat_completion(
        model="smollm2-135m",
        messages_batch=batch,  # type: ignore[arg-type]  # dicts in the client's own types
        sampling_params=ONE_TOKEN,  # type: ignore[arg-type]
    )
    tokens = [prompt_tokens(item.to_dict()) for item in answer.batch]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) == 40


@pytest.mark.timeout(400)
@pytest.mark.parametrize("items", [300, INLINE_ROWS + 1])
def test_a_job_whose_process_is_killed_answers_all(server: Server, tiny: str, items: int) -> None:
    """Each answer is its own item's: the prompts have different lengths."""
    content = ["a" * (1 + number % 500) for number in range(items)]
    tokens = {300: 200}.get(items, 4)  # long enough to be killed
    params = {"strategy": {"type": "greedy"}, "max_tokens": tokens}
    body = {"model": tiny, "content_batch": content, "sampling_params": params}
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(post, f"{server.url}/v1/batch-inference/completion", body)
        kill_at_work(server.url)
        batch = answer.result()["batch"]
    lengths = [prompt_tokens(item) for item in batch]
    offset = lengths[0] - 1
    assert lengths == [offset + len(text) for text in content]


def post(url: str, body: Any) -> Any:
    """The answer, once the job has it."""
    for _ in range(10):
        answer = httpx.post(url, json=body, timeout=90)
        if answer.status_code != 503:
            break
    assert answer.status_code == 200, answer.text
    return answer.json()


def kill_at_work(url: str) -> None:
    """-9 to the job's process once it works on rows."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        jobs = httpx.get(f"{url}/v1/jobs", params={"kind": "batch", "status": "in_progress"}).json()["data"]
        if jobs and "total" in jobs[0]["progress"]:
            name = f"--job-id {jobs[0]['job_id']}"
            for process in psutil.process_iter(["cmdline"]):
                if name in " ".join(process.info["cmdline"] or []):
                    os.kill(process.pid, signal.SIGKILL)
            return
        time.sleep(0.02)
    raise AssertionError("the job did not begin")


def prompt_tokens(item: dict[str, Any]) -> int:
    (found,) = (metric["value"] for metric in item["metrics"] if metric["metric"] == "prompt_tokens")
    return int(found)


def test_a_file_in_the_terminal(
    server: Server, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, with errors where they belong; the same command again is the same job."""
    monkeypatch.setenv("STACK_URL", server.url)
    rows = [{"content": "a" * (1 + n), "custom_id": f"row-{n}"} for n in range(50)]
    lines = [json.dumps(row) for row in rows]
    lines[7] = "not JSON"
    lines[8] = json.dumps(rows[8] | {"content": "a" * 3000})
    lines[9] = json.dumps(rows[9] | {"sampling_params": {"strategy": {"type": "none"}}})
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    answers = tmp_path / "out.jsonl"
    command = ["batch", "run", "--model", tiny, "--max-tokens", "2"]
    command += ["--input", str(tmp_path / "in.jsonl"), "--output", str(answers)]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "50 answers" in shown.output
    assert "3 of them are errors" in shown.output
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert found[7]["error"]["detail"].startswith("line 8 is not JSON")
    assert found[8]["error"] == {
        "status": 400,
        "title": "Context Too Long",
        "detail": "the prompt has 3000 tokens, the model takes 2047",
    }
    assert (found[9]["custom_id"], found[9]["error"]["status"]) == ("row-9", 400)
    good = [number for number in range(50) if number not in (7, 8, 9)]
    assert [found[number]["custom_id"] for number in good] == [f"row-{number}" for number in good]
    lengths = {number: prompt_tokens(found[number]["response"]) for number in good}
    assert lengths == {number: lengths[0] + number for number in good}

    again = CliRunner().invoke(app, command)
    job_line = next(line for line in shown.output.splitlines() if " answers " in line and "job" in line)
    assert job_line in again.output
    assert len(answers.read_text().splitlines()) == 50
