from __future__ import annotations

import httpx

from stack import __version__


async def test_health_and_version(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/health")).json() == {"status": "OK"}
    assert (await client.get("/v1/version")).json() == {"version": __version__}


async def test_routes_are_all_that_is_served(client: httpx.AsyncClient) -> None:
    data = (await client.get("/v1/inspect/routes")).json()["data"]
    routes = {(route["method"], route["route"]): route["provider_types"] for route in data}
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert routes.keys() == {(method.upper(), path) for path in paths for method in paths[path]}
    assert "remote::openai" in routes["POST", "/v1/inference/chat-completion"]
    assert "inline::transformers" in routes["GET", "/v1/models"]
    assert routes["GET", "/v1/health"] == []


async def test_docs(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert 'fetch("openapi.json")' in page.text
    assert "://" not in page.text  # works without a network
    document = (await client.get("/openapi.json")).json()
    assert document["info"]["title"] == "Llama Stack Specification"
    assert document["info"]["version"] == "v1"
