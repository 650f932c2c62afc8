"""Search vendors and Wolfram Alpha, as loopback servers that speak their documented protocols."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import parse_qs

import pytest

from stack.errors import BadRequest, Overloaded, StackError, Timeout, Unauthorized, UpstreamError
from stack.schemas.tools import ToolGroup, ToolInvocationResult
from stack.settings import Settings
from stack.tools.base import CallContext, ToolProvider
from stack.tools.search.base import Vendor
from stack.tools.search.bing import Bing
from stack.tools.search.brave import Brave
from stack.tools.search.provider import WebSearch, default_vendor, vendors
from stack.tools.search.tavily import Tavily
from stack.tools.web import Web
from stack.tools.wolfram import WolframAlpha
from tests.tools.servers import Served, served

GROUP = ToolGroup(identifier="g", provider_resource_id="g", provider_id="p")
KEYS = {
    "tavily_search_api_key": "k-1",
    "brave_search_api_key": "k-1",
    "bing_search_api_key": "k-1",
    "wolfram_alpha_api_key": "k-1",
}
ANSWERS: dict[str, Any] = {
    "/search": {
        "query": "q",
        "results": [{"title": "A", "url": "https://a.org", "content": "about a", "score": 0.9}, "odd"],
    },
    "/res/v1/web/search": {
        "type": "search",
        "web": {
            "results": [
                {"title": "A", "url": "https://a.org", "description": "about a", "extra_snippets": ["more"]}
            ]
        },
    },
    "/v7.0/search": {
        "webPages": {"value": [{"name": "A", "url": "https://a.org", "snippet": "about a", "id": "1"}]}
    },
    "/v2/query": {
        "queryresult": {
            "success": True,
            "error": False,
            "pods": [
                {"title": "Input", "subpods": [{"plaintext": "2+2"}]},
                {"title": "Result", "subpods": [{"plaintext": "4"}, {"plaintext": ""}]},
            ],
        }
    },
}


class Internet:
    """Answers as all the vendors at once, unless a test sets what every answer is."""

    def __init__(self) -> None:
        self.status, self.body, self.delay_s = 200, None, 0.0
        self.asked: dict[str, Any] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        message = await receive()
        await asyncio.sleep(self.delay_s)
        self.asked = {
            "path": scope["path"],
            "query": {name: value for name, (value, *_) in parse_qs(scope["query_string"].decode()).items()},
            "json": json.loads(message["body"]) if message["body"] else None,
            "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
        }
        body = json.dumps(ANSWERS[scope["path"]]).encode() if self.body is None else self.body
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def internet() -> Internet:
    return Internet()


@pytest.fixture
def server(internet: Internet) -> Iterator[Served]:
    with served(internet) as server:
        yield server


@pytest.fixture
def settings() -> Settings:
    return Settings(egress_allow="127.0.0.1")


@pytest.fixture
def timeout_s() -> float:
    return 10.0


@pytest.fixture
async def web(settings: Settings, timeout_s: float) -> AsyncIterator[Web]:
    web = Web(settings, timeout_s)
    yield web
    await web.close()


@pytest.fixture(params=[Tavily, Brave, Bing, WolframAlpha])
def provider(request: pytest.FixtureRequest, server: Served, settings: Settings, web: Web) -> ToolProvider:
    if request.param is WolframAlpha:
        return WolframAlpha(settings, web, server.url)
    vendor: Vendor = request.param(server.url)
    return WebSearch(vendor, settings, web)


async def ask(provider: ToolProvider, query: str = "llamas & co", **args: Any) -> ToolInvocationResult:
    (tool,) = await provider.tools(GROUP, {})
    context = CallContext(provider_data=KEYS, args=args)
    return await provider.invoke(GROUP, tool.name, {"query": query}, context)


async def test_requests_and_answers(provider: ToolProvider, internet: Internet) -> None:
    result = await ask(provider)
    asked, content = internet.asked, json.loads(str(result.content))
    assert content["query"] == "llamas & co"
    if isinstance(provider, WolframAlpha):
        assert asked["query"] == {
            "input": "llamas & co", "appid": "k-1", "format": "plaintext", "output": "json",
        }  # fmt: skip
        assert content["result"] == {"Input": "2+2", "Result": "4"}
        return
    (found,) = content["top_k"]
    assert (found["title"], found["url"], found["content"]) == ("A", "https://a.org", "about a")
    headers = asked["headers"]
    match asked["path"]:
        case "/search":
            assert headers["authorization"] == "Bearer k-1"
            assert asked["json"] == {"query": "llamas & co", "max_results": 5}
            assert found["score"] == 0.9
        case "/res/v1/web/search":
            assert headers["x-subscription-token"] == "k-1"
            assert (asked["query"]["q"], asked["query"]["count"]) == ("llamas & co", "5")
            assert found["extra_snippets"] == ["more"]
        case _:
            assert headers["ocp-apim-subscription-key"] == "k-1"
            assert (asked["query"]["q"], asked["query"]["count"]) == ("llamas & co", "5")


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (401, b"", Unauthorized, "refuses the key"),
        (403, b"", Unauthorized, "refuses the key"),
        (429, b"", Overloaded, "later"),
        (400, b"", BadRequest, "answers 400"),
        (500, b"k-1", UpstreamError, "answers 500"),
        (302, b"", UpstreamError, "answers 302"),
        (200, b"<html>", UpstreamError, "not JSON"),
        (200, b"[]", UpstreamError, "not a JSON object"),
        (200, bytes(5 << 20), BadRequest, "larger than"),
    ],
)
async def test_errors_are_told(
    provider: ToolProvider,
    internet: Internet,
    status: int,
    body: bytes,
    error: type[StackError],
    words: str,
) -> None:
    internet.status, internet.body = status, body
    with pytest.raises(error, match=words) as raised:
        await ask(provider)
    assert "k-1" not in str(raised.value)


@pytest.mark.parametrize("timeout_s", [0.3])
async def test_slow_answers_are_given_up(provider: ToolProvider, internet: Internet) -> None:
    internet.delay_s = 3.0
    with pytest.raises(Timeout, match=r"within 0\.3 s"):
        await ask(provider)


async def test_odd_answers_have_no_results(provider: ToolProvider, internet: Internet) -> None:
    for body in ({}, {"results": 7, "web": [], "webPages": {"value": [7]}}):
        internet.body = json.dumps(body | {"queryresult": {"pods": [7]}}).encode()
        content = json.loads(str((await ask(provider)).content))
        assert not content.get("top_k")
        assert not content.get("result")


async def test_a_key_is_asked_for(provider: ToolProvider) -> None:
    (tool,) = await provider.tools(GROUP, {})
    with pytest.raises(
        BadRequest, match=r'needs a key: .*_api_key": "…"}, or start the server with STACK_\w+'
    ):
        await provider.invoke(GROUP, tool.name, {"query": "x"}, CallContext())


async def test_empty_queries_are_refused(provider: ToolProvider, internet: Internet) -> None:
    with pytest.raises(BadRequest, match="query"):
        await ask(provider, " ")
    assert internet.asked == {}


async def test_wolfram_says_what_was_meant(internet: Internet, server: Served, web: Web) -> None:
    wolfram = WolframAlpha(Settings(), web, server.url)
    meant = {"queryresult": {"error": False, "pods": [], "didyoumeans": {"val": "llama"}}}
    internet.body = json.dumps(meant).encode()
    assert json.loads(str((await ask(wolfram)).content))["did_you_mean"] == ["llama"]
    internet.body = json.dumps({"queryresult": {"error": {"code": "1", "msg": "Invalid appid"}}}).encode()
    with pytest.raises(Unauthorized, match="refuses the key"):
        await ask(wolfram)


def test_the_default_is_whichever_has_a_key(web: Web) -> None:
    def chosen(settings: Settings, **keys: str) -> str:
        searches = [WebSearch(vendor, settings, web) for vendor in vendors()]
        return default_vendor(searches, keys).vendor.provider_id

    operator = Settings(brave_api_key="k")  # type: ignore[arg-type]
    assert chosen(Settings()) == "tavily-search"
    assert chosen(operator) == "brave-search"
    assert chosen(operator, bing_search_api_key="k") == "bing-search"
    assert chosen(operator, bing_search_api_key="k", tavily_search_api_key="k") == "tavily-search"
