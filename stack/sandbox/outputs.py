"""The files that a run left behind. Whoever wrote them may mean harm: nothing is followed, all is bounded."""

from __future__ import annotations

import mimetypes
import os
import stat
from collections.abc import Iterator, Mapping

from stack.sandbox.execution import OutputFile

MAX_FILES = 16
MAX_BYTES = 8 << 20
"""Of all files of a run together."""

_MAX_DEPTH = 8
_MAX_ENTRIES = 1000
_MAX_NAME = 200
_MAX_NOTES = 8
_BEGINNINGS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"%PDF-", "application/pdf"),
)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def collect(folder: int, given: Mapping[str, bytes]) -> tuple[list[OutputFile], list[str]]:
    """New and changed files below an open folder, and notes on what was left out."""
    found: list[OutputFile] = []
    notes: list[str] = []
    room, beyond = MAX_BYTES, 0
    for name, parent in _regular_files(folder, notes):
        try:
            content = _read(parent, os.path.basename(name), max(room, len(given.get(name, b""))))
        except OSError:
            notes.append(f"{name} is left out: it cannot be read")
            continue
        if content is None or (len(content) > room and content != given.get(name)):
            notes.append(f"{name} is left out: files of a run have up to {MAX_BYTES >> 20} MiB together")
        elif content == given.get(name):
            continue
        elif len(found) == MAX_FILES:
            beyond += 1
        else:
            room -= len(content)
            found.append(OutputFile(name, mime_type(name, content), content))
    if beyond:
        notes.append(f"{beyond} more files are left out: a run gives back up to {MAX_FILES}")
    if len(notes) > _MAX_NOTES:
        notes[_MAX_NOTES:] = [f"and {len(notes) - _MAX_NOTES} more are left out"]
    return found, notes


def mime_type(name: str, content: bytes) -> str:
    """By the first bytes, else by the name, else text if it is UTF-8."""
    for beginning, mime in _BEGINNINGS:
        if content.startswith(beginning):
            return mime
    named, encoding = mimetypes.guess_type(name)
    if named is not None and encoding is None:
        return named
    try:
        content.decode()
    except UnicodeDecodeError:
        return "application/octet-stream"
    return "text/plain"


def _regular_files(folder: int, notes: list[str]) -> Iterator[tuple[str, int]]:
    """(name, its open folder) of regular files, those of a folder sorted by name, before its subfolders."""
    seen = 0
    for prefix, parent in _folders(folder, notes):
        for name, mode in _entries(parent):
            seen += 1
            if seen > _MAX_ENTRIES:
                notes.append(f"only the first {_MAX_ENTRIES} files and folders were looked at")
                return
            if stat.S_ISREG(mode):
                if _is_sane(name):
                    yield prefix + name, parent
                else:
                    notes.append(f"{ascii(name)[:_MAX_NAME]} is left out: its name cannot be shown")
            elif not stat.S_ISDIR(mode):
                notes.append(f"{ascii(name)[:_MAX_NAME]} is left out: it is no regular file")


def _folders(folder: int, notes: list[str], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, int]]:
    """(prefix of names, open folder): the folder itself and those below, each open while it is looked at."""
    yield prefix, folder
    for name, mode in _entries(folder):
        if not stat.S_ISDIR(mode):
            continue
        if depth == _MAX_DEPTH or not _is_sane(name):
            notes.append(
                f"{ascii(prefix + name)[:_MAX_NAME]} is left out: too deep, or its name cannot be shown"
            )
            continue
        try:
            below = os.open(name, _FOLDER, dir_fd=folder)
        except OSError:
            notes.append(f"{prefix}{name} is left out: it cannot be read")
            continue
        try:
            yield from _folders(below, notes, f"{prefix}{name}/", depth + 1)
        finally:
            os.close(below)


def _entries(folder: int) -> list[tuple[str, int]]:
    """(name, mode) of what is in an open folder, sorted; nothing if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries)
    except OSError:
        return []


def _is_sane(name: str) -> bool:
    """Printable (so neither a line break nor bytes that are no UTF-8) and not too long."""
    return name.isprintable() and len(name) <= _MAX_NAME


def _read(parent: int, name: str, most: int) -> bytes | None:
    """A regular file's bytes; None if there are more than `most`. Raises OSError."""
    fd = os.open(name, _FILE, dir_fd=parent)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most:
            return None
        content = file.read(most + 1)
    return content if len(content) <= most else None
