from __future__ import annotations

import asyncio

import pytest

from stack.errors import AlreadyRegistered, BadRequest, NotFound
from stack.schemas.models import Model
from stack.store.database import Database
from stack.store.registry import Registry
from tests.store.examples import model


@pytest.fixture
def registry(database: Database) -> Registry[Model]:
    return Registry(database, Model)


async def test_registers_lists_gets_and_deletes(registry: Registry[Model]) -> None:
    await registry.register(model("b"))
    await registry.register(model("org/a"))
    assert await registry.list() == [model("b"), model("org/a")]
    assert await registry.get("org/a") == model("org/a")
    await registry.delete("b")
    assert await registry.list() == [model("org/a")]
    with pytest.raises(NotFound, match="model 'b' is not registered"):
        await registry.get("b")
    with pytest.raises(NotFound):
        await registry.delete("b")


async def test_registering_again_is_fine_only_with_equal_contents(registry: Registry[Model]) -> None:
    await registry.register(model())
    assert await registry.register(model()) == model()
    with pytest.raises(AlreadyRegistered) as error:
        await registry.register(model(provider_id="openai"))
    assert error.value.status == 400
    assert await registry.get("org/tiny") == model()


async def test_concurrent_registrations_have_one_winner(registry: Registry[Model]) -> None:
    results = await asyncio.gather(
        *(registry.register(model(metadata={"n": n})) for n in range(20)), return_exceptions=True
    )
    winners = [result for result in results if isinstance(result, Model)]
    assert len(winners) == 1
    assert all(isinstance(result, AlreadyRegistered) for result in results if not isinstance(result, Model))
    assert await registry.get("org/tiny") == winners[0]


async def test_the_operators_word_goes_before_a_callers(registry: Registry[Model]) -> None:
    await registry.register(model())
    await registry.declare(model(provider_id="openai"))
    assert (await registry.get("org/tiny")).provider_id == "openai"
    with pytest.raises(AlreadyRegistered):
        await registry.register(model())
    with pytest.raises(BadRequest, match=r"stack\.yaml"):
        await registry.delete("org/tiny")
    assert await registry.list(declared=True) == [model(provider_id="openai")]
    assert await registry.list(declared=False) == []
    await registry.retract("org/tiny")
    assert await registry.list() == []


async def test_retract_leaves_what_callers_registered(registry: Registry[Model]) -> None:
    await registry.register(model())
    await registry.retract("org/tiny")
    assert await registry.list() == [model()]


async def test_keeps_any_text(registry: Registry[Model]) -> None:
    odd = model("模型/é#?%2F ", metadata={"text": "\x00 \u2028 😀 ' \" \\"})
    await registry.register(odd)
    assert await registry.get("模型/é#?%2F ") == odd


@pytest.mark.parametrize(
    ("identifier", "says"),
    [("", "empty"), ("a\0b", "U+0000"), ("x" * 256, "256 characters, at most 255"), ("a\nb", "U+000A")],
)
async def test_refuses_ids_that_cannot_be_kept(registry: Registry[Model], identifier: str, says: str) -> None:
    for call in (registry.get(identifier), registry.delete(identifier), registry.register(model(identifier))):
        with pytest.raises(BadRequest) as error:
            await call
        assert says in str(error.value)


async def test_refuses_lone_surrogates(registry: Registry[Model]) -> None:
    with pytest.raises(BadRequest, match=r"U\+D800"):
        await registry.get("a\ud800")
