"""A stack's stores with a tiny model and a few rows, and plans over them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stack.datasets.datasets import Datasets
from stack.files.blobs import Blobs
from stack.files.files import Files
from stack.files.uploads import Uploads
from stack.jobs.context import JobContext
from stack.schemas.datasets import RegisterDatasetRequest
from stack.schemas.models import Model
from stack.schemas.post_training import DPOAlignmentConfig, LoraFinetuningConfig, TrainingConfig
from stack.settings import Settings, get_settings
from stack.store.database import Database, open_database
from stack.store.jobs import Jobs
from stack.store.lance import open_lance
from stack.store.registry import Registry
from stack.store.storage import Storage, open_storage
from stack.training.plan import Data, Plan, Start
from tests.training.tiny import write_tiny_model

LORA = LoraFinetuningConfig(
    lora_attn_modules=["q_proj", "v_proj"],
    apply_lora_to_mlp=True,
    apply_lora_to_output=False,
    rank=4,
    alpha=8,
)
ROWS: list[dict[str, Any]] = [
    {
        "messages": [{"role": "user", "content": f"What is {n} and {n}?"}],
        "chosen": f"It is {2 * n}.",
        "rejected": f"It may be {2 * n + 1}, or not.",
        "answer": f"It is {2 * n}.",
    }
    for n in range(12)
]
"""Rows for either method."""


@dataclass
class Workshop:
    settings: Settings
    database: Database
    storage: Storage
    datasets: Datasets
    models: Registry[Model]
    uploads: Uploads
    folder: Path

    async def data(self, rows: list[dict[str, Any]], dataset_id: str = "rows") -> Data:
        source = {"type": "rows", "rows": rows}
        body = {"purpose": "post-training/messages", "dataset_id": dataset_id, "source": source}
        await self.datasets.register(RegisterDatasetRequest.model_validate(body))
        table = await self.datasets.table(dataset_id)
        return Data(dataset_id=dataset_id, table=table, rows=len(rows))

    async def plan(self, job_uuid: str = "job", method: str = "sft", **changes: Any) -> Plan:
        data = changes.pop("data", None) or await self.data(ROWS)
        training = {"epochs": 2, "batch_size": 4, "lr": 1e-3, "packed": False, "shuffle": True, "steps": 0}
        training |= {key: changes.pop(key) for key in list(changes) if key in training}
        values: dict[str, Any] = {
            "algorithm": LORA,
            "alignment": DPOAlignmentConfig(reward_scale=0.5, reward_clip=0, epsilon=0, gamma=0)
            if method == "dpo"
            else None,
            "max_tokens": 128,
        }
        return Plan(
            job_uuid=job_uuid,
            method=method,
            start=Start(model_id="tiny", source=str(self.folder)),
            training=training_config(**training),
            data=data,
            folder=f"training/{job_uuid}",
            **(values | changes),
        )

    async def context(self, plan: Plan, kind: str = "supervised-fine-tune") -> JobContext:
        """As its job's process has it."""
        jobs = Jobs(self.database)
        await jobs.submit(kind, plan.model_dump(mode="json"), plan.job_uuid)
        return JobContext(self.settings, self.database, await jobs.claim(plan.job_uuid, "test"))


def training_config(
    epochs: int, batch_size: int, lr: float, packed: bool, shuffle: bool, steps: int
) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "n_epochs": epochs,
            "max_steps_per_epoch": steps,
            "gradient_accumulation_steps": 1,
            "max_validation_steps": 0,
            "data_config": {
                "dataset_id": "rows",
                "batch_size": batch_size,
                "shuffle": shuffle,
                "data_format": "instruct",
                "packed": packed,
            },
            "optimizer_config": {
                "optimizer_type": "adamw",
                "lr": lr,
                "weight_decay": 0.0,
                "num_warmup_steps": 0,
            },
        }
    )


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
async def workshop(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Workshop]:
    """Workers of Ray find the same stores, by the environment."""
    home = tmp_path / "home"
    monkeypatch.setenv("STACK_HOME", str(home))
    get_settings.cache_clear()
    settings = Settings(home=home)
    async with (
        open_database(settings) as database,
        open_storage(settings) as storage,
        open_lance(settings) as lance,
    ):
        blobs = Blobs(database, storage)
        files = Files(database, blobs)
        yield Workshop(
            settings,
            database,
            storage,
            Datasets(settings, database, lance, files),
            Registry(database, Model),
            Uploads(database, blobs, files, 1 << 30),
            tiny_dir,
        )
    get_settings.cache_clear()
