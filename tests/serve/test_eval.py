"""A benchmark on the real stack, run by a job that is killed, through the real client and `stack eval`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from llama_stack_client import LlamaStackClient
from typer.testing import CliRunner

from stack.cli.app import app
from tests.safety.classifiers import make_reward_model
from tests.training.tiny import write_tiny_model

if TYPE_CHECKING:
    from tests.serve.conftest import Server

ROWS = [{"question": f"What is {n} and {n}?" * (1 + n % 7), "answer": str(2 * n)} for n in range(1000)]
GREEDY = {"strategy": {"type": "greedy"}, "max_tokens": 4}


@pytest.fixture(scope="module", autouse=True)
def benchmark(
    server: Server, client: LlamaStackClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    client.models.register(
        model_id="tiny-eval", provider_model_id=str(folder), metadata={"num_cpus": 0.2, "dtype": "float32"}
    )
    client.datasets.register(
        dataset_id="sums",
        purpose="eval/question-answer",
        source={"type": "rows", "rows": ROWS},  # type: ignore[typeddict-item]
    )
    client.benchmarks.register(
        benchmark_id="sums",
        dataset_id="sums",
        scoring_functions=["basic::equality", "basic::regex_parser_math_response"],
    )
    yield
    client.models.unregister("tiny-eval")


def submit(client: LlamaStackClient, model: str, **more: Any) -> str:
    candidate: Any = {"type": "model", "model": model, "sampling_params": GREEDY}
    config: Any = {"eval_candidate": candidate, "scoring_params": {}, **more}
    job = client.eval.run_eval(benchmark_id="sums", benchmark_config=config)
    return str(job.job_id)


def wait(client: LlamaStackClient, url: str, job_id: str, kills: int = 0) -> Any:
    """The run's result; its process is killed so often on the way, each time a little later."""
    deadline, killed_at = time.monotonic() + 280, 0
    while (job := httpx.get(f"{url}/v1/jobs/{job_id}").json())["status"] != "completed":
        assert job["status"] in ("scheduled", "in_progress"), job["detail"]
        assert time.monotonic() < deadline, job
        done = job["progress"].get("done", 0)
        if kills and done > killed_at:
            kills, killed_at = kills - 1, done
            kill(f"--job-id {job_id}")
        time.sleep(0.02)
    assert kills == 0, "it was too quick to be killed"
    return client.eval.jobs.retrieve(job_id=job_id, benchmark_id="sums")


def kill(name: str) -> None:
    for process in psutil.process_iter(["cmdline"]):
        if name in " ".join(process.info["cmdline"] or []):
            os.kill(process.pid, signal.SIGKILL)


@pytest.mark.timeout(600)
def test_a_killed_run_ends_as_an_unbroken_one(
    server: Server, client: LlamaStackClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, unbroken = submit(client, "tiny-eval"), submit(client, "tiny-eval")
    result = wait(client, server.url, broken, kills=2)
    whole = wait(client, server.url, unbroken)
    assert httpx.get(f"{server.url}/v1/jobs/{broken}").json()["attempt"] == 3
    assert len(result.generations) == len(ROWS)
    assert result.generations == whole.generations
    assert result.scores == whole.scores
    accuracy: Any = result.scores["basic::equality"].aggregated_results["accuracy"]
    assert accuracy["num_total"] == len(ROWS)

    monkeypatch.setenv("STACK_URL", server.url)
    shown = CliRunner().invoke(app, ["eval", "compare", broken, unbroken])
    assert shown.exit_code == 0, shown.output
    assert "difference +0 [+0, +0], p = 1; of 1000 rows 0 better, 0 worse" in shown.output


@pytest.mark.timeout(300)
def test_a_large_dataset_is_scored_by_a_job(
    server: Server, client: LlamaStackClient, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ray Data's workers ask a reward model; the rows with their scores become a dataset."""
    folder = make_reward_model(tmp_path_factory.mktemp("reward"))
    client.models.register(
        model_id="reward", provider_model_id=str(folder), metadata={"num_cpus": 0.2, "dtype": "float32"}
    )
    rows: Any = [
        {"question": "tell about weather", "answer": "", "generated_answer": "nice " * (n % 5 + 1)}
        for n in range(2100)
    ]
    client.datasets.register(
        dataset_id="said", purpose="eval/question-answer", source={"type": "rows", "rows": rows}
    )
    asked = {
        "dataset_id": "said",
        "scoring_functions": {"llm-as-judge::base": {"type": "llm_as_judge", "judge_model": "reward"}},
        "save_results_dataset": True,
    }
    url, deadline = f"{server.url}/v1/scoring/score-batch", time.monotonic() + 240
    while (answer := httpx.post(url, json=asked, timeout=120)).status_code == 503:
        assert time.monotonic() < deadline, answer.text
        time.sleep(1)
    assert answer.status_code == 200, answer.text
    scores = [each["score"] for each in answer.json()["results"]["llm-as-judge::base"]["score_rows"]]
    assert len(set(scores[:5])) == 5
    assert scores == pytest.approx([scores[n % 5] for n in range(2100)], abs=1e-5)
    (job,) = httpx.get(f"{server.url}/v1/jobs?kind=score").json()["data"]
    assert job["result"]["rows"] == 2100
    saved: Any = client.datasets.iterrows(answer.json()["dataset_id"], limit=1).data[0]
    assert saved["scores"]["llm-as-judge::base"] == {"score": scores[0]}
    client.models.unregister("reward")


@pytest.mark.timeout(300)
def test_smollm2_in_the_terminal(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STACK_URL", server.url)
    assert "sums: sums, scored by basic::equality" in CliRunner().invoke(app, ["eval", "list"]).output
    command = ["eval", "run", "sums", "--model", "smollm2-135m", "--examples", "3", "--max-tokens", "8"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert ": 3 rows" in shown.output
    assert "basic::equality: accuracy 0 (num_correct 0, num_total 3)" in shown.output
