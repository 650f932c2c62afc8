"""What became of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ended = Literal["exited", "time", "memory", "processes", "disk", "output"]


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file that the code wrote."""

    name: str  # relative, in the working folder
    mime_type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Execution:
    """What became of the code. `ended`: how; all but "exited" were ended by the sandbox."""

    ended: Ended
    exit_code: int
    stdout: str
    stderr: str
    files: tuple[OutputFile, ...]
    notes: tuple[str, ...] = ()  # what was cut off or left out, in words
