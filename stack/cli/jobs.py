"""`stack jobs`: what a server works on beside its requests."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

import typer

from stack.cli.client import DEFAULT_URL, Client, Url
from stack.cli.problems import CliError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

app = typer.Typer(help="See, follow and cancel the jobs of a running server.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id, as `stack jobs list` shows it.")]

POLL_S = 1.0
_ENDED = ("completed", "failed", "cancelled")
_STYLES = {"completed": "green", "failed": "red", "cancelled": "yellow", "in_progress": "cyan"}


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
        shown = f"[{style}]{job['status']}[/]", _amount(job["progress"]), str(job["attempt"]), created
        table.add_row(escape(job["job_id"]), escape(job["kind"]), *shown)
    console = Console()
    if not console.is_terminal:
        console.width = 1000  # no folding in a pipe
    console.print(table)


@app.command("show")
def show(
    job_id: JobId,
    follow: Annotated[
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
        job = _follow(client, job_id) if follow else client.get(_path(job_id))
    typer.echo("\n".join(_lines(job)))
    if job["status"] == "failed":
        raise typer.Exit(1)


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
        typer.echo(client.text(f"{_path(job_id)}/logs?max_bytes={max_bytes}"), nl=False)


@app.command("cancel")
def cancel(job_id: JobId, url: Url = DEFAULT_URL) -> None:
    """Cancel a job. What it has finished stays.

    \b
    Examples:
      stack jobs cancel ingest-0123456789ab
    """
    with Client(url, timeout_s=30.0) as client:
        job = client.post(f"{_path(job_id)}/cancel", {})
    typer.echo("cancelled" if job["status"] == "cancelled" else "cancellation is asked; the job is stopping")


def _path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def _follow(client: Client, job_id: str) -> dict[str, Any]:
    """Poll until the job ends; a restarting server is waited for."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    ]
    job: dict[str, Any] = client.get(_path(job_id))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(job_id, total=None, rate="")
        failures = 0
        while job["status"] not in _ENDED:
            _update(bar, task, job)
            time.sleep(POLL_S)
            try:
                job, failures = client.get(_path(job_id)), 0
            except CliError:
                failures += 1
                if failures > 30:
                    raise
    return job


def _update(bar: Progress, task: TaskID, job: dict[str, Any]) -> None:
    progress = job["progress"]
    state = "stopping" if job["cancel_requested"] else job["status"].replace("_", " ")
    speed = bar.tasks[0].speed
    unit = progress.get("unit", "items")
    bar.update(
        task,
        description=f"{job['job_id']}: {state}",
        completed=progress.get("done", 0),
        total=progress.get("total"),
        rate=f"{speed:.1f} {unit}/s" if speed else "",
    )


def _lines(job: dict[str, Any]) -> list[str]:
    """`name: value` for what is known."""
    values = {
        "job": job["job_id"],
        "kind": job["kind"],
        "status": job["status"] + (" (cancellation is asked)" if _stopping(job) else ""),
        "progress": _amount(job["progress"]),
        "attempt": job["attempt"],
        "created": job["created_at"],
        "took": _duration(job),
        "detail": job["detail"],
    }
    lines = [f"{name + ':':10}{value}" for name, value in values.items() if value not in (None, "")]
    lines += [f"{name + ':':10}{value}" for name, value in (job["result"] or {}).items()]
    lines += [f"item {item['item']} failed: {item['error']}" for item in job["failed_items"]]
    return lines


def _stopping(job: dict[str, Any]) -> bool:
    return bool(job["cancel_requested"]) and job["status"] not in _ENDED


def _amount(progress: dict[str, Any]) -> str:
    if "done" not in progress:
        return ""
    total = f"/{progress['total']}" if progress.get("total") is not None else ""
    return f"{progress['done']}{total} {progress.get('unit', '')}".strip()


def _duration(job: dict[str, Any]) -> str | None:
    if not (job["started_at"] and job["ended_at"]):
        return None
    started, ended = (datetime.fromisoformat(job[name]) for name in ("started_at", "ended_at"))
    return f"{(ended - started).total_seconds():.1f} s"
