"""Sandbox: runs Python code that nobody vouches for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stack.settings import Settings


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file that the code wrote."""

    name: str  # relative, in the working folder
    mime_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Execution:
    """What became of the code. `ended`: how; all but "exited" were ended by the sandbox."""

    ended: Literal["exited", "time", "memory", "processes", "disk", "output"]
    exit_code: int
    stdout: str
    stderr: str
    files: tuple[OutputFile, ...]
    notes: tuple[str, ...] = ()  # what was cut off or left out, in words


class Sandbox:
    """One for each process. Every run begins with an empty folder and leaves nothing behind."""

    def __init__(self, settings: Settings) -> None: ...

    async def unavailable(self) -> str | None:
        """Why code cannot be run here and what to do about it; None when it can. Checked once."""
        raise NotImplementedError

    async def run(self, code: str, files: Mapping[str, bytes] | None = None) -> Execution:
        """Run `code` as a script in a folder that holds `files`. Raises NotReady when unavailable."""
        raise NotImplementedError
