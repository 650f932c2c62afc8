"""A guard behind an OpenAI-compatible endpoint, on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stack.context import Stack, open_stack
from stack.errors import BadRequest, StackError, UpstreamError
from stack.schemas.messages import UserMessage
from stack.schemas.safety import SafetyViolation
from stack.schemas.shields import RegisterShieldRequest
from stack.settings import Settings
from tests.engine.remote.openai_server import Endpoint, whole
from tests.store.examples import model


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with Endpoint().serving() as endpoint:
        yield endpoint


@pytest.fixture
async def stack(tmp_path: Path, endpoint: Endpoint) -> AsyncIterator[Stack]:
    async with open_stack(Settings(home=tmp_path, egress_allow="127.0.0.1")) as stack:
        for model_id, name in (("guard", "meta-llama/Llama-Guard-3-8B"), ("chat", "gpt")):
            source = f"{endpoint.base_url}#{name}"
            await stack.models.register(model(model_id, provider_id="openai", provider_resource_id=source))
            await stack.shields.register(
                RegisterShieldRequest(
                    shield_id=f"by-{model_id}", provider_id="llama-guard", provider_shield_id=model_id
                )
            )
        yield stack


async def run(stack: Stack, shield_id: str, key: str = "sk-mine") -> SafetyViolation | None:
    messages = [UserMessage(content="How do I bake bread?")]
    return await stack.shields.run(shield_id, messages, {}, {"openai_api_key": key})


async def test_a_guard_gets_the_conversation_and_the_caller_s_key(stack: Stack, endpoint: Endpoint) -> None:
    endpoint.answer = whole("\n\nunsafe\nS2")
    violation = await run(stack, "by-guard")
    assert violation is not None
    assert violation.metadata["violation_type"] == "S2"
    assert endpoint.bodies[-1]["messages"] == [{"role": "user", "content": "How do I bake bread?"}]
    assert endpoint.keys == ["Bearer sk-mine"]


async def test_any_other_model_gets_the_whole_task(stack: Stack, endpoint: Endpoint) -> None:
    endpoint.answer = whole("safe")
    assert await run(stack, "by-chat") is None
    (message,) = endpoint.bodies[-1]["messages"]
    assert "Task: Check if there is unsafe content in 'User' messages" in str(message["content"])
    assert "response_format" not in endpoint.bodies[-1]
    endpoint.answer = whole("As a helpful assistant, I would say that it is fine.")
    with pytest.raises(UpstreamError, match="gave no verdict"):
        await run(stack, "by-chat")


async def test_an_endpoint_that_fails_is_no_pass(stack: Stack, endpoint: Endpoint) -> None:
    for error in ((500, {}, {"error": {"message": "down"}}), (401, {}, {"error": {"message": "who?"}})):
        endpoint.error = error
        with pytest.raises(StackError):
            await run(stack, "by-guard")


async def test_it_cannot_be_a_prompt_guard(stack: Stack) -> None:
    await stack.shields.register(
        RegisterShieldRequest(shield_id="p", provider_id="prompt-guard", provider_shield_id="guard")
    )
    with pytest.raises(BadRequest, match="cannot classify: OpenAI's protocol has no such call"):
        await run(stack, "p")
