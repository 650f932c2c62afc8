"""Conditional and range requests (RFC 9110, sections 13 and 14) for bytes that have a strong ETag."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.exceptions import HTTPException

_ETAG = re.compile(r'(?:W/)?("[^"]*")')


def is_unchanged(headers: Mapping[str, str], etag: str) -> bool:
    """Whether the client has these bytes already: the answer is then 304."""
    known = headers.get("if-none-match", "")
    return known.strip() == "*" or etag in _ETAG.findall(known)


def wanted(headers: Mapping[str, str], etag: str, size: int) -> tuple[int, range]:
    """The status and which bytes to answer: all of them (200), or the one range that is asked for (206).

    What is not understood, several ranges, and a range of another version are answered with everything, as
    the standard has it. Raises HTTPException 416 for a range that begins past the end.
    """
    everything = 200, range(size)
    if headers.get("if-range", etag) != etag:
        return everything
    found = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,18})-(\d{0,18})\s*", headers.get("range", ""), re.I | re.A)
    if found is None or found[1] == found[2] == "":
        return everything
    if not found[1]:
        start, stop = max(0, size - int(found[2])), size
    else:
        start, stop = int(found[1]), min(size, int(found[2] or size) + 1)
        if found[2] and int(found[2]) < start:
            return everything
    if start >= size:
        raise HTTPException(
            416,
            f"the file has {size} bytes, no range of them was asked for",
            {"content-range": f"bytes */{size}"},
        )
    return 206, range(start, stop)
