"""The tool `web_search`, answered by one vendor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import SecretStr

from stack.errors import BadRequest
from stack.schemas.common import JsonObject
from stack.schemas.tools import ToolDef, ToolGroup, ToolInvocationResult
from stack.settings import Settings
from stack.tools.base import CallContext, key_of, text_parameter
from stack.tools.search.base import Vendor
from stack.tools.search.bing import Bing
from stack.tools.search.brave import Brave
from stack.tools.search.tavily import Tavily
from stack.tools.web import Web, key_for

MAX_RESULTS = 20
DEFAULT_RESULTS = 5
MAX_QUERY_CHARS = 2_000

DEFINITION = ToolDef(
    name="web_search",
    description="Search the web for information",
    parameters=[text_parameter("query", "The query to search for")],
)


def vendors() -> tuple[Vendor, ...]:
    """In the order in which they are preferred."""
    return (Tavily(), Brave(), Bing())


class WebSearch:
    kind = "websearch"
    extras = frozenset({"max_results"})

    def __init__(self, vendor: Vendor, settings: Settings, web: Web) -> None:
        self.vendor, self._settings, self._web = vendor, settings, web

    def check_args(self, args: JsonObject) -> None:
        _max_results(args)

    def has_key(self, provider_data: Mapping[str, Any] | None = None) -> bool:
        """In the provider data; without them, in the settings."""
        if provider_data is not None:
            return key_of(provider_data, self.vendor.key_name) is not None
        return self._setting is not None and bool(self._setting.get_secret_value())

    async def tools(self, group: ToolGroup, provider_data: Mapping[str, Any]) -> Sequence[ToolDef]:
        return [DEFINITION]

    async def invoke(
        self, group: ToolGroup, tool_name: str, arguments: JsonObject, context: CallContext
    ) -> ToolInvocationResult:
        query = str(arguments["query"]).strip()
        if not query or len(query) > MAX_QUERY_CHARS:
            raise BadRequest(f"query has {len(query)} characters; write 1 to {MAX_QUERY_CHARS}")
        vendor = self.vendor
        setting_name = f"STACK_{self._setting_name.upper()}"
        key = key_for(vendor.name, context.provider_data, vendor.key_name, self._setting, setting_name)
        limit = _max_results(context.args)
        found = (await vendor.search(self._web, key, query, limit))[:limit]
        text = json.dumps({"query": query, "top_k": found}, ensure_ascii=False)
        return ToolInvocationResult(content=text, metadata={"urls": [item["url"] for item in found]})

    @property
    def _setting_name(self) -> str:
        return self.vendor.key_name.replace("_search", "")

    @property
    def _setting(self) -> SecretStr | None:
        key: SecretStr | None = getattr(self._settings, self._setting_name)
        return key


def default_vendor(searches: Sequence[WebSearch], provider_data: Mapping[str, Any]) -> WebSearch:
    """The first with a key in the provider data, else in the settings, else the first of all."""
    for given in (provider_data, None):
        for search in searches:
            if search.has_key(given):
                return search
    return searches[0]


def _max_results(args: JsonObject) -> int:
    value = args.get("max_results", DEFAULT_RESULTS)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RESULTS:
        raise BadRequest(f"args.max_results is 1 to {MAX_RESULTS}, not {json.dumps(value)[:40]}")
    return value
