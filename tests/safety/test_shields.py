from __future__ import annotations

import pytest

from stack.errors import BadRequest, NotFound
from stack.providers import PROVIDERS as ALL_PROVIDERS
from stack.safety.providers import BUILT_IN, PROVIDERS
from stack.safety.shields import Shields
from stack.schemas.messages import UserMessage
from stack.schemas.shields import RegisterShieldRequest
from stack.settings import Settings


async def test_check_names_what_is_missing(shields: Shields) -> None:
    await shields.register(
        RegisterShieldRequest(shield_id="words", provider_id="regex", params={"patterns": [{"pattern": "a"}]})
    )
    await shields.check([])
    await shields.check(["pii", "words", "code-scanner"])
    with pytest.raises(BadRequest, match="'absent' is not registered; GET /v1/shields names those that are"):
        await shields.check(["pii", "absent", "other"])
    with pytest.raises(NotFound):
        await shields.run("absent", [UserMessage(content="a")], {})


async def test_closing_ends_the_processes(shields: Shields) -> None:
    """And a later call starts them again."""
    messages = [UserMessage(content="a@example.org")]
    assert await shields.run("pii", messages, {}) is not None
    shields.close()
    shields.close()
    assert await shields.run("pii", messages, {}) is not None


def test_the_providers_api_shows_defaults() -> None:
    shown = {each.provider_id: each for each in ALL_PROVIDERS if each.api == "safety"}
    assert shown.keys() == PROVIDERS.keys()
    assert set(BUILT_IN) < PROVIDERS.keys()
    assert shown["pii"].config(Settings())["level"] == "error"
    assert shown["regex"].config(Settings()) == {"ignore_case": False}
