from __future__ import annotations

import httpx


async def test_lists_providers_with_secrets_masked(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/providers")
    providers = {provider["provider_id"]: provider for provider in answer.json()["data"]}
    assert providers.keys() >= {"transformers", "sentence-transformers", "openai"}
    assert providers["openai"]["config"] == {"api_key": "********"}
    assert "sk-secret" not in answer.text


async def test_gets_one_provider(client: httpx.AsyncClient) -> None:
    provider = (await client.get("/v1/providers/transformers")).json()
    assert (provider["api"], provider["provider_type"]) == ("inference", "inline::transformers")
    assert provider["config"]["max_batch"] == 32


async def test_an_unknown_provider_is_404(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/providers/a/b")
    assert (answer.status_code, answer.json()["detail"]) == (404, "provider 'a/b' is not registered")
