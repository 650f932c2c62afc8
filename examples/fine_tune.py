"""Fine-tune, judge, promote: SFT on solved problems, DPO on pairs of answers, and what each is worth.

stack up
python examples/fine_tune.py --rows gsm8k_train.jsonl --pairs gsm8k_preferences.jsonl --sft-rows 1000

The rows have `question` and `answer`, the pairs `prompt`, `chosen` and `rejected`, one JSON object a line.
Some pairs are held out: all three models are judged by the loss of their chosen answers, in nats per token.
The best one is promoted: it answers a question. Without arguments a few rows of grade-school maths are used.
"""

import argparse
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from llama_stack_client import LlamaStackClient

BASE = "smollm2-135m"
DATA = Path(__file__).parents[1] / "tests/data"
LORA = {
    "type": "LoRA",
    "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "apply_lora_to_mlp": True,
    "apply_lora_to_output": False,
    "rank": 8,
    "alpha": 16,
}
DPO = {"reward_scale": 0.1, "reward_clip": 0.0, "epsilon": 0.0, "gamma": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
    )
    parser.add_argument("--model", default=BASE, help="a registered text model")
    parser.add_argument("--rows", type=Path, default=DATA / "gsm8k_train.jsonl")
    parser.add_argument("--pairs", type=Path, default=DATA / "gsm8k_preferences.jsonl")
    parser.add_argument("--sft-rows", type=int, default=4, help="how many rows SFT learns")
    parser.add_argument("--held-out", type=int, default=2, help="how many pairs judge the models")
    parser.add_argument("--dpo-pairs", type=int, default=4, help="how many pairs DPO learns")
    args = parser.parse_args()
    client = LlamaStackClient(base_url=os.environ.get("STACK_URL", "http://127.0.0.1:8321"))
    run = uuid.uuid4().hex[:8]
    solved, pairs = read(args.rows)[: args.sft_rows], read(args.pairs)
    held_out, learnt = pairs[: args.held_out], pairs[args.held_out :][: args.dpo_pairs]
    register(client, f"solved-{run}", [chat(row["question"], row["answer"]) for row in solved])
    register(client, f"answers-{run}", [chat(row["prompt"], row["chosen"]) for row in held_out])
    register(client, f"pairs-{run}", [chat(row["prompt"]) | answers(row) for row in learnt])
    register(client, f"judge-{run}", [chat(row["prompt"]) | answers(row) for row in held_out])

    sft = client.post_training.supervised_fine_tune(
        job_uuid=f"sft-{run}",
        model=args.model,
        algorithm_config=LORA,
        training_config=training(f"solved-{run}", f"answers-{run}", lr=5e-4),
        hyperparam_search_config={},
        logger_config={},
    )
    after_sft = wait(client, sft.job_uuid)
    dpo = client.post_training.preference_optimize(
        job_uuid=f"dpo-{run}",
        finetuned_model=sft.job_uuid,
        algorithm_config=DPO,
        training_config=training(f"pairs-{run}", f"judge-{run}", lr=5e-5),
        hyperparam_search_config={},
        logger_config={},
    )
    after_dpo = wait(client, dpo.job_uuid)

    losses = {
        args.model: after_sft["initial_validation_loss"],
        sft.job_uuid: after_sft["validation_loss"],
        dpo.job_uuid: after_dpo["validation_chosen_loss"],
    }
    print("held-out loss of the chosen answers, nats per token")
    for model_id, loss in losses.items():
        print(f"  {model_id:16} {loss:.4f}")
    accuracy = after_dpo["validation_rewards/accuracies"]
    print(f"DPO prefers the better of two held-out answers in {accuracy:.0%} of {len(held_out)} pairs")
    best = min(losses, key=lambda model_id: losses[model_id])
    question = held_out[0]["prompt"]
    answer = client.inference.chat_completion(
        model_id=best,
        messages=[{"role": "user", "content": question}],
        sampling_params={"strategy": {"type": "greedy"}, "max_tokens": 80},
    )
    print(f"promoted: {best}\n{question}\n{answer.completion_message.content}")


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def chat(question: str, answer: str | None = None) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"messages": messages + ([{"role": "assistant", "content": answer}] if answer else [])}


def answers(row: dict[str, str]) -> dict[str, str]:
    return {"chosen": row["chosen"], "rejected": row["rejected"]}


def register(client: LlamaStackClient, dataset_id: str, rows: list[dict[str, Any]]) -> None:
    source = {"type": "rows", "rows": rows}
    client.datasets.register(dataset_id=dataset_id, purpose="post-training/messages", source=source)


def training(dataset_id: str, validation_dataset_id: str, lr: float) -> dict[str, Any]:
    return {
        "n_epochs": 1,
        "max_steps_per_epoch": 0,
        "gradient_accumulation_steps": 1,
        "max_validation_steps": 0,
        "data_config": {
            "dataset_id": dataset_id,
            "validation_dataset_id": validation_dataset_id,
            "batch_size": 4,
            "shuffle": True,
            "data_format": "instruct",
        },
        "optimizer_config": {"optimizer_type": "adamw", "lr": lr, "weight_decay": 0.0, "num_warmup_steps": 0},
    }


def wait(client: LlamaStackClient, job_uuid: str) -> dict[str, float]:
    """The metrics of the job's last checkpoint. `stack jobs show --follow` shows more while it works."""
    print(f"{job_uuid} ", end="", flush=True)
    while (status := client.post_training.job.status(job_uuid=job_uuid).status) in (
        "scheduled",
        "in_progress",
    ):
        print(".", end="", flush=True)
        time.sleep(2)
    print("", status)
    if status != "completed":
        raise SystemExit(f"`stack jobs show {job_uuid}` tells why")
    checkpoints = client.post_training.job.artifacts(job_uuid=job_uuid).checkpoints
    return next(each for each in reversed(checkpoints) if "model_id" in each)["training_metrics"]


if __name__ == "__main__":
    main()
