"""What a caller may give to a run."""

from __future__ import annotations

from collections.abc import Mapping

from stack.errors import BadRequest, TooLarge

MAX_CODE_BYTES = 1 << 20
MAX_FILES = 32
MAX_BYTES = 32 << 20
"""Of all given files together."""

_MAX_DEPTH = 8
_MAX_NAME_BYTES = 200


def check_inputs(code: str, files: Mapping[str, bytes]) -> None:
    """Raises BadRequest or TooLarge."""
    if (size := len(code.encode("utf-8", "replace"))) > MAX_CODE_BYTES:
        raise TooLarge(f"the code has {size} bytes; up to {MAX_CODE_BYTES} are run")
    if len(files) > MAX_FILES:
        raise TooLarge(f"{len(files)} files are given; up to {MAX_FILES} are taken")
    if (size := sum(map(len, files.values()))) > MAX_BYTES:
        raise TooLarge(f"the given files have {size} bytes; up to {MAX_BYTES} are taken")
    folders = {
        "/".join(parts[:n]) for name in files if (parts := name.split("/")) for n in range(1, len(parts))
    }
    for name in files:
        parts = name.split("/")
        if len(parts) > _MAX_DEPTH or not all(map(_is_sane, parts)):
            raise BadRequest(f"{name[:_MAX_NAME_BYTES]!r} is no name for a file in the code's folder")
        if name in folders:
            raise BadRequest(f"{name!r} is given as a file and as a folder")


def _is_sane(part: str) -> bool:
    return part not in ("", ".", "..") and part.isprintable() and len(part.encode()) <= _MAX_NAME_BYTES
