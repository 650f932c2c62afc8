"""A judge's prompt: a caller's text in which placeholders are columns of a row, and nothing else is."""

from __future__ import annotations

import re
from string import Formatter

from pydantic_core import to_json

from stack.schemas.common import JsonObject
from stack.scoring.scorer import given

PLACEHOLDERS = ("input_query", "expected_answer", "generated_answer")
_PLACEHOLDER = re.compile(rf"\{{({'|'.join(PLACEHOLDERS)})\}}")


class Template:
    """`{input_query}`, `{expected_answer}` and `{generated_answer}` are replaced, once.

    Doubled braces stand for single ones if all braces are as `str.format` wants them, else for themselves.
    """

    def __init__(self, template: str) -> None:
        parts = _format_parts(template)
        self._parts = _PLACEHOLDER.split(template) if parts is None else parts
        """Texts at even places, placeholders at odd ones."""
        self.columns = tuple(name for name in PLACEHOLDERS if name in self._parts[1::2])

    def render(self, row: JsonObject) -> str:
        """Raises ValueError for a column that the row lacks."""
        return "".join(_shown(row, part) if number % 2 else part for number, part in enumerate(self._parts))


def _format_parts(template: str) -> list[str] | None:
    """None: the template is not one of `str.format`, such as one that shows JSON."""
    parts = [""]
    try:
        for text, name, spec, conversion in Formatter().parse(template):
            parts[-1] += text
            if name is not None:
                if name not in PLACEHOLDERS or spec or conversion:
                    return None
                parts += [name, ""]
    except ValueError:
        return None
    return parts


def _shown(row: JsonObject, column: str) -> str:
    value = given(row, column)
    return value if isinstance(value, str) else to_json(value).decode()
