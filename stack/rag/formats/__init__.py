"""Files of one kind -> text with markdown's headings. Runs in a bounded child: what comes here is hostile."""

from __future__ import annotations

import base64
import importlib
from typing import TypedDict


class Text(TypedDict):
    text: str
    title: str | None


def read(kind: str, content: str, charset: str | None, max_chars: int) -> Text:
    """The text of a file, `content` in base64. Raises ValueError with what is wrong with it."""
    read_kind = importlib.import_module(f"stack.rag.formats.{kind}").read
    found: Text = read_kind(base64.b64decode(content), charset)
    if len(found["text"]) > max_chars:
        raise ValueError(f"it has more than {max_chars} characters of text: split it")
    return found
