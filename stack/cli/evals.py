"""`stack eval`: benchmarks of a running server, runs of them, and two runs side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from stack.cli.client import DEFAULT_URL, Client, Url
from stack.cli.job_progress import ENDED, follow_or_leave, job_path
from stack.cli.problems import CliError

app = typer.Typer(help="Run the benchmarks of a running server, and compare runs.", no_args_is_help=True)

Benchmark = Annotated[str, typer.Argument(metavar="BENCHMARK", help="As `stack eval list` shows it.")]


@app.command("list")
def list_benchmarks(url: Url = DEFAULT_URL) -> None:
    """List benchmarks: the dataset of each, and the functions that score answers to it.

    \b
    Examples:
      stack eval list
    """
    with Client(url, timeout_s=10.0) as client:
        found = client.get("/v1/eval/benchmarks")["data"]
    if not found:
        typer.echo("no benchmarks; docs/evaluation.md shows how to register one")
        return
    for each in found:
        functions = ", ".join(each["scoring_functions"])
        typer.echo(f"{each['identifier']}: {each['dataset_id']}, scored by {functions or 'nothing'}")


@app.command("register")
def register(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="gsm8k, ifeval, bfcl or mmlu.", show_default=False)
    ],
    file: Annotated[
        Path | None, typer.Option(help="Its rows, JSON lines. Default: the Hugging Face hub.")
    ] = None,
    shots: Annotated[int, typer.Option(min=0, max=32, help="Examples before each question.")] = 0,
    shots_file: Annotated[
        Path | None, typer.Option(help="Where the examples are from, JSON lines: its first rows.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
    benchmark_id: Annotated[str | None, typer.Option("--id", help="Default: the name.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Register a ready benchmark: its rows as a dataset, with prompts, scoring and sampling as published.

    \b
    Examples:
      stack eval register gsm8k --file gsm8k_test.jsonl --shots 5 --shots-file gsm8k_train.jsonl
      stack eval register ifeval
      stack eval register mmlu --file mmlu.jsonl --limit 500 --id mmlu-500
    """
    from stack.evaluation.ready import READY, put

    if name not in READY:
        raise CliError(f"there is no ready benchmark {name!r}; there are {', '.join(READY)}")
    if shots and shots_file is None:
        raise CliError("--shots takes its examples from --shots-file")
    ready = READY[name]
    source = _lines(file, limit) if file is not None else _from_hub(ready.hub, limit)
    rows = put(name, source, _lines(shots_file, shots) if shots_file is not None and shots else [])
    identifier = benchmark_id or name
    dataset = {
        "dataset_id": identifier,
        "purpose": "eval/messages-answer" if rows and "messages" in rows[0] else "eval/question-answer",
        "source": {"type": "rows", "rows": rows},
        "metadata": {"benchmark": name, "shots": shots},
    }
    benchmark = {
        "benchmark_id": identifier,
        "dataset_id": identifier,
        "scoring_functions": list(ready.scoring_functions),
        "metadata": {
            "description": ready.description,
            "shots": shots,
            "scoring_params": ready.scoring_params,
            "sampling": ready.sampling,
        },
    }
    with Client(url) as client:
        client.post("/v1/datasets", dataset)
        client.post("/v1/eval/benchmarks", benchmark)
    typer.echo(
        f"benchmark {identifier} is registered, {len(rows)} rows: stack eval run {identifier} --model …"
    )


def _lines(file: Path, limit: int | None) -> list[dict[str, Any]]:
    try:
        with file.open() as lines:
            return [json.loads(line) for line in islice(lines, limit) if line.strip()]
    except OSError as error:
        raise CliError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CliError(f"{file} is not JSON lines: {error}") from None


def _from_hub(source: str, limit: int | None) -> list[dict[str, Any]]:
    import datasets

    path, configuration, split = source.split()
    try:
        rows = datasets.load_dataset(path, configuration, split=split, streaming=limit is not None)
    except Exception as error:  # of many libraries
        raise CliError(
            f"{path} cannot be fetched from the Hugging Face hub ({type(error).__name__}): download its rows "
            "as JSON lines and give them with --file"
        ) from None
    return list(islice(rows, limit))


@app.command("run")
def run(
    benchmark_id: Benchmark,
    model: Annotated[str, typer.Option("--model", help="The model that answers.", show_default=False)],
    examples: Annotated[
        int | None, typer.Option("--examples", min=1, help="Only the first so many rows. Default: all.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=0, help="Limit of an answer; 0: the model's context. Default: the benchmark's, or 512."
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="A text that ends an answer; up to four.", show_default=False)
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="A system message before each question.", show_default=False)
    ] = None,
    stay: Annotated[bool, typer.Option("--follow/--no-follow", "-f", help="Stay until the run ends.")] = True,
    url: Url = DEFAULT_URL,
) -> None:
    """Run a benchmark on a model: a job answers all rows and scores them. Ctrl-C leaves it running.

    \b
    Examples:
      stack eval run gsm8k --model smollm2-135m
      stack eval run gsm8k --model my-sft --examples 50 --max-tokens 256 --no-follow
    """
    strategy = (
        {"type": "top_p", "temperature": temperature, "top_p": 1.0} if temperature else {"type": "greedy"}
    )
    candidate: dict[str, Any] = {"type": "model", "model": model}
    if system is not None:
        candidate["system_message"] = {"role": "system", "content": system}
    with Client(url, timeout_s=60.0) as client:
        path = f"/v1/eval/benchmarks/{quote(benchmark_id, safe='/')}"
        wanted = client.get(path)["metadata"]
        sampling = {"max_tokens": 512} | (wanted.get("sampling") or {})
        given = {"max_tokens": max_tokens, "stop": stop or None}
        sampling |= {name: value for name, value in given.items() if value is not None}
        candidate["sampling_params"] = {"strategy": strategy, **sampling}
        config = {
            "eval_candidate": candidate,
            "scoring_params": wanted.get("scoring_params") or {},
            "num_examples": examples,
        }
        job_id = client.post(f"{path}/jobs", {"benchmark_config": config})["job_id"]
        typer.echo(f"job {job_id} is submitted")
        if not stay:
            typer.echo(f"follow it: stack jobs show {job_id} --follow")
            return
        job = follow_or_leave(client, job_id)
    _print(job)


@app.command("show")
def show(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="A run's id, as `run` printed it.")],
    url: Url = DEFAULT_URL,
) -> None:
    """Show what came of a run: each scoring function's aggregates, with the mean's 95 % interval.

    \b
    Examples:
      stack eval show evaluate-0123456789ab
    """
    with Client(url, timeout_s=30.0) as client:
        _print(client.get(job_path(job_id)))


@app.command("compare")
def compare(
    baseline: Annotated[str, typer.Argument(metavar="BASELINE", help="A run's job id.")],
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help="Another one's, on the same rows.")],
    url: Url = DEFAULT_URL,
) -> None:
    """Compare two runs row by row: the difference, its 95 % interval, and how likely chance alone is.

    \b
    Examples:
      stack eval compare evaluate-0123456789ab evaluate-ba9876543210
    """
    query = urlencode({"baseline": baseline, "candidate": candidate})
    with Client(url, timeout_s=60.0) as client:
        found = client.get(f"/v1/eval/compare?{query}")
    for name, scores in found["scores"].items():
        typer.echo(f"{name}: {_difference(scores)}")
    if not found["scores"]:
        typer.echo("the two runs have no scoring function in common")


def _difference(scores: Mapping[str, Any]) -> str:
    if not scores["rows"]:
        return "no row was scored in both runs"
    return (
        f"{scores['baseline']:.4g} -> {scores['candidate']:.4g}, difference {scores['difference']:+.4g} "
        f"[{scores['low']:+.4g}, {scores['high']:+.4g}], p = {scores['p_value']:.3g}; "
        f"of {scores['rows']} rows {scores['better']} better, {scores['worse']} worse"
    )


def _print(job: Mapping[str, Any]) -> None:
    if job["kind"] != "evaluate":
        raise CliError(f"job {job['job_id']} is no run of a benchmark: stack jobs show {job['job_id']}")
    if job["status"] not in ENDED:
        typer.echo(f"the run is {job['status'].replace('_', ' ')}: stack jobs show {job['job_id']} --follow")
        return
    if job["status"] != "completed":
        typer.echo(f"the run is {job['status']}: {job['detail'] or 'as was asked'}")
        raise typer.Exit(1)
    result = job["result"]
    failed = f", {result['failed']} got no answer" if result["failed"] else ""
    typer.echo(f"{job['job_id']}: {result['rows']} rows{failed}")
    for name, aggregates in result["scores"].items():
        for text in _aggregates(aggregates):
            typer.echo(f"  {name}: {text}")


def _aggregates(aggregates: Mapping[str, Any]) -> list[str]:
    """Each on a line, the interval beside the first."""
    bootstrap = aggregates.get("bootstrap")
    lines = []
    for name, found in aggregates.items():
        if name == "bootstrap":
            continue
        values = {key: value for key, value in found.items() if key != name}
        facts = ", ".join(f"{key} {_short(value)}" for key, value in values.items())
        lines.append(f"{name} {_short(found.get(name))}" + (f" ({facts})" if facts else ""))
    if bootstrap:
        mean = f"mean {bootstrap['mean']:.4g}, 95 % [{bootstrap['low']:.4g}, {bootstrap['high']:.4g}]"
        lines.append(mean)
    return lines


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_short(part)}" for key, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
