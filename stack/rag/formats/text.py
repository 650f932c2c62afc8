"""Plain text that is no UTF-8, which needs detection."""

from __future__ import annotations

from stack.rag.formats import Text
from stack.rag.formats.charset import decode


def read(content: bytes, charset: str | None) -> Text:
    return {"text": decode(content, charset), "title": None}
