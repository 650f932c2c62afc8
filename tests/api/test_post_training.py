"""Training jobs over HTTP: what is submitted, what is refused, what is shown. Nothing is trained here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from stack.app import create_app
from stack.context import Stack, open_stack
from stack.settings import Settings
from stack.training.plan import Plan
from tests.models.tiny import make_llama
from tests.store.examples import model

SFT, DPO = "/v1/post-training/supervised-fine-tune", "/v1/post-training/preference-optimize"


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
async def app(settings: Settings, tiny_llama: Path) -> AsyncIterator[FastAPI]:
    """With the models `tiny` and `embedder`, and the datasets `chats`, `pairs` and `questions`."""
    app = create_app(lambda: open_stack(settings))
    async with app.router.lifespan_context(app):
        stack: Stack = app.state.stack
        await stack.models.declare(model("tiny", provider_resource_id=str(tiny_llama)))
        await stack.models.declare(model("embedder", model_type="embedding"))
        yield app


@pytest.fixture
async def data(client: httpx.AsyncClient) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    pair = {"messages": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}
    for dataset_id, purpose, row in (
        ("chats", "post-training/messages", chat),
        ("pairs", "post-training/messages", pair),
        ("questions", "eval/question-answer", {"question": "a", "answer": "b"}),
    ):
        source = {"type": "rows", "rows": [row] * 3}
        body = {"dataset_id": dataset_id, "purpose": purpose, "source": source}
        assert (await client.post("/v1/datasets", json=body)).status_code == 200


def training(dataset_id: str = "chats", **changes: Any) -> dict[str, Any]:
    return {
        "n_epochs": 1,
        "max_steps_per_epoch": 0,
        "gradient_accumulation_steps": 1,
        "max_validation_steps": 0,
        "data_config": {
            "dataset_id": dataset_id, "batch_size": 2, "shuffle": True, "data_format": "dialog",
        },
        "optimizer_config": {
            "optimizer_type": "adamw", "lr": 1e-4, "weight_decay": 0.0, "num_warmup_steps": 0,
        },
    } | changes  # fmt: skip


LORA = {
    "type": "LoRA", "lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True,
    "apply_lora_to_output": False, "rank": 4, "alpha": 8,
}  # fmt: skip


def sft(job_uuid: str = "job", **changes: Any) -> dict[str, Any]:
    return {
        "job_uuid": job_uuid,
        "model": "tiny",
        "training_config": training(),
        "algorithm_config": LORA,
        "hyperparam_search_config": {},
        "logger_config": {},
    } | changes


async def test_a_fine_tune_is_a_job(
    client: httpx.AsyncClient, stack: Stack, data: None, tiny_llama: Path
) -> None:
    answer = await client.post(SFT, json=sft())
    assert (answer.status_code, answer.json()) == (200, {"job_uuid": "job"}), answer.text
    job = await stack.jobs.get("job")
    assert job.kind == "supervised-fine-tune"
    plan = Plan.model_validate(job.request)
    assert plan.start.model_dump() == {"model_id": "tiny", "source": str(tiny_llama), "adapter": None}
    assert plan.data.rows == 3
    assert plan.folder == "training/job"
    assert plan.max_tokens == 64  # the model's own limit
    assert plan.trains_adapter
    assert (await client.get("/v1/post-training/jobs")).json() == {"data": [{"job_uuid": "job"}]}
    status = (await client.get("/v1/post-training/job/status", params={"job_uuid": "job"})).json()
    assert status["status"] == "scheduled"
    assert status["checkpoints"] == []
    assert status["resources_allocated"] == {
        "device": "cpu", "workers": 1, "cpus_per_worker": 0.01, "gpus_per_worker": 0.0, "strategy": "ddp",
    }  # fmt: skip
    cancelled = await client.post("/v1/post-training/job/cancel", json={"job_uuid": "job"})
    assert (cancelled.status_code, cancelled.json()) == (200, None)
