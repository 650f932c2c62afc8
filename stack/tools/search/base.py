"""What a search vendor is, and reading what vendors answer."""

from __future__ import annotations

from typing import Any, Protocol

from stack.schemas.common import JsonObject
from stack.tools.web import Web

MAX_CONTENT_CHARS = 4_000  # of one result


class Vendor(Protocol):
    provider_id: str
    name: str
    key_name: str  # in provider data; with STACK_ and without the vendor's "_search" in the environment

    async def search(self, web: Web, key: str, query: str, max_results: int) -> list[JsonObject]:
        """Results, the best first: `title`, `url`, `content` (text) and what else the vendor tells."""
        ...


def objects(answer: Any, *path: str) -> list[dict[str, Any]]:
    """The list of objects at a path in an answer; empty where it is missing or of another form."""
    for name in path:
        answer = answer.get(name) if isinstance(answer, dict) else None
    return [item for item in answer if isinstance(item, dict)] if isinstance(answer, list) else []


def result(item: dict[str, Any], title: str, url: str, content: str, **more: Any) -> JsonObject:
    """A result from the vendor's fields of these names; `more` may have lists, empty ones are left out."""
    texts = {"title": item.get(title), "url": item.get(url), "content": item.get(content)}
    found: JsonObject = {key: _text(value) for key, value in texts.items()}
    return found | {key: value for key, value in more.items() if value not in (None, [], "")}


def _text(value: Any) -> str:
    return value[:MAX_CONTENT_CHARS] if isinstance(value, str) else ""
