"""Regular expressions of callers, in a child process: RE2 never backtracks, but large ones may take long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PATTERN_BYTES = 2 << 20  # of memory, each


def find(texts: Sequence[str], patterns: Sequence[str], ignore_case: bool) -> list[int]:
    """The numbers of the patterns that match in some text. Raises ValueError for one that is no pattern."""
    compiled = [_compile(number, pattern, ignore_case) for number, pattern in enumerate(patterns)]
    encoded = [text.encode() for text in texts]
    return [number for number, each in enumerate(compiled) if any(map(each.search, encoded))]


def _compile(number: int, pattern: str, ignore_case: bool) -> Any:
    import re2  # type: ignore[import-untyped]

    options = re2.Options()
    options.max_mem, options.log_errors, options.case_sensitive = PATTERN_BYTES, False, not ignore_case
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode("utf-8", "replace") if error.args else "unknown"
        raise ValueError(
            f"params.patterns.{number}.pattern: {pattern[:80]!r} is not a pattern of RE2 ({reason}); see "
            "https://github.com/google/re2/wiki/Syntax (there is no look-around and no backreference)"
        ) from None
