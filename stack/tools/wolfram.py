"""The tool `wolfram_alpha`: https://products.wolframalpha.com/api/documentation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stack.errors import BadRequest, Unauthorized, UpstreamError
from stack.schemas.common import JsonObject
from stack.schemas.tools import ToolDef, ToolGroup, ToolInvocationResult
from stack.settings import Settings
from stack.tools.base import CallContext, text_parameter
from stack.tools.search.base import objects
from stack.tools.web import Web, key_for

NAME = "Wolfram Alpha"
KEY = "wolfram_alpha_api_key"
MAX_POD_CHARS = 2_000

DEFINITION = ToolDef(
    name="wolfram_alpha",
    description="Query WolframAlpha for computational knowledge",
    parameters=[text_parameter("query", "The query to compute")],
)


class WolframAlpha:
    kind = "wolfram_alpha"
    extras: frozenset[str] = frozenset()

    def __init__(self, settings: Settings, web: Web, base_url: str = "https://api.wolframalpha.com") -> None:
        self._settings, self._web, self._url = settings, web, f"{base_url}/v2/query"

    def check_args(self, args: JsonObject) -> None:
        pass

    async def tools(self, group: ToolGroup, provider_data: Mapping[str, Any]) -> Sequence[ToolDef]:
        return [DEFINITION]

    async def invoke(
        self, group: ToolGroup, tool_name: str, arguments: JsonObject, context: CallContext
    ) -> ToolInvocationResult:
        query = str(arguments["query"]).strip()
        if not query:
            raise BadRequest("query is empty: write what to compute")
        setting = self._settings.wolfram_alpha_api_key
        key = key_for(NAME, context.provider_data, KEY, setting, "STACK_WOLFRAM_ALPHA_API_KEY")
        params = {"input": query, "appid": key, "format": "plaintext", "output": "json"}
        answer = (await self._web.ask(NAME, self._url, params=params)).get("queryresult")
        if not isinstance(answer, dict):
            raise UpstreamError(f"{NAME} answers without a queryresult")
        _check(answer)
        return ToolInvocationResult(content=json.dumps(_shown(query, answer), ensure_ascii=False))


def _check(answer: dict[str, Any]) -> None:
    error = answer.get("error")
    if isinstance(error, dict):
        if error.get("code") in ("1", "2", 1, 2):  # an invalid or a missing appid
            raise Unauthorized(f"{NAME} refuses the key: check it")
        raise UpstreamError(f"{NAME} failed: {str(error.get('msg'))[:200]}")


def _shown(query: str, answer: dict[str, Any]) -> JsonObject:
    """The pods' texts. A query that is not understood comes with what it may mean."""
    pods: JsonObject = {}
    for pod in objects(answer, "pods"):
        texts = [sub.get("plaintext") for sub in objects(pod, "subpods")]
        text = "\n".join(text for text in texts if isinstance(text, str) and text)
        if text:
            pods[str(pod.get("title", ""))] = text[:MAX_POD_CHARS]
    shown: JsonObject = {"query": query, "result": pods}
    if not pods:
        shown["note"] = "Wolfram Alpha has no answer; ask in other words"
        meant = answer.get("didyoumeans")
        meant = [meant] if isinstance(meant, dict) else meant if isinstance(meant, list) else []
        shown["did_you_mean"] = [item.get("val") for item in meant if isinstance(item, dict)]
    return shown
