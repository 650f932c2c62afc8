"""`stack eval`: benchmarks of a running server, runs of them, and two runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from stack.cli.client import DEFAULT_URL, Client, Url
from stack.cli.job_progress import ENDED, follow, job_path
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


@app.command("run")
def run(
    benchmark_id: Benchmark,
    model: Annotated[str, typer.Option("--model", help="The model that answers.", show_default=False)],
    examples: Annotated[
        int | None, typer.Option("--examples", min=1, help="Only the first so many rows. Default: all.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=0, help="Limit of an answer; 0: the model's context.")] = 512,
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
    candidate: dict[str, Any] = {
        "type": "model",
        "model": model,
        "sampling_params": {"strategy": strategy, "max_tokens": max_tokens, "stop": stop or None},
    }
    if system is not None:
        candidate["system_message"] = {"role": "system", "content": system}
    config = {"eval_candidate": candidate, "scoring_params": {}, "num_examples": examples}
    with Client(url, timeout_s=60.0) as client:
        path = f"/v1/eval/benchmarks/{quote(benchmark_id, safe='/')}/jobs"
        job_id = client.post(path, {"benchmark_config": config})["job_id"]
        typer.echo(f"job {job_id} is submitted")
        if not stay:
            typer.echo(f"follow it: stack jobs show {job_id} --follow")
            return
        try:
            job = follow(client, job_id)
        except KeyboardInterrupt:
            typer.echo(f"the job goes on; stop it: stack jobs cancel {job_id}")
            raise typer.Exit(130) from None
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
