"""A progress line while weights are fetched."""

from __future__ import annotations

import sys
from pathlib import Path


def fetch_with_progress(source: str, cache_dir: Path) -> Path:
    """Fetch `source` into the cache, and show how far it is; one line a stage where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from stack.models.sources import fetch

    console = Console(stderr=True)
    stages: set[str] = set()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(source, total=None)

        def progress(done: int, total: int | None, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)
            if what not in stages and not console.is_terminal:
                stages.add(what)
                sys.stderr.write(f"{what} …\n")

        return fetch(source, cache_dir, progress)
