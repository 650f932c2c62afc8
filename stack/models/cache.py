"""Folders that are filled once, by one process, however many want them and however often one is killed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

Progress = Callable[[int, int | None, str], None]
"""Called with (bytes done, bytes in all if known, what is being done), from any thread."""

RECORD = "stack-source.json"  # written last: where a folder's files came from


def folder_for(cache_dir: Path, source: str, version: str = "") -> Path:
    """The folder of `cache_dir` that belongs to `source`; `version` tells changing contents apart."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", source.rstrip("/").rsplit("/", 1)[-1]).strip("-.")[:60]
    return cache_dir / f"{slug}-{_digest(source)}{'-' + _digest(version) if version else ''}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_filled(folder: Path) -> bool:
    return (folder / RECORD).is_file()


def fill_once(folder: Path, fill: Callable[[Path], dict[str, Any]]) -> Path:
    """Return `folder`, filled by `fill(empty folder)` unless it was before; `fill` returns what to record.

    The work is done in a sibling folder under a lock and renamed at the end, so a reader sees all or nothing.
    The system drops a killed holder's lock; what it left is removed by the next.
    """
    if is_filled(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if is_filled(folder):
            return folder
        for leftover in folder.parent.glob(f"{folder.name}.part-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
        try:
            record = fill(part) | {"fetched_at": datetime.now(UTC).isoformat()}
            (part / RECORD).write_text(json.dumps(record, indent=2) + "\n")
            _make_readable(part)
            part.rename(folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return folder


def _make_readable(folder: Path) -> None:
    """Undo the private modes of temporary files: replicas may run as other users."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
