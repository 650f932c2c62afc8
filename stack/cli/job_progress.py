"""A job's progress, as a bar that follows it and as lines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from stack.cli.client import Client
from stack.cli.problems import CliError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

POLL_S = 1.0
PATIENCE = 30  # polls that may fail in a row: a restarting server is waited for
ENDED = ("completed", "failed", "cancelled")


def job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def follow(client: Client, job_id: str) -> dict[str, Any]:
    """Poll until the job ends."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
    ]
    job: dict[str, Any] = client.get(job_path(job_id))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = _Bar(bar, bar.add_task(job_id, total=None, facts=""))
        failures = 0
        while job["status"] not in ENDED:
            shown.update(job)
            time.sleep(POLL_S)
            try:
                job, failures = client.get(job_path(job_id)), 0
            except CliError:
                failures += 1
                if failures > PATIENCE:
                    raise
    return job


def follow_or_leave(client: Client, job_id: str) -> dict[str, Any]:
    """As `follow`. Ctrl-C ends the command and leaves the job."""
    import typer

    try:
        return follow(client, job_id)
    except KeyboardInterrupt:
        typer.echo(f"the job goes on; stop it: stack jobs cancel {job_id}", err=True)
        raise typer.Exit(130) from None


class _Bar:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task = bar, task
        self._counts: Any = None  # what is counted, of what: another count begins anew

    def update(self, job: Mapping[str, Any]) -> None:
        progress = job["progress"]
        counts = [progress.get(name) for name in ("phase", "trial", "unit", "total")]
        if counts != self._counts:
            self._counts = counts
            self._bar.reset(self._task)
        self._bar.update(
            self._task,
            description=f"{job['job_id']}: {state(job)}",
            completed=progress.get("done", 0),
            total=progress.get("total"),
            facts=facts(progress, self._bar.tasks[0].speed),
        )


def state(job: Mapping[str, Any]) -> str:
    """What the job is doing: `in progress`, or of a training job its phase, of a search with the trial."""
    if job["cancel_requested"] and job["status"] not in ENDED:
        return "stopping"
    progress = job["progress"]
    if job["status"] != "in_progress" or "phase" not in progress:
        return str(job["status"]).replace("_", " ")
    trial = f", {progress['trial']}" if progress.get("trial") else ""
    return f"{progress['phase']}{trial}"


def facts(progress: Mapping[str, Any], speed: float | None) -> str:
    """How well and how fast it goes."""
    if "tokens_per_s" in progress or "loss" in progress:
        shown = {"epoch": "epoch {:.2f}", "loss": "loss {:.4g}", "tokens_per_s": "{:.0f} tokens/s"}
        return "  ".join(text.format(progress[name]) for name, text in shown.items() if name in progress)
    return f"{speed:.1f} {progress.get('unit', 'items')}/s" if speed else ""


def amount(progress: Mapping[str, Any]) -> str:
    """`3/9 documents`."""
    if "done" not in progress:
        return ""
    total = f"/{progress['total']}" if progress.get("total") is not None else ""
    return f"{progress['done']}{total} {progress.get('unit', '')}".strip()
