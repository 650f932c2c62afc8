"""`stack jobs` against a real HTTP server with the real routes."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner

from stack.app import create_app
from stack.cli.app import app
from stack.cli.job_progress import facts, state
from stack.context import Stack, open_stack
from stack.jobs.logs import log_path
from stack.settings import Settings
from stack.store.database import open_database
from stack.store.job_items import JobItems
from stack.store.jobs import Jobs
from tests.models.tiny import make_llama

SFT = """
kind: supervised-fine-tune
job_uuid: sft
model: tiny
training_config:
  data_config: {dataset_id: chats, batch_size: 2}
  optimizer_config: {lr: 1e-4}
algorithm_config:
  type: LoRA
  lora_attn_modules: [q_proj]
  apply_lora_to_mlp: false
  apply_lora_to_output: false
  rank: 4
  alpha: 8
"""


def run(*args: str, piped: str | None = None) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["jobs", *args], input=piped)
    return result.exit_code, result.output


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture(autouse=True)
def server(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:

    @asynccontextmanager
    async def opened() -> AsyncIterator[Stack]:
        async with open_stack(settings) as stack:
            yield stack

    config = uvicorn.Config(create_app(opened), port=0, log_level="warning")
    served = uvicorn.Server(config)
    thread = threading.Thread(target=served.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not served.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = served.servers[0].sockets[0].getsockname()[1]
    monkeypatch.setenv("STACK_URL", f"http://127.0.0.1:{port}")
    yield
    served.should_exit = True
    thread.join()


async def make(settings: Settings, end: str = "", delay_s: float = 0.0) -> str:
    """A job that is at work on its fourth of nine items, and ends a little later as asked."""
    async with open_database(settings) as database:
        jobs = Jobs(database)
        job = await jobs.submit("ingest", {})
        lease = await jobs.claim(job.id, "here")
        await JobItems(database).fail(lease, {2: "[no] text in it"})
        await jobs.renew(lease, {"done": 3, "total": 9, "unit": "documents"})
    if end:
        threading.Timer(delay_s, lambda: asyncio.run(finish(settings, job.id, end))).start()
    return job.id


async def finish(settings: Settings, job_id: str, end: str) -> None:
    async with open_database(settings) as database:
        jobs = Jobs(database)
        job = await jobs.get(job_id)
        await jobs.end(
            job, "completed" if end == "completed" else "failed", None if end == "completed" else end
        )


def test_list(settings: Settings) -> None:
    assert run("list") == (0, "no jobs\n")
    job_id = asyncio.run(make(settings))
    code, output = run("list")
    assert code == 0
    assert output.splitlines()[1].split()[:6] == [job_id, "ingest", "in_progress", "3/9", "documents", "1"]
    assert run("list", "--kind", "train") == (0, "no jobs\n")
    code, output = run("list", "--status", "running")
    assert code == 1
    assert "status" in output


def test_show(settings: Settings) -> None:
    job_id = asyncio.run(make(settings))
    code, output = run("show", job_id)
    assert code == 0
    lines = output.splitlines()
    assert lines[0] == f"job:      {job_id}"
    assert "status:   in_progress" in lines
    assert "progress: 3/9 documents" in lines
    assert "item 2 failed: [no] text in it" in lines
    assert run("show", "nobody") == (1, "error: job 'nobody' is not registered\n")


@pytest.mark.parametrize(("end", "code"), [("completed", 0), ("the model is gone", 1)])
def test_follow_stays_until_the_end(settings: Settings, end: str, code: int) -> None:
    job_id = asyncio.run(make(settings, end, delay_s=1.0))
    exit_code, output = run("show", job_id, "--follow")
    assert exit_code == code
    assert ("detail:   the model is gone" in output) == bool(code)
    assert "took:" in output


def test_cancel_and_logs(settings: Settings) -> None:
    job_id = asyncio.run(make(settings))
    assert run("logs", job_id) == (0, "")
    log_path(settings.home, job_id).parent.mkdir()
    log_path(settings.home, job_id).write_text("one\ntwo\n")
    assert run("logs", job_id) == (0, "one\ntwo\n")
    assert run("cancel", job_id) == (0, "cancellation is asked; the job is stopping\n")
    assert "cancellation is asked" in run("show", job_id)[1]
    asyncio.run(finish(settings, job_id, "x"))
    assert run("cancel", job_id)[0] == 1


@pytest.fixture
def tiny(tmp_path: Path) -> None:
    """The model and the dataset that SFT names."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    source = {"type": "rows", "rows": [{"messages": messages}]}
    dataset = {"dataset_id": "chats", "purpose": "post-training/messages", "source": source}
    model = {"model_id": "tiny", "provider_model_id": str(make_llama(tmp_path / "tiny"))}
    with httpx.Client(base_url=os.environ["STACK_URL"], timeout=60.0) as http:
        for path, body in (("/v1/datasets", dataset), ("/v1/models", model)):
            answer = http.post(path, json=body)
            assert answer.status_code == 200, answer.text


async def request_of(settings: Settings, job_id: str) -> dict[str, Any]:
    async with open_database(settings) as database:
        return (await Jobs(database).get(job_id)).request


def test_submit(settings: Settings, tiny: None, tmp_path: Path) -> None:
    file = tmp_path / "my sft.yaml"
    file.write_text(SFT)
    assert run("submit", str(file)) == (
        0,
        "job sft is submitted\nfollow it: stack jobs show sft --follow\n",
    )
    training = asyncio.run(request_of(settings, "sft"))["training"]
    assert training["optimizer_config"] == {
        "optimizer_type": "adamw", "lr": 0.0001, "weight_decay": 0.0, "num_warmup_steps": 0,
    }  # fmt: skip
    assert (training["n_epochs"], training["data_config"]["shuffle"]) == (1, True)
    assert run("submit", str(file)) == (
        1,
        "error: job_uuid: there is a job 'sft' already: choose another id\n",
    )
    changes = ("--set", "job_uuid=second", "--set", "training_config.n_epochs=3")
    assert run("submit", "-", *changes, piped=SFT)[0] == 0
    assert asyncio.run(request_of(settings, "second"))["training"]["n_epochs"] == 3
    file.write_text(SFT.replace("job_uuid: sft\n", ""))
    assert re.search(r"job my-sft-[0-9a-f]{8} is submitted", run("submit", str(file))[1])


def test_submit_and_follow(settings: Settings, tiny: None) -> None:
    async def train() -> None:
        async with open_database(settings) as database:
            jobs = Jobs(database)
            async with asyncio.timeout(30):
                while not await jobs.active():  # noqa: ASYNC110  # the other side is a subcommand
                    await asyncio.sleep(0.05)
            lease = await jobs.claim("sft", "here")
            await jobs.renew(
                lease, {"done": 2, "total": 4, "unit": "steps", "loss": 1.5, "phase": "training"}
            )
            await asyncio.sleep(1.5)
            checkpoint = {"identifier": "sft/checkpoint-4", "path": "long"}
            await jobs.finish(
                lease,
                {
                    "model_id": "sft",
                    "checkpoints": [checkpoint],
                    "metrics": {"train_loss": 1.23456},
                    "data": {"train": {"rows": 3, "dropped": 1}},
                },
            )

    thread = threading.Thread(target=lambda: asyncio.run(train()))
    thread.start()
    code, output = run("submit", "-", "--follow", piped=SFT)
    thread.join()
    assert code == 0
    lines = output.splitlines()
    assert lines[0] == "job sft is submitted"
    for line in ("status:   completed", "model_id: sft", "checkpoints: sft/checkpoint-4"):
        assert line in lines
    assert "metrics:  train_loss 1.235" in lines
    assert "data:     train (rows 3, dropped 1)" in lines
    assert "progress: 2/4 steps  loss 1.5" in lines


BAD_FILES = [
    ("model: x", "stdin: kind is missing; write kind: supervised-fine-tune or preference-optimize"),
    (
        "kind: supervised-finetune",
        "no jobs of kind 'supervised-finetune'; did you mean 'supervised-fine-tune'?",
    ),
    ("kind: [", "stdin line 1, column 8"),
    ("- 1", "stdin must be a mapping"),
    (SFT + "modle: x", "line 15: modle: unknown key; did you mean 'model'?"),
    (SFT.replace("rank", "rnak"), "line 13: algorithm_config.rnak: unknown key; did you mean 'rank'?"),
    (
        SFT.replace("rank: 4", "rank: many"),
        "line 13: algorithm_config.rank: 'many' is wrong; write a valid int",
    ),
    (SFT.replace("lr: 1e-4", "lr: .nan"), "line 7: training_config.optimizer_config.lr"),
    (
        SFT.replace("batch_size: 2", "batch_size: 0"),
        "line 6: training_config.data_config.batch_size: 0 is wrong",
    ),
    (SFT.replace("model: tiny\n", ""), "model: missing; add it"),
    (SFT.replace("model: tiny", "model: x"), "model: model 'x' is not registered"),
    (SFT.replace("q_proj", "magic"), "the model's attention has no 'magic'; it has k_proj, o_proj"),
]


def test_bad_files(tiny: None) -> None:
    for text, message in BAD_FILES:
        code, output = run("submit", "-", piped=text)
        assert code == 1
        assert message in output


def test_bad_arguments(tmp_path: Path) -> None:
    assert run("submit", str(tmp_path / "no.yaml"))[1].startswith("error: there is no file ")
    for change, message in (
        ("x", "--set x: write KEY=VALUE, e.g. training_config.n_epochs=3"),
        ("model.x=1", "--set model.x=1: model is a value and has no keys"),
        ("a=[", "--set a=[: '[' is no YAML value"),
    ):
        assert message in run("submit", "-", "--set", change, piped=SFT)[1]


def test_progress_of_training() -> None:
    progress = {"phase": "training", "trial": "trial-2", "loss": 1.23456, "tokens_per_s": 812.4, "epoch": 0.5}
    job = {"status": "in_progress", "cancel_requested": False, "progress": progress}
    assert state(job) == "training, trial-2"
    assert state(job | {"cancel_requested": True}) == "stopping"
    assert state(job | {"progress": {}}) == "in progress"
    assert facts(progress, 3.0) == "epoch 0.50  loss 1.235  812 tokens/s"
    assert facts({"phase": "reference", "unit": "pairs"}, 3.0) == "3.0 pairs/s"
    assert facts({}, None) == ""
