"""GSM8K by `stack eval` and by lm-evaluation-harness with transformers: equal to the row, and rows/s of each.

The harness runs in this process; `pip install lm-eval` puts it beside the project's packages, of which it is
none. On an otherwise idle machine, with a server by `stack up`:

    python benchmarks/harness.py --rows gsm8k_train.jsonl --folder SmolLM2-135M-Instruct --limit 100
    python benchmarks/harness.py --rows gsm8k_train.jsonl --folder SmolLM2-135M-Instruct --shots 2

Both have the same weights, prompts, examples, stop texts, limit of tokens, and read the answer after `####`.
The first rows of the file are the examples, those after them are asked.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import httpx

TASK = """
task: gsm8k_rows
dataset_path: json
dataset_kwargs: {{data_files: {{train: {examples}, test: {rows}}}}}
output_type: generate_until
training_split: train
fewshot_split: train
test_split: test
fewshot_config: {{sampler: first_n}}
num_fewshot: {shots}
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["Question:", "</s>", "<|im_end|>"], do_sample: false, max_gen_toks: {tokens}}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    regexes_to_ignore: [",", "\\\\$", "(?s).*#### ", "\\\\.$"]
filter_list:
  - name: strict-match
    filter: [{{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}}, {{function: take_first}}]
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, required=True, help="jsonl with `question` and `answer`")
    parser.add_argument("--folder", type=Path, required=True, help="the model's weights, for transformers")
    parser.add_argument("--model", default="smollm2-135m", help="the same model's id on the server")
    parser.add_argument("--url", default="http://127.0.0.1:8321")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32, help="of the harness")
    args = parser.parse_args()
    lines = args.rows.read_text().splitlines()
    examples = [json.loads(line) for line in lines[: args.shots]]
    rows = [json.loads(line) for line in lines[args.shots :][: args.limit]]
    print(f"load {os.getloadavg()[0]:.1f}; {len(rows)} rows, {args.shots} examples", flush=True)
    ours, our_s = by_stack(args, rows, examples)
    print(f"stack eval: {sum(right for right, _ in ours)} right, {len(rows) / our_s:.2f} rows/s", flush=True)
    theirs, their_s = by_harness(args, rows, examples)
    print(f"harness:    {sum(right for right, _ in theirs)} right, {len(rows) / their_s:.2f} rows/s")
    scored = sum(a[0] == b[0] for a, b in zip(ours, theirs, strict=True))
    said = sum(a[1].strip() == b[1].strip() for a, b in zip(ours, theirs, strict=True))
    print(f"{scored} of {len(rows)} rows are scored alike, {said} answers are the same text")
    print(f"stack eval has {their_s / our_s:.2f} times the harness's rows/s")


Found = tuple[list[tuple[bool, str]], float]
"""For each row whether it is right and what was said; and seconds without the start."""


def by_stack(args: argparse.Namespace, rows: list[Any], examples: list[Any]) -> Found:
    from stack.evaluation.ready import READY, put

    ready, name = READY["gsm8k"], f"gsm8k-{uuid.uuid4().hex[:6]}"
    client = httpx.Client(base_url=args.url, timeout=300)
    source = {"type": "rows", "rows": put("gsm8k", rows, examples)}
    dataset = {"dataset_id": name, "purpose": "eval/question-answer", "source": source}
    benchmark = {
        "benchmark_id": name,
        "dataset_id": name,
        "scoring_functions": list(ready.scoring_functions),
    }
    for path, body in (("datasets", dataset), ("eval/benchmarks", benchmark)):
        client.post(f"/v1/{path}", json=body).raise_for_status()
    sampling = {
        "strategy": {"type": "greedy"},
        "max_tokens": args.max_tokens,
        "stop": ready.sampling["stop"],
    }
    candidate = {"type": "model", "model": args.model, "sampling_params": sampling}
    config = {"benchmark_config": {"eval_candidate": candidate, "scoring_params": ready.scoring_params}}
    path = f"/v1/eval/benchmarks/{name}/jobs"
    job_id = client.post(path, json=config).raise_for_status().json()["job_id"]
    began = None
    while (job := client.get(f"/v1/jobs/{job_id}").json())["status"] in ("scheduled", "in_progress"):
        if began is None and "total" in job["progress"]:
            began = time.time()
        time.sleep(0.05)
    assert job["status"] == "completed", job["detail"]
    assert began is not None
    seconds = time.time() - began
    result = client.get(f"{path}/{job_id}/result").raise_for_status().json()
    scores = result["scores"][ready.scoring_functions[0]]["score_rows"]
    answers = [each["generated_answer"] for each in result["generations"]]
    return [(row["score"] == 1, said) for row, said in zip(scores, answers, strict=True)], seconds


def by_harness(args: argparse.Namespace, rows: list[Any], examples: list[Any]) -> Found:
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        files = {"rows": rows, "examples": examples or rows[:1]}
        for name, each in files.items():
            (Path(folder) / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
        task = TASK.format(
            rows=f"{folder}/rows.jsonl",
            examples=f"{folder}/examples.jsonl",
            shots=args.shots,
            tokens=args.max_tokens,
        )
        (Path(folder) / "gsm8k_rows.yaml").write_text(task)
        model = HFLM(pretrained=str(args.folder), dtype="float32", device="cpu", batch_size=args.batch_size)
        began = time.time()
        found = simple_evaluate(
            model=model,
            tasks=["gsm8k_rows"],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            log_samples=True,
        )
        seconds = time.time() - began
    samples = sorted(found["samples"]["gsm8k_rows"], key=lambda sample: sample["doc_id"])
    return [(sample["exact_match"] == 1, sample["resps"][0][0]) for sample in samples], seconds


if __name__ == "__main__":
    main()
