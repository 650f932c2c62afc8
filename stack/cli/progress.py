"""A progress line while weights are fetched."""

from __future__ import annotations

import sys
from pathlib import Path


def fetch_with_progress(source: str, cache_dir: Path, storage: str) -> Path:
    """Fetch `source` into the cache, and show how far it is: one line a step where stderr is no terminal.

    Shows nothing when there is nothing to do.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from stack.models.sources import fetch

    console = Console(stderr=True)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TimeRemainingColumn(),
    ]
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(source, total=None)
    steps: list[str] = []

    def progress(done: int, total: int | None, step: str) -> None:
        if console.is_terminal:
            bar.start()
            bar.update(task, completed=done, total=total, description=step)
        elif step not in steps:
            steps.append(step)
            sys.stderr.write(f"{step} …\n")

    try:
        return fetch(source, cache_dir, progress, storage)
    finally:
        if console.is_terminal:
            bar.stop()
