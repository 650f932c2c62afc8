"""Tavily: https://docs.tavily.com/documentation/api-reference/endpoint/search."""

from __future__ import annotations

from stack.schemas.common import JsonObject
from stack.tools.search.base import objects, result
from stack.tools.web import Web


class Tavily:
    provider_id = "tavily-search"
    name = "Tavily"
    key_name = "tavily_search_api_key"

    def __init__(self, base_url: str = "https://api.tavily.com") -> None:
        self._url = f"{base_url}/search"

    async def search(self, web: Web, key: str, query: str, max_results: int) -> list[JsonObject]:
        answer = await web.ask(
            self.name,
            self._url,
            headers={"Authorization": f"Bearer {key}"},
            json={"query": query, "max_results": max_results},
        )
        return [
            result(item, "title", "url", "content", score=_score(item.get("score")))
            for item in objects(answer, "results")
        ]


def _score(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
