"""Fine-tunes on a few rows again and again: the loss must go to nearly nothing, the model must repeat them.

    python benchmarks/overfit.py --url http://127.0.0.1:8321 --rows gsm8k_train.jsonl

Takes the shortest rows of the file, which has `question` and `answer`. Prints the loss on the way, and of
how many questions the served model's greedy answer is the learned one, letter by letter.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import uuid
from pathlib import Path

import httpx

LORA = {
    "type": "LoRA",
    "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "apply_lora_to_mlp": True,
    "apply_lora_to_output": False,
    "rank": 16,
    "alpha": 32,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8321")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
    rows = sorted(rows, key=lambda row: len(row["question"]) + len(row["answer"]))[: args.count]
    with httpx.Client(base_url=args.url, timeout=300) as http:
        job = train(http, args, rows)
        watch(http, job)
        right = sum(answer(http, job, row) == row["answer"].strip() for row in rows)
    print(f"{right} of {len(rows)} answers are the learned ones")


def train(http: httpx.Client, args: argparse.Namespace, rows: list[dict[str, str]]) -> str:
    name = f"overfit-{uuid.uuid4().hex[:8]}"
    messages = [
        {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"].strip()},
            ]
        }
        for row in rows
    ]
    dataset = {
        "dataset_id": name,
        "purpose": "post-training/messages",
        "source": {"type": "rows", "rows": messages},
    }
    http.post("/v1/datasets", json=dataset).raise_for_status()
    body = {
        "job_uuid": name,
        "model": args.model,
        "algorithm_config": LORA,
        "training_config": {
            "n_epochs": args.epochs,
            "max_steps_per_epoch": 0,
            "gradient_accumulation_steps": 1,
            "max_validation_steps": 0,
            "data_config": {"dataset_id": name, "batch_size": 4, "shuffle": True, "data_format": "instruct"},
            "optimizer_config": {
                "optimizer_type": "adamw",
                "lr": args.lr,
                "weight_decay": 0.0,
                "num_warmup_steps": 4,
            },
        },
        "hyperparam_search_config": {},
        "logger_config": {},
    }
    http.post("/v1/post-training/supervised-fine-tune", json=body).raise_for_status()
    return name


def watch(http: httpx.Client, job: str) -> None:
    """Prints the loss about every tenth step, until the job ends."""
    shown, loss = -10, float("nan")
    while (found := http.get(f"/v1/jobs/{job}").raise_for_status().json())["status"] in (
        "scheduled",
        "in_progress",
    ):
        progress = found.get("progress", {})
        loss = progress.get("loss", loss)
        if "loss" in progress and progress["done"] >= shown + 10:
            shown = progress["done"]
            print(f"step {shown:4} of {progress['total']}  loss {loss:.4f}", flush=True)
        time.sleep(0.5)
    if found["status"] != "completed":
        raise SystemExit(f"the job is {found['status']}: {found.get('detail')}")
    print(f"end: loss {loss:.4f}")


def answer(http: httpx.Client, model: str, row: dict[str, str]) -> str:
    body = {
        "model_id": model,
        "messages": [{"role": "user", "content": row["question"]}],
        "sampling_params": {"strategy": {"type": "greedy"}, "max_tokens": 200},
    }
    found = http.post("/v1/inference/chat-completion", json=body).raise_for_status().json()
    return str(found["completion_message"]["content"]).strip()


if __name__ == "__main__":
    main()
