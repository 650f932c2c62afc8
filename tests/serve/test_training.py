"""Training jobs on the real stack: killed, resumed, searched, cancelled; and what they leave is served."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from llama_stack_client import LlamaStackClient

from stack.training.prepare import INLINE_ROWS
from tests.serve.test_tracing import tree
from tests.training.conftest import ROWS
from tests.training.tiny import TRAINING_EXAMPLES, write_tiny_model

if TYPE_CHECKING:
    from tests.serve.conftest import Server

ROOT = Path(__file__).parents[2]
LORA = {
    "type": "LoRA",
    "lora_attn_modules": ["q_proj", "v_proj"],
    "apply_lora_to_mlp": True,
    "apply_lora_to_output": False,
    "rank": 4,
    "alpha": 8,
}


class Trains:
    """A server with a tiny model and a dataset."""

    def __init__(self, client: LlamaStackClient, url: str, home: Path) -> None:
        self.client, self.url, self.home = client, url, home

    def config(self, epochs: int, dataset_id: str = "tiny-rows") -> dict[str, Any]:
        return {
            "n_epochs": epochs,
            "max_steps_per_epoch": 0,
            "gradient_accumulation_steps": 1,
            "max_validation_steps": 0,
            "data_config": {
                "dataset_id": dataset_id,
                "validation_dataset_id": "tiny-rows",
                "batch_size": 4,
                "shuffle": True,
                "data_format": "instruct",
            },
            "optimizer_config": {
                "optimizer_type": "adamw",
                "lr": 5e-3,
                "weight_decay": 0.0,
                "num_warmup_steps": 0,
            },
        }

    def submit(
        self, job: str, epochs: int, search: dict[str, Any] | None = None, dataset_id: str = "tiny-rows"
    ) -> None:
        self.client.post_training.supervised_fine_tune(
            job_uuid=job,
            model="tiny",
            algorithm_config=LORA,  # type: ignore[arg-type]  # a dict in the client's own type
            training_config=self.config(epochs, dataset_id),  # type: ignore[arg-type]
            hyperparam_search_config=search or {},
            logger_config={},
        )

    def until_ready(self, model: str) -> None:
        deadline = time.monotonic() + 120
        while (self.client.models.retrieve(model).metadata or {})["status"] != "ready":
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def job(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/v1/jobs/{job}").json()
        return found

    def until(self, job: str, reached: Callable[[dict[str, Any]], bool], seconds: float = 280.0) -> None:
        deadline = time.monotonic() + seconds
        while not reached(found := self.job(job)):
            assert found["status"] != "failed", found["detail"]
            assert time.monotonic() < deadline, found
            time.sleep(0.1)

    def wait(self, job: str) -> list[dict[str, Any]]:
        """The artifacts of a job that completes."""
        self.until(job, lambda found: found["status"] == "completed")
        answer = httpx.get(f"{self.url}/v1/post-training/job/artifacts", params={"job_uuid": job})
        artifacts: list[dict[str, Any]] = answer.json()["checkpoints"]
        return artifacts

    def losses(self, job: str) -> dict[int, float]:
        """By step."""
        state = self.home / f"storage/training/{job}/runs/run/final/trainer_state.json"
        history = json.loads(state.read_text())["log_history"]
        return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}

    def answer(self, model: str) -> str:
        response = self.client.inference.chat_completion(
            model_id=model,
            messages=[{"role": "user", "content": "What is 3 and 3?"}],
            sampling_params={"strategy": {"type": "greedy"}, "max_tokens": 12},
        )
        return str(response.completion_message.content)


@pytest.fixture(scope="module")
def trains(
    server: Server, client: LlamaStackClient, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trains]:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    client.models.register(model_id="tiny", provider_model_id=str(folder), metadata={"num_cpus": 0.2})
    rows = {"type": "rows", "rows": ROWS}
    client.datasets.register(dataset_id="tiny-rows", purpose="post-training/messages", source=rows)  # type: ignore[arg-type]
    found = Trains(client, server.url, home)
    # All at once: most of a small job's time is that of processes which start.
    found.submit("broken", epochs=8)
    found.submit("unbroken", epochs=8)
    parameters = {"lr": {"type": "grid", "values": [1e-5, 5e-3]}}
    found.submit("searched", 2, {"parameters": parameters, "num_trials": 1, "scheduler": "none"})
    yield found
    for model in client.models.list():
        if model.metadata.get("base_model") == "tiny":
            client.models.unregister(model.identifier)
    client.models.unregister("tiny")


@pytest.fixture(scope="module", autouse=True)
def examples(trains: Trains) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Those that train, begun before the first test."""
    processes = {}
    trains.until_ready("tiny")
    for name in TRAINING_EXAMPLES:
        path = ROOT / "examples" / name
        assert f"python examples/{path.name}" in path.read_text()
        processes[name] = subprocess.Popen(
            [sys.executable, str(path), "--model", "tiny"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"STACK_URL": trains.url},
        )
    yield processes
    for process in processes.values():
        process.kill()
        process.communicate()


def kill(name: str) -> None:
    """The process whose command line begins with or contains `name`."""
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if name in " ".join(process.info["cmdline"] or [])
    ]
    assert found, name
    for process in found:
        os.kill(process.pid, signal.SIGKILL)


@pytest.mark.timeout(600)
def test_a_killed_job_ends_as_an_unbroken_one(trains: Trains) -> None:
    """-9 to the job's process, with which its workers end; the next attempt goes on from a checkpoint."""

    def saved(found: dict[str, Any]) -> bool:
        return bool(list((trains.home / "storage/training/broken/runs/run").glob("checkpoint-*/README.md")))

    trains.until("broken", lambda found: saved(found) or found["status"] == "completed")
    kill("--job-id broken")
    artifacts = trains.wait("broken")
    trains.wait("unbroken")
    assert trains.job("broken")["attempt"] == 2
    losses = trains.losses("unbroken")
    assert trains.losses("broken") == pytest.approx(losses, abs=1e-5)
    assert max(losses) == 24
    last = next(each for each in artifacts if each.get("model_id") == "broken")
    assert (last["step"], last["identifier"]) == (24, "broken/checkpoint-24")
    assert last["training_metrics"]["validation_loss"] < last["training_metrics"]["initial_validation_loss"]


@pytest.mark.timeout(600)
def test_the_example_judges_sft_and_dpo(examples: dict[str, subprocess.Popen[str]]) -> None:
    said = printed(examples["fine_tune.py"])
    losses = [float(line.split()[-1]) for line in said.splitlines() if line.startswith("  ")]
    base, sft, dpo = losses
    assert sft < base
    assert dpo == pytest.approx(sft, rel=0.2)
    assert "promoted: " in said


@pytest.mark.timeout(600)
def test_the_example_closes_the_loop(examples: dict[str, subprocess.Popen[str]]) -> None:
    """A model of random weights is never right, and is none the better for what it said."""
    said = printed(examples["close_the_loop.py"])
    assert re.search(r"^\d+ answers to 4 questions\n\d+ of them are kept$", said, re.MULTILINE)
    assert re.search(r"^tiny: 0\.0%, loop-\w+: 0\.0% of 4\ndifference \+0\.0%, p = 1$", said, re.MULTILINE)


@pytest.mark.timeout(600)
def test_the_example_learns_from_traces(examples: dict[str, subprocess.Popen[str]]) -> None:
    said = printed(examples["learn_from_traces.py"])
    assert re.search(r"^dataset liked-\w+ is registered, \d+ rows$", said, re.MULTILINE)
    assert re.search(r"^dataset pairs-\w+ is registered, [123] rows$", said, re.MULTILINE)
    assert re.search(r"^learnt-\w+ answers: ", said, re.MULTILINE)


def printed(example: subprocess.Popen[str]) -> str:
    said, errors = example.communicate(timeout=500)
    assert example.returncode == 0, errors
    return said


@pytest.mark.timeout(600)
def test_a_search_serves_its_best_trial(trains: Trains) -> None:
    trials = next(each for each in trains.wait("searched") if each.get("type") == "trials")["trials"]
    assert [(trial["name"], trial["status"]) for trial in trials] == [
        ("trial-0", "completed"),
        ("trial-1", "completed"),
    ]
    losses = [trial["metrics"]["validation_loss"] for trial in trials]
    assert losses[1] < losses[0]
    assert trains.job("searched")["result"]["metrics"]["validation_loss"] == losses[1]
    assert trains.answer("searched")


def test_what_was_trained_is_served_at_once(trains: Trains) -> None:
    began = time.monotonic()
    assert trains.answer("broken") == trains.answer("unbroken")
    assert time.monotonic() - began < 5
    picture = next(each for each in trains.wait("broken") if each.get("type") == "image")
    assert httpx.get(picture["url"]).content.startswith(b"\x89PNG")


def test_its_trace_has_the_stages_of_all_processes(trains: Trains) -> None:
    with httpx.Client(base_url=trains.url) as http:
        condition = {"key": "stack.job_id", "op": "eq", "value": "unbroken"}
        found = http.post("/v1/telemetry/traces", json={"attribute_filters": [condition]}).json()["data"]
        stages = [f"stage {name}" for name in ("preparing", "loading", "training", "saving")]
        spans = tree(http, found[0]["trace_id"], {"job supervised-fine-tune", *stages})
    (job,) = (span for span in spans if span["name"] == "job supervised-fine-tune")
    for name in stages:
        assert {span["parent_span_id"] for span in spans if span["name"] == name} == {job["span_id"]}


def test_a_cancelled_job_keeps_what_it_has(trains: Trains) -> None:
    """So many rows are tokenized by Ray Data's workers."""
    rows = {"type": "rows", "rows": [ROWS[number % len(ROWS)] for number in range(INLINE_ROWS + 1)]}
    trains.client.datasets.register(
        dataset_id="many-rows",
        purpose="post-training/messages",
        source=rows,  # type: ignore[arg-type]  # a dict in the client's own type
    )
    trains.submit("cancelled", epochs=2000, dataset_id="many-rows")
    trains.until("cancelled", lambda found: found["progress"].get("done", 0) > 3)
    trains.client.post_training.job.cancel(job_uuid="cancelled")
    trains.until("cancelled", lambda found: found["status"] == "cancelled", seconds=120)
    status = trains.client.post_training.job.status(job_uuid="cancelled")
    assert status.status == "cancelled"  # type: ignore[comparison-overlap]  # the client knows four
    deadline = time.monotonic() + 60
    while any(
        "--job-id cancelled" in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])
    ):
        assert time.monotonic() < deadline, "its process is still there"
        time.sleep(0.2)
    answer = httpx.post(f"{trains.url}/v1/post-training/job/cancel", json={"job_uuid": "cancelled"})
    assert (answer.status_code, "cancelled already" in answer.json()["detail"]) == (400, True)
    manifest = trains.home / "storage/jobs/cancelled/training/train.json"
    assert json.loads(manifest.read_text())["counts"]["rows"] == INLINE_ROWS + 1
