"""Training beside the same TRL run without Ray Train, and what efficiency settings save.

Ray starts in this process, with stores of its own in a temporary folder.

python benchmarks/training.py --model FOLDER --data tests/data/gsm8k_train.jsonl
python benchmarks/training.py --model FOLDER --data tests/data/gsm8k_train.jsonl --rows 64 --workers
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LORA = {
    "type": "LoRA",
    "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "apply_lora_to_mlp": True,
    "apply_lora_to_output": False,
    "rank": 8,
    "alpha": 16,
}


@dataclass(frozen=True)
class Case:
    name: str
    packed: bool = False
    checkpointing: bool = False
    workers: int = 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a folder of weights, e.g. SmolLM2-135M")
    parser.add_argument("--data", type=Path, required=True, help="jsonl with `question` and `answer`")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", action="store_true", help="two workers as well")
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        print(json.dumps(plain(json.loads(args.plain))))
        return
    cases = [Case("LoRA"), Case("LoRA, packed", packed=True), Case("LoRA, checkpointing", checkpointing=True)]
    if args.workers:
        cases.append(Case("LoRA, two workers", workers=2))
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"STACK_HOME": home, "RAY_AUTH_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
        asyncio.run(measure(args, cases, Path(home)))


async def measure(args: argparse.Namespace, cases: list[Case], home: Path) -> None:
    import ray

    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=f"{home}/ray"
    )
    print(f"load {os.getloadavg()[0]:.1f}; {args.rows} rows, batch 4, one epoch; medians of {args.rounds}")
    for case in cases:
        found = [await round_of(args, case, number) for number in range(args.rounds)]
        ours, theirs, overhead, peak, bare = (
            statistics.median(column) for column in zip(*found, strict=True)
        )
        ratio = statistics.median(each[0] / each[1] for each in found)
        print(
            f"{case.name:22} {ours:7.0f} tokens/s, TRL alone {theirs:7.0f}: {ratio:.2f}; "
            f"{overhead:.1f} s around it; peak {peak:.2f} GiB, TRL alone {bare:.2f}"
        )


async def round_of(args: argparse.Namespace, case: Case, number: int) -> tuple[float, ...]:
    """Tokens per second on Ray Train and without, seconds around the training, and peaks in GiB."""
    from stack.settings import Settings
    from stack.training.fit import fit

    settings = Settings()
    async with prepared(args, case, f"{case.name.replace(' ', '').replace(',', '-')}-{number}") as (
        plan,
        lease,
    ):
        config = {"plan": plan.model_dump(mode="json"), "lease": None}
        command = [sys.executable, __file__, "--model", ".", "--data", ".", "--plain", json.dumps(config)]
        alone = await asyncio.to_thread(
            subprocess.run, command, stdout=subprocess.PIPE, text=True, check=True
        )
        bare = json.loads(alone.stdout.splitlines()[-1])
        began = time.time()
        outcome = await asyncio.to_thread(fit, plan, lease, "run", settings)
        seconds = time.time() - began
        file = settings.home / "storage" / Path(outcome.model).parent / "trainer_state.json"
        state = json.loads(file.read_text())
        trained_s = state["log_history"][-1]["train_runtime"]
        return (
            state["num_input_tokens_seen"] / trained_s,
            bare["tokens"] / bare["seconds"],
            seconds - trained_s,
            outcome.metrics["peak_memory_gib"],
            bare["peak_gib"],
        )


@asynccontextmanager
async def prepared(args: argparse.Namespace, case: Case, job: str) -> AsyncIterator[Any]:
    """A plan over the rows, with its tokens, and a lease."""
    from stack.datasets.datasets import Datasets
    from stack.files.blobs import Blobs
    from stack.files.files import Files
    from stack.jobs.context import JobContext
    from stack.schemas.datasets import RegisterDatasetRequest
    from stack.settings import Settings
    from stack.store.database import open_database
    from stack.store.jobs import Jobs
    from stack.store.lance import open_lance
    from stack.store.storage import open_storage
    from stack.training.plan import Data, Plan, Resources, Start
    from stack.training.prepare import prepare

    settings = Settings()
    rows = [json.loads(line) for line in args.data.read_text().splitlines()]
    rows = [rows[index % len(rows)] for index in range(args.rows)]
    async with (
        open_database(settings) as database,
        open_storage(settings) as storage,
        open_lance(settings) as lance,
    ):
        datasets = Datasets(settings, database, lance, Files(database, Blobs(database, storage)))
        body = {
            "purpose": "eval/question-answer",
            "dataset_id": "rows",
            "source": {"type": "rows", "rows": rows},
        }
        await datasets.register(RegisterDatasetRequest.model_validate(body))
        data = Data(dataset_id="rows", table=await datasets.table("rows"), rows=len(rows))
        training = {
            "n_epochs": 1,
            "max_steps_per_epoch": 0,
            "gradient_accumulation_steps": 1,
            "max_validation_steps": 0,
            "data_config": {
                "dataset_id": "rows",
                "batch_size": 1 if case.packed else 4 // case.workers,
                "shuffle": True,
                "data_format": "instruct",
                "packed": case.packed,
            },
            "optimizer_config": {
                "optimizer_type": "adamw",
                "lr": 1e-4,
                "weight_decay": 0,
                "num_warmup_steps": 0,
            },
            "efficiency_config": {"enable_activation_checkpointing": case.checkpointing},
        }
        plan = Plan.model_validate(
            {
                "job_uuid": job,
                "method": "sft",
                "start": Start(model_id="base", source=str(args.model.resolve())),
                "algorithm": LORA,
                "training": training,
                "data": data,
                "resources": Resources(workers=case.workers),
                "folder": f"training/{job}",
                "max_tokens": 1024,
            }
        )
        jobs = Jobs(database, lease_s=3600)
        await jobs.submit("supervised-fine-tune", plan.model_dump(mode="json"), job)
        lease = await jobs.claim(job, "benchmark")
        await prepare(plan, "train", data, JobContext(settings, database, lease), storage)
        yield plan, lease


def plain(config: dict[str, Any]) -> dict[str, float]:
    """The same rows, model and trainer in this process alone."""
    import torch

    from stack.settings import Settings
    from stack.store.storage import open_storage
    from stack.training.data import open_split
    from stack.training.model import load
    from stack.training.plan import Plan
    from stack.training.trainers import make_trainer

    plan = Plan.model_validate(config["plan"])
    torch.set_num_threads(os.cpu_count() or 1)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    folder = Path(plan.start.source)
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory() as scratch:
        storage = runner.run(open_storage(Settings()).__aenter__())
        rows = open_split(plan, "train", storage, Path(scratch))
        model = load(plan, folder, None, torch.device("cpu"))
        trainer = make_trainer(plan, model, folder, rows, None, Path(scratch), resumed=False)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return {"tokens": trainer.state.num_input_tokens_seen, "seconds": seconds, "peak_gib": peak}


if __name__ == "__main__":
    main()
