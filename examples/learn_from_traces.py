"""From traces to training: what people liked becomes rows, and a model that prefers such answers.

STACK_TELEMETRY_CONTENT=true stack up
python examples/learn_from_traces.py

Each question is asked several times. Here, who asks likes short answers: the feedback is logged as a metric
of the request's span, which the header `traceresponse` names. The spans are exported to a dataset, which
`stack traces` turns into conversations to fine-tune on, and into pairs of a liked and a disliked answer; DPO
learns from these.
"""

import argparse
import os
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from llama_stack_client import LlamaStackClient

URL = os.environ.get("STACK_URL", "http://127.0.0.1:8321")
QUESTIONS = ["What is a llama?", "Why is the sky blue?", "How do I boil an egg?"]
SAVED = [
    "gen_ai.operation.name",
    "gen_ai.request.model",
    "turn_id",
    "gen_ai.input.messages",
    "gen_ai.output.messages",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
    )
    parser.add_argument("--model", default="smollm2-135m", help="a registered text model")
    parser.add_argument("--answers", type=int, default=3, help="to each question")
    args = parser.parse_args()
    client = LlamaStackClient(base_url=URL, timeout=300)
    run = uuid.uuid4().hex[:8]
    metric = f"liked-{run}"

    for question in QUESTIONS * args.answers:
        ask(client, args.model, question, metric)
    client.telemetry.save_spans_to_dataset(
        dataset_id=f"spans-{run}",
        attribute_filters=[{"key": metric, "op": "gt", "value": -1e9}],
        attributes_to_save=[*SAVED, metric],
    )
    print(traces("messages", f"spans-{run}", "--to", f"liked-{run}", "--score", metric, "--at-least", "-200"))
    print(traces("pairs", f"spans-{run}", "--to", f"pairs-{run}", "--score", metric))

    job = client.post_training.preference_optimize(
        job_uuid=f"learnt-{run}",
        finetuned_model=args.model,
        algorithm_config={"reward_scale": 0.1, "reward_clip": 0.0, "epsilon": 0.0, "gamma": 0.0},
        training_config=training(f"pairs-{run}"),
        hyperparam_search_config={},
        logger_config={},
    )
    wait(client, job.job_uuid)
    print(f"{job.job_uuid} answers: {ask(client, job.job_uuid, QUESTIONS[0], metric)}")


def ask(client: LlamaStackClient, model: str, question: str, metric: str) -> str:
    """The answer, whose length becomes feedback: the shorter the better."""
    asked = client.inference.with_raw_response.chat_completion(
        model_id=model,
        messages=[{"role": "user", "content": question}],
        sampling_params={"strategy": {"type": "top_p", "temperature": 1.0, "top_p": 0.95}, "max_tokens": 48},
    )
    answer = str(asked.parse().completion_message.content)
    _, trace_id, span_id, _ = asked.headers["traceresponse"].split("-")
    feedback = {
        "type": "metric",
        "trace_id": trace_id,
        "span_id": span_id,
        "timestamp": datetime.now(UTC).isoformat(),
        "metric": metric,
        "value": -len(answer),
        "unit": "characters",
    }
    client.telemetry.log_event(event=feedback, ttl_seconds=86400)
    return answer


def traces(*arguments: str) -> str:
    command = [sys.executable, "-m", "stack.cli", "traces", *arguments, "--url", URL]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def training(dataset_id: str) -> dict[str, Any]:
    return {
        "n_epochs": 1,
        "max_steps_per_epoch": 0,
        "gradient_accumulation_steps": 1,
        "max_validation_steps": 0,
        "data_config": {
            "dataset_id": dataset_id,
            "batch_size": 2,
            "shuffle": True,
            "data_format": "instruct",
        },
        "optimizer_config": {
            "optimizer_type": "adamw",
            "lr": 5e-5,
            "weight_decay": 0.0,
            "num_warmup_steps": 0,
        },
    }


def wait(client: LlamaStackClient, job_uuid: str) -> None:
    """`stack jobs show --follow` shows more while it works."""
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


if __name__ == "__main__":
    main()
