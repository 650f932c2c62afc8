"""Tool groups and tools over HTTP and through llama-stack-client, with real MCP servers and real SQL."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from llama_stack_client import AsyncLlamaStackClient, NotFoundError

from stack.app import create_app
from stack.context import Stack
from stack.schemas.tools import RAGDocument
from stack.settings import Settings
from tests.tools.mcp.server import before_2026, mcp_server
from tests.tools.servers import Served, served
from tests.vector.conftest import embedder, minilm, opened
from tests.vector.embedder import Embedder

__all__ = ["embedder", "minilm"]  # fixtures

INVOKE, LIST = "/v1/tool-runtime/invoke", "/v1/tool-runtime/list-tools"
BUILTIN = ["builtin::rag", "builtin::websearch", "builtin::wolfram_alpha", "builtin::code_interpreter"]
BUILTIN_TOOLS = [
    "knowledge_search", "insert_into_memory", "web_search", "wolfram_alpha", "code_interpreter",
]  # fmt: skip


@pytest.fixture
async def app(tmp_path: Path, embedder: Embedder) -> AsyncIterator[FastAPI]:
    settings = Settings(home=tmp_path / "home", egress_allow="127.0.0.1")
    app = create_app(lambda: opened(settings, embedder))
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
def llama(client: httpx.AsyncClient) -> AsyncLlamaStackClient:
    return AsyncLlamaStackClient(base_url="http://stack", http_client=client, max_retries=0)


@pytest.fixture(scope="module")
def farm() -> Iterator[Served]:
    with served(mcp_server().streamable_http_app()) as server:
        yield server


@pytest.fixture
def endpoint(farm: Served) -> str:
    return f"{farm.url}/mcp"


def body(endpoint: str | None = None, **fields: Any) -> dict[str, Any]:
    request = {"toolgroup_id": "mcp::farm", "provider_id": "model-context-protocol", **fields}
    return request | ({} if endpoint is None else {"mcp_endpoint": {"uri": endpoint}})


async def test_the_builtin_groups_are_there(llama: AsyncLlamaStackClient, client: httpx.AsyncClient) -> None:
    assert [group.identifier for group in await llama.toolgroups.list()] == BUILTIN
    tools = await llama.tools.list()
    assert [tool.identifier for tool in tools] == BUILTIN_TOOLS
    assert {tool.tool_host for tool in tools} == {"distribution"}
    parameters = {tool.identifier: [p.name for p in tool.parameters] for tool in tools}
    assert parameters == {
        "knowledge_search": ["query"],
        "insert_into_memory": [],
        "web_search": ["query"],
        "wolfram_alpha": ["query"],
        "code_interpreter": ["code"],
    }
    providers = (await client.get("/v1/providers")).json()["data"]
    runtimes = {one["provider_id"] for one in providers if one["api"] == "tool_runtime"}
    assert {group.provider_id for group in await llama.toolgroups.list()} < runtimes


async def test_an_mcp_group_s_life(llama: AsyncLlamaStackClient, endpoint: str) -> None:
    await llama.toolgroups.register(
        toolgroup_id="mcp::farm", provider_id="model-context-protocol", mcp_endpoint={"uri": endpoint}
    )
    group = await llama.toolgroups.get("mcp::farm")
    assert group.mcp_endpoint is not None
    assert (group.provider_id, group.mcp_endpoint.uri) == ("model-context-protocol", endpoint)
    tools = {tool.identifier: tool for tool in await llama.tools.list(toolgroup_id="mcp::farm")}
    assert {"add", "echo", "greet"} <= set(tools)
    assert tools["add"].tool_host == "model_context_protocol"
    assert [(p.name, p.parameter_type, p.required) for p in tools["add"].parameters] == [
        ("a", "integer", True),
        ("b", "integer", False),
    ]
    assert (await llama.tools.get("add")).toolgroup_id == "mcp::farm"
    assert (await llama.tools.get("mcp::farm/add")).description == "Add two numbers."
    result = await llama.tool_runtime.invoke_tool(tool_name="add", kwargs={"a": "2", "b": 3})
    assert result.content[0].text == "5"  # type: ignore[union-attr,index]
    assert result.error_message is None
    result = await llama.tool_runtime.invoke_tool(tool_name="mcp::farm/fail", kwargs={"text": "no hay"})
    assert result.content is None
    assert "no hay" in str(result.error_message)
    assert result.error_code == 1
    await llama.toolgroups.unregister("mcp::farm")
    assert await llama.tools.list(toolgroup_id="mcp::farm") == []
    with pytest.raises(NotFoundError):
        await llama.toolgroups.get("mcp::farm")
    with pytest.raises(NotFoundError):
        await llama.tools.get("add")


async def test_runtime_tools_are_streamed_as_lines(
    llama: AsyncLlamaStackClient, client: httpx.AsyncClient, endpoint: str
) -> None:
    await client.post("/v1/toolgroups", json=body(endpoint))
    all_tools = [tool.name async for tool in await llama.tool_runtime.list_tools()]
    assert all_tools[:5] == BUILTIN_TOOLS
    assert "echo" in all_tools
    of_group = [tool.name async for tool in await llama.tool_runtime.list_tools(tool_group_id="mcp::farm")]
    assert of_group == all_tools[5:]
    of_server = await llama.tool_runtime.list_tools(mcp_endpoint={"uri": endpoint})
    assert [tool.name async for tool in of_server] == of_group
    for params in (
        {"mcp_endpoint": endpoint},
        {"mcp_endpoint": json.dumps({"uri": endpoint})},
        {"mcp_endpoint[uri]": endpoint, "tool_group_id": "mcp::farm"},
    ):
        answer = await client.get(LIST, params=params)
        assert answer.headers["content-type"] == "application/jsonl"
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert [line["name"] for line in lines] == of_group
        assert all(line["metadata"]["endpoint"] == endpoint for line in lines)


@pytest.mark.parametrize(
    ("params", "status", "detail"),
    [
        ({"tool_group_id": "no"}, 404, "'no'"),
        ({"mcp_endpoint": "{"}, 400, "mcp_endpoint"),
        ({"mcp_endpoint": "ftp://x"}, 400, "http or https"),
        ({"mcp_endpoint": "http://10.0.0.1/mcp"}, 400, "not a public host"),
        ({"mcp_endpoint": "http://127.0.0.1:1/mcp"}, 502, "no connection"),
        ({"mcp_endpoint": "https://x.org/mcp", "tool_group_id": "builtin::rag"}, 400, "is not at that"),
    ],
)
async def test_errors_before_the_first_line(
    client: httpx.AsyncClient, params: dict[str, str], status: int, detail: str
) -> None:
    answer = await client.get(LIST, params=params)
    assert answer.status_code == status, answer.text
    assert detail in answer.json()["detail"]


@pytest.mark.parametrize(
    ("request_body", "detail"),
    [
        (body("http://127.0.0.1:1/mcp"), "no MCP server was found: no connection"),
        (body("http://10.0.0.1/mcp"), "STACK_EGRESS_ALLOW"),
        (body("http://user:pw@x.org/mcp"), "user name or password"),
        (body("http://"), "names no host"),
        (body(), '"mcp_endpoint": {"uri": '),
        (body("https://x.org/mcp", provider_id="rag-runtime"), "mcp_endpoint is for MCP servers"),
        (body(provider_id="no"), "there is no provider 'no'; there are: rag-runtime"),
        (body(toolgroup_id=" "), "toolgroup_id"),
        (body(provider_id="wolfram-alpha", toolgroup_id="builtin::rag"), "of provider rag-runtime"),
        (body("https://x.org/mcp", toolgroup_id="builtin::websearch"), "tavily-search or brave-search"),
        (body("https://x.org/mcp", args={"timeout_s": -1}), "args.timeout_s"),
        (body(provider_id="rag-runtime", args={"vector_db_ids": "db"}), "args.vector_db_ids"),
        (body(provider_id="bing-search", args={"max_results": 1000}), "args.max_results"),
    ],
)
async def test_bad_registrations(client: httpx.AsyncClient, request_body: Any, detail: str) -> None:
    answer = await client.post("/v1/toolgroups", json=request_body)
    assert answer.status_code == 400, answer.text
    assert detail in answer.json()["detail"]
    assert len((await client.get("/v1/toolgroups")).json()["data"]) == len(BUILTIN)


async def test_what_is_no_mcp_server_is_not_registered(client: httpx.AsyncClient) -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]}
        )
        await send({"type": "http.response.body", "body": b"<html>"})

    with served(page) as server:
        answer = await client.post("/v1/toolgroups", json=body(server.url))
    assert answer.status_code == 400
    assert "does not answer as an MCP server" in answer.json()["detail"]


async def test_keys_come_with_requests(client: httpx.AsyncClient) -> None:
    app = before_2026(mcp_server().streamable_http_app())

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (b"authorization", b"Bearer k-1") not in scope["headers"]:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await app(scope, receive, send)

    with served(guarded) as server:
        endpoint = f"{server.url}/mcp"
        assert (await client.post("/v1/toolgroups", json=body(endpoint))).status_code == 200
        without = await client.get(LIST, params={"tool_group_id": "mcp::farm"})
        assert without.status_code == 401
        assert "mcp_headers" in without.json()["detail"]
        assert len((await client.get("/v1/tools")).json()["data"]) == len(BUILTIN_TOOLS)
        call = {"tool_name": "mcp::farm/echo", "kwargs": {"text": "x"}}
        refused = (await client.post(INVOKE, json=call)).json()
        assert refused["error_code"] == 401
        forms: list[Any] = [{"Authorization": "Bearer k-1"}, ["Authorization: Bearer k-1"]]
        for form in forms:
            data = json.dumps({"mcp_headers": {endpoint: form}})
            answer = await client.post(INVOKE, json=call, headers={"x-llamastack-provider-data": data})
            assert answer.json()["content"] == [{"type": "text", "text": "x"}]


async def test_keys_are_in_no_log_and_no_table(
    client: httpx.AsyncClient, app: FastAPI, endpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    data = json.dumps(
        {"mcp_headers": {endpoint: {"X-Key": "k-very-secret"}}, "tavily_search_api_key": "k-2-secret"}
    )
    headers = {"x-llamastack-provider-data": data}
    assert (await client.post("/v1/toolgroups", json=body(endpoint), headers=headers)).status_code == 200
    for name in ("echo", "fail", "no"):
        await client.post(INVOKE, json={"tool_name": name, "kwargs": {"text": "x"}}, headers=headers)
    assert caplog.text
    assert "secret" not in caplog.text
    files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert files
    assert all(b"secret" not in path.read_bytes() for path in files)


async def test_builtin_groups_are_replaced_and_come_back(
    llama: AsyncLlamaStackClient, client: httpx.AsyncClient
) -> None:
    await llama.toolgroups.register(
        toolgroup_id="builtin::websearch", provider_id="brave-search", args={"max_results": 3}
    )
    group = await llama.toolgroups.get("builtin::websearch")
    assert (group.provider_id, group.args) == ("brave-search", {"max_results": 3})
    assert [one.identifier for one in await llama.toolgroups.list()] == BUILTIN
    result = await llama.tool_runtime.invoke_tool(tool_name="web_search", kwargs={"query": "x"})
    assert "Brave Search needs a key" in str(result.error_message)
    assert "STACK_BRAVE_API_KEY" in str(result.error_message)
    await llama.toolgroups.unregister("builtin::websearch")
    assert (await llama.toolgroups.get("builtin::websearch")).provider_id == "tavily-search"
    again = await client.delete("/v1/toolgroups/builtin::websearch")
    assert (again.status_code, "always there" in again.json()["detail"]) == (400, True)
    assert (await client.delete("/v1/toolgroups/no")).status_code == 404


async def test_the_search_is_the_one_with_a_key(client: httpx.AsyncClient) -> None:
    data = json.dumps({"bing_search_api_key": "k"})
    answer = await client.get(
        "/v1/toolgroups/builtin::websearch", headers={"x-llamastack-provider-data": data}
    )
    assert answer.json()["provider_id"] == "bing-search"


async def test_knowledge_is_searched(
    llama: AsyncLlamaStackClient, client: httpx.AsyncClient, app: FastAPI
) -> None:
    stack: Stack = app.state.stack
    await client.post("/v1/vector-dbs", json={"vector_db_id": "db", "embedding_model": "mini"})
    document = RAGDocument(document_id="llamas", content="Llamas carry loads.", metadata={})
    inserted = await llama.tool_runtime.invoke_tool(
        tool_name="insert_into_memory",
        kwargs={"vector_db_id": "db", "documents": [document.model_dump(mode="json")]},
    )
    assert inserted.error_message is None
    assert inserted.metadata == {"document_ids": ["llamas"]}
    kwargs: Any = {"query": "pack animals", "vector_db_ids": ["db"], "query_config": {"max_chunks": 1}}
    found = await llama.tool_runtime.invoke_tool(tool_name="builtin::rag/knowledge_search", kwargs=kwargs)
    assert found.metadata is not None
    assert found.metadata["document_ids"] == ["llamas"]
    assert "Llamas carry loads." in found.content[1].text  # type: ignore[union-attr,index]
    nowhere = await llama.tool_runtime.invoke_tool(tool_name="knowledge_search", kwargs={"query": "x"})
    assert "vector_db_ids" in str(nowhere.error_message)
    nothing = await llama.tool_runtime.invoke_tool(tool_name="insert_into_memory", kwargs={})
    assert "rag-tool/insert" in str(nothing.error_message)
    missing = await llama.tool_runtime.invoke_tool(
        tool_name="knowledge_search", kwargs={"query": "x", "vector_db_ids": ["no"]}
    )
    assert missing.error_code == 404
    # A group of one's own, whose args are searched by whoever names it.
    await llama.toolgroups.register(
        toolgroup_id="docs", provider_id="rag-runtime", args={"vector_db_ids": ["db"]}
    )
    found = await llama.tool_runtime.invoke_tool(
        tool_name="docs/knowledge_search", kwargs={"query": "llamas"}
    )
    assert found.error_message is None
    (search,) = await stack.tools.bind(["docs/knowledge_search"], {})
    assert search.args == {"vector_db_ids": ["db"]}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "query (string) is required"),
        ({"query": ["x"]}, 'query is string, not ["x"]'),
        ({"query": "x", "q": 1}, '"q" is not a parameter (there are: query)'),
    ],
)
async def test_arguments_are_checked(llama: AsyncLlamaStackClient, kwargs: Any, message: str) -> None:
    result = await llama.tool_runtime.invoke_tool(tool_name="web_search", kwargs=kwargs)
    assert result.error_code == 400
    assert message in str(result.error_message)


async def test_unknown_tools_are_404(client: httpx.AsyncClient) -> None:
    for name in ("no", "builtin::rag/no", "no/no", ""):
        answer = await client.post(INVOKE, json={"tool_name": name, "kwargs": {}})
        assert (answer.status_code, answer.json()["title"]) == (404, "Not Found")


async def test_a_dead_server_holds_up_nobody(
    client: httpx.AsyncClient, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stack.tools.lists.PATIENCE_S", 0.5)
    app, hangs = before_2026(mcp_server().streamable_http_app()), False

    async def hanging(scope: Any, receive: Any, send: Any) -> None:
        if hangs:
            await asyncio.sleep(10)
        await app(scope, receive, send)

    with served(hanging) as server:
        dead = body(f"{server.url}/mcp", toolgroup_id="mcp::dead")
        assert (await client.post("/v1/toolgroups", json=dead)).status_code == 200
        await client.post("/v1/toolgroups", json=body(endpoint))
        hangs = True
        started = time.monotonic()
        for _ in range(5):
            tools = (await client.get("/v1/tools")).json()["data"]
            assert {tool["toolgroup_id"] for tool in tools} == {*BUILTIN, "mcp::farm"}
        called = await client.post(INVOKE, json={"tool_name": "echo", "kwargs": {"text": "x"}})
        assert called.json()["content"] == [{"type": "text", "text": "x"}]
        assert time.monotonic() - started < 3  # and not 0.5 s for each
        unknown = await client.post(INVOKE, json={"tool_name": "no", "kwargs": {}})
        assert unknown.status_code == 404
        assert "mcp::dead" in unknown.json()["detail"]


async def test_what_agents_name(client: httpx.AsyncClient, app: FastAPI, endpoint: str) -> None:
    from stack.errors import BadRequest
    from stack.schemas.agents import AgentToolGroupWithArgs as WithArgs
    from stack.tools.base import CallContext

    tools = app.state.stack.tools
    await client.post("/v1/toolgroups", json=body(endpoint, args={"b": 40}))
    bound = await tools.bind(
        ["builtin::rag", "mcp::farm/echo", WithArgs(name="mcp::farm", args={"x": 1})], {}
    )
    assert [one.definition.name for one in bound][:2] == ["knowledge_search", "echo"]
    assert len({one.definition.name for one in bound}) == len(bound)
    add = next(one for one in bound if one.definition.name == "add")
    assert add.args == {"b": 40, "x": 1}
    result = await tools.call(add, {"a": 2, "b": 7}, CallContext())
    assert result.content[0].text == "42"  # what the operator set goes before what the model says
    result = await tools.call(add, {"a": "two"}, CallContext())
    assert (result.error_code, "a is integer" in result.error_message) == (400, True)
    await tools.check(["builtin::websearch", "mcp::farm", "mcp::farm/add"])
    for wrong in ("no", "builtin::rag/no", "mcp::farm/no", WithArgs(name="no", args={})):
        with pytest.raises(BadRequest, match="toolgroups"):
            await tools.check([wrong])
        with pytest.raises(BadRequest, match="toolgroups"):
            await tools.bind([wrong], {})
    with pytest.raises(BadRequest, match="vector_db_ids"):
        await tools.check([WithArgs(name="builtin::rag", args={"vector_db_ids": 7})])


async def test_code_runs_in_the_sandbox(llama: AsyncLlamaStackClient) -> None:
    code = "open('a.txt', 'w').write('hay')\nprint(6 * 7)"
    result = await llama.tool_runtime.invoke_tool(tool_name="code_interpreter", kwargs={"code": code})
    if result.error_code == 503:
        pytest.skip(str(result.error_message))
    assert "42" in result.content[0].text  # type: ignore[union-attr,index]
    assert result.metadata is not None
    (attachment,) = result.metadata["attachments"]  # type: ignore[misc]
    assert attachment == {
        "name": "a.txt",
        "mime_type": "text/plain",
        "content": {"uri": "data:text/plain;base64,aGF5"},
    }
