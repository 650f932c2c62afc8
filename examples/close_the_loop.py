"""A model that learns from its own best answers: generate, score, filter, fine-tune, evaluate, compare.

stack up
python examples/close_the_loop.py
python examples/close_the_loop.py --rows gsm8k_train.jsonl --train 200 --test 100

The rows have `question` and `answer`, one JSON object a line. The model answers each several times; what is
right by the scoring function is what it is trained on (or what it finds most likely, as long as too few are
right), and both models are then asked questions that neither has seen.
"""

import argparse
import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
from llama_stack_client import APIStatusError, LlamaStackClient

BASE = "smollm2-135m"
DATA = Path(__file__).parents[1] / "tests/data/gsm8k_train.jsonl"
SCORING = "basic::regex_parser_math_response"
LORA = {
    "type": "LoRA",
    "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "apply_lora_to_mlp": True,
    "apply_lora_to_output": False,
    "rank": 8,
    "alpha": 16,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
    )
    parser.add_argument("--model", default=BASE, help="a registered text model")
    parser.add_argument("--rows", type=Path, default=DATA)
    parser.add_argument("--train", type=int, default=4, help="how many questions the model learns from")
    parser.add_argument("--test", type=int, default=4, help="how many questions both models are asked")
    parser.add_argument("--max-tokens", type=int, default=128, help="limit of an evaluated answer")
    args = parser.parse_args()
    url = os.environ.get("STACK_URL", "http://127.0.0.1:8321")
    client = LlamaStackClient(base_url=url, timeout=300)
    run = uuid.uuid4().hex[:8]
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()][: args.train + args.test]
    train, test = rows[: args.train], rows[args.train :]

    made = generate(client, args.model, train)
    print(f"{len(made)} answers to {len(train)} questions", flush=True)
    best = right(client, made, train) or sorted(made, key=lambda row: -row["score"])[: len(train)]
    print(f"{len(best)} of them are kept", flush=True)
    register(client, f"best-{run}", "post-training/messages", best)

    job = client.post_training.supervised_fine_tune(
        job_uuid=f"loop-{run}",
        model=args.model,
        algorithm_config=LORA,
        training_config=training(f"best-{run}"),
        hyperparam_search_config={},
        logger_config={},
    )
    wait(client, job.job_uuid)

    register(client, f"test-{run}", "eval/question-answer", test)
    client.benchmarks.register(
        benchmark_id=f"maths-{run}", dataset_id=f"test-{run}", scoring_functions=[SCORING]
    )
    runs = [evaluate(client, f"maths-{run}", model, args.max_tokens) for model in (args.model, job.job_uuid)]
    found = httpx.get(
        f"{url}/v1/eval/compare", params=dict(zip(("baseline", "candidate"), runs, strict=True))
    )
    scores = found.raise_for_status().json()["scores"][SCORING]
    print(f"{args.model}: {scores['baseline']:.1%}, {job.job_uuid}: {scores['candidate']:.1%} of {len(test)}")
    print(f"difference {scores['difference']:+.1%}, p = {scores['p_value']:.2g}")


def generate(client: LlamaStackClient, model: str, rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Several answers to each question. Of many a job is made, and the same request waits for it."""
    dialogs = [{"role": "user", "content": row["question"]} for row in rows]
    while True:
        try:
            return client.synthetic_data_generation.generate(
                dialogs=dialogs, filtering_function="none", model=model
            ).synthetic_data
        except APIStatusError as error:
            if error.status_code != 503:
                raise


def right(
    client: LlamaStackClient, made: list[dict[str, Any]], rows: list[dict[str, str]]
) -> list[dict[str, Any]]:
    """Those whose final answer is the one that the rows have."""
    expected = {row["question"]: row["answer"] for row in rows}
    scored = client.scoring.score(
        input_rows=[
            {
                "input_query": row["messages"][0]["content"],
                "generated_answer": row["messages"][-1]["content"],
                "expected_answer": expected[row["messages"][0]["content"]],
            }
            for row in made
        ],
        scoring_functions={SCORING: None},
    )
    scores = scored.results[SCORING].score_rows
    return [row for row, score in zip(made, scores, strict=True) if score["score"] == 1]


def register(client: LlamaStackClient, dataset_id: str, purpose: Any, rows: list[dict[str, Any]]) -> None:
    client.datasets.register(dataset_id=dataset_id, purpose=purpose, source={"type": "rows", "rows": rows})


def training(dataset_id: str) -> dict[str, Any]:
    return {
        "n_epochs": 1,
        "max_steps_per_epoch": 0,
        "gradient_accumulation_steps": 1,
        "max_validation_steps": 0,
        "data_config": {
            "dataset_id": dataset_id,
            "batch_size": 4,
            "shuffle": True,
            "data_format": "dialog",
        },
        "optimizer_config": {
            "optimizer_type": "adamw",
            "lr": 1e-4,
            "weight_decay": 0.0,
            "num_warmup_steps": 0,
        },
    }


def evaluate(client: LlamaStackClient, benchmark_id: str, model: str, max_tokens: int) -> str:
    """The id of a completed run."""
    candidate = {
        "type": "model",
        "model": model,
        "sampling_params": {"strategy": {"type": "greedy"}, "max_tokens": max_tokens},
    }
    job = client.eval.run_eval(
        benchmark_id=benchmark_id,
        benchmark_config={"eval_candidate": candidate, "scoring_params": {}},
    )
    wait(client, job.job_id)
    return job.job_id


def wait(client: LlamaStackClient, job_id: str) -> None:
    """`stack jobs show --follow` shows more while a job works."""
    print(f"{job_id} ", end="", flush=True)
    while True:
        status = client.get(f"/v1/jobs/{job_id}", cast_to=httpx.Response).json()["status"]
        if status not in ("scheduled", "in_progress"):
            break
        print(".", end="", flush=True)
        time.sleep(2)
    print("", status)
    if status != "completed":
        raise SystemExit(f"`stack jobs show {job_id}` tells why")


if __name__ == "__main__":
    main()
