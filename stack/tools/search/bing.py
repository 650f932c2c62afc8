"""Bing: https://learn.microsoft.com/bing/search-apis/bing-web-search/reference/endpoints."""

from __future__ import annotations

from stack.schemas.common import JsonObject
from stack.tools.search.base import objects, result
from stack.tools.web import Web

MAX_COUNT = 50


class Bing:
    provider_id = "bing-search"
    name = "Bing"
    key_name = "bing_search_api_key"

    def __init__(self, base_url: str = "https://api.bing.microsoft.com") -> None:
        self._url = f"{base_url}/v7.0/search"

    async def search(self, web: Web, key: str, query: str, max_results: int) -> list[JsonObject]:
        answer = await web.ask(
            self.name,
            self._url,
            params={"q": query, "count": min(max_results, MAX_COUNT), "responseFilter": "Webpages"},
            headers={"Ocp-Apim-Subscription-Key": key},
        )
        return [result(item, "name", "url", "snippet") for item in objects(answer, "webPages", "value")]
