"""Where in the storage a job keeps what it makes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from stack.errors import BadRequest

FOLDER = "training"
_RESERVED = frozenset({FOLDER, "files", "jobs", "lancedb", "tmp"})
"""What the storage's other users have: their sweeps would free it, or it would get in their way."""

_PARTS = 8
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


def folder_of(job_uuid: str, checkpoint_dir: str | None) -> str:
    """A path in the storage. Raises BadRequest for a `checkpoint_dir` that is not one, or is another's."""
    own = f"{FOLDER}/{job_uuid}"
    if checkpoint_dir is None:
        return own
    path = checkpoint_dir.removeprefix("storage://").removesuffix("/")
    parts = path.split("/")
    if len(parts) > _PARTS or not all(_PART.match(part) for part in parts):
        raise BadRequest(
            f"checkpoint_dir: {checkpoint_dir[:80]!r} is no folder in the server's storage; write a relative "
            "path such as experiments/first, of letters, digits, '.', '_' and '-', or leave it out"
        )
    if parts[0].lower() in _RESERVED and path != own:
        raise BadRequest(
            f"checkpoint_dir: {parts[0]}/ belongs to the server itself; take another folder, or leave it "
            f"out for {own}"
        )
    return path


def check_apart(folder: str, others: Iterable[tuple[str, str]]) -> None:
    """Raises BadRequest when one of other jobs' (id, folder) is the same, contains it or lies in it."""
    for job_id, other in others:
        if f"{folder}/".startswith(f"{other}/") or f"{other}/".startswith(f"{folder}/"):
            raise BadRequest(
                f"checkpoint_dir: {folder} is where job {job_id!r} keeps its files: take another"
            )
