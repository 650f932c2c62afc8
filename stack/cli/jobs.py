"""`stack jobs`: what a server works on beside its requests."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from stack.cli.client import DEFAULT_URL, Client, Url
from stack.cli.job_progress import ENDED, amount, facts, follow, follow_or_leave, job_path

app = typer.Typer(help="Submit, see, follow and cancel the jobs of a running server.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id, as `stack jobs list` shows it.")]

_STYLES = {"completed": "green", "failed": "red", "cancelled": "yellow", "in_progress": "cyan"}


@app.command("submit")
def submit(
    file: Annotated[Path, typer.Argument(help="The job's YAML file; - reads stdin.", show_default=False)],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Another value for a key of the file.", show_default=False
        ),
    ] = None,
    stay: Annotated[
        bool | None,
        typer.Option("--follow/--no-follow", "-f", help="Stay until the job ends. Default: on a terminal."),
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Submit a training job, and follow it. Ctrl-C leaves it running.

    \b
    A file (docs/post-training.md has every field):
      kind: supervised-fine-tune
      job_uuid: my-sft
      model: smollm2-135m
      training_config:
        data_config: {dataset_id: gsm8k, batch_size: 8}
        optimizer_config: {lr: 0.0002}
      algorithm_config:
        type: LoRA
        lora_attn_modules: [q_proj, v_proj]
        apply_lora_to_mlp: false
        apply_lora_to_output: false
        rank: 8
        alpha: 16

    \b
    Examples:
      stack jobs submit sft.yaml
      stack jobs submit sft.yaml --set job_uuid=second --set training_config.n_epochs=3
      stack jobs submit - --no-follow < sft.yaml
    """
    from stack.cli.job_file import read

    wanted = read(file, changes or [])
    with Client(url, timeout_s=60.0) as client:
        job_id = client.post(wanted.path, wanted.body)["job_uuid"]
        typer.echo(f"job {job_id} is submitted")
        if not (sys.stdout.isatty() if stay is None else stay):
            typer.echo(f"follow it: stack jobs show {job_id} --follow")
            return
        job = follow_or_leave(client, job_id)
    _print(job)


@app.command("list")
def list_jobs(
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind, e.g. ingest.")] = None,
    status: Annotated[
        str | None, typer.Option(help="Only scheduled, in_progress, completed, failed or cancelled ones.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 20,
    url: Url = DEFAULT_URL,
) -> None:
    """List jobs, the newest first.

    \b
    Examples:
      stack jobs list
      stack jobs list --kind ingest --status in_progress
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    wanted = {"kind": kind, "status": status, "limit": limit}
    query = urlencode({name: value for name, value in wanted.items() if value is not None})
    with Client(url, timeout_s=10.0) as client:
        found = client.get(f"/v1/jobs?{query}")["data"]
    if not found:
        typer.echo("no jobs")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("job", "kind", "status", "progress", "attempt", "created"):
        table.add_column(title, overflow="fold")
    for job in found:
        created = job["created_at"][:19].replace("T", " ")
        style = _STYLES.get(job["status"], "default")
        shown = f"[{style}]{job['status']}[/]", amount(job["progress"]), str(job["attempt"]), created
        table.add_row(escape(job["job_id"]), escape(job["kind"]), *shown)
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # no folding in a pipe
    console.print(table)


@app.command("show")
def show(
    job_id: JobId,
    stay: Annotated[
        bool, typer.Option("--follow", "-f", help="Stay with a progress bar until the job ends.")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show a job: how far it is, what came of it, what failed. The exit code is 1 if the job failed.

    \b
    Examples:
      stack jobs show ingest-0123456789ab
      stack jobs show ingest-0123456789ab --follow
    """
    with Client(url, timeout_s=30.0) as client:
        job = follow(client, job_id) if stay else client.get(job_path(job_id))
    _print(job)


@app.command("logs")
def logs(
    job_id: JobId,
    max_bytes: Annotated[int, typer.Option(min=1, max=1 << 20, help="How much of the end of the log.")] = 1
    << 16,
    url: Url = DEFAULT_URL,
) -> None:
    """Print the end of a job's log.

    \b
    Examples:
      stack jobs logs ingest-0123456789ab
      stack jobs logs ingest-0123456789ab --max-bytes 1000000 | less
    """
    with Client(url, timeout_s=30.0) as client:
        typer.echo(client.text(f"{job_path(job_id)}/logs?max_bytes={max_bytes}"), nl=False)


@app.command("cancel")
def cancel(job_id: JobId, url: Url = DEFAULT_URL) -> None:
    """Cancel a job. What it has finished stays.

    \b
    Examples:
      stack jobs cancel ingest-0123456789ab
    """
    with Client(url, timeout_s=30.0) as client:
        job = client.post(f"{job_path(job_id)}/cancel", {})
    typer.echo("cancelled" if job["status"] == "cancelled" else "cancellation is asked; the job is stopping")


def _print(job: Mapping[str, Any]) -> None:
    typer.echo("\n".join(_lines(job)))
    if job["status"] == "failed":
        raise typer.Exit(1)


def _lines(job: Mapping[str, Any]) -> list[str]:
    """`name: value` for what is known."""
    values = {
        "job": job["job_id"],
        "kind": job["kind"],
        "status": job["status"] + (" (cancellation is asked)" if _stopping(job) else ""),
        "progress": "  ".join(filter(None, (amount(job["progress"]), facts(job["progress"], None)))),
        "attempt": job["attempt"],
        "created": job["created_at"],
        "took": _duration(job),
        "detail": job["detail"],
    }
    lines = [f"{name + ': ':10}{value}" for name, value in values.items() if value not in (None, "")]
    lines += [f"{name + ': ':10}{value}" for name, value in _results(job["result"] or {})]
    lines += [f"item {item['item']} failed: {item['error']}" for item in job["failed_items"]]
    return lines


def _results(result: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is long is told by its names and numbers."""
    for name, value in result.items():
        if isinstance(value, list):
            for entry in value:
                yield name, entry.get("identifier", entry) if isinstance(entry, dict) else entry
        elif isinstance(value, dict):
            yield name, ", ".join(f"{key} {_short(part)}" for key, part in value.items())
        else:
            yield name, value


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"({', '.join(f'{key} {_short(part)}' for key, part in value.items())})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _stopping(job: Mapping[str, Any]) -> bool:
    return bool(job["cancel_requested"]) and job["status"] not in ENDED


def _duration(job: Mapping[str, Any]) -> str | None:
    if not (job["started_at"] and job["ended_at"]):
        return None
    started, ended = (datetime.fromisoformat(job[name]) for name in ("started_at", "ended_at"))
    return f"{(ended - started).total_seconds():.1f} s"
