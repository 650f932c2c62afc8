"""Brave: https://api-dashboard.search.brave.com/app/documentation/web-search."""

from __future__ import annotations

from stack.schemas.common import JsonObject
from stack.tools.search.base import objects, result
from stack.tools.web import Web

MAX_COUNT = 20


class Brave:
    provider_id = "brave-search"
    name = "Brave Search"
    key_name = "brave_search_api_key"

    def __init__(self, base_url: str = "https://api.search.brave.com") -> None:
        self._url = f"{base_url}/res/v1/web/search"

    async def search(self, web: Web, key: str, query: str, max_results: int) -> list[JsonObject]:
        answer = await web.ask(
            self.name,
            self._url,
            # Snippets come without the tags that mark words.
            params={"q": query, "count": min(max_results, MAX_COUNT), "text_decorations": "false"},
            headers={"X-Subscription-Token": key},
        )
        return [
            result(item, "title", "url", "description", extra_snippets=_snippets(item.get("extra_snippets")))
            for item in objects(answer, "web", "results")
        ]


def _snippets(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)][:5] if isinstance(value, list) else []
