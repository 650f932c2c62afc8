from __future__ import annotations

import pytest
from sqlalchemy import select

from stack.errors import BadRequest, NotFound
from stack.store.api_keys import PREFIX, ApiKeys
from stack.store.database import Database
from stack.store.tables import api_keys


async def test_a_key_is_found_and_only_its_hash_is_kept(database: Database) -> None:
    keys = ApiKeys(database)
    secret = await keys.create("alice", record_content=False)
    assert secret.startswith(PREFIX)
    assert len(secret) > 50
    assert secret != await keys.create("bob")
    found = await keys.find(secret)
    assert found is not None
    assert (found.name, found.record_content) == ("alice", False)
    assert [(key.name, key.record_content) for key in await keys.list()] == [("alice", False), ("bob", None)]
    async with database.read() as connection:
        assert secret[len(PREFIX) :] not in str((await connection.execute(select(api_keys))).all())


@pytest.mark.parametrize("secret", ["", "none", PREFIX, PREFIX + "x", PREFIX + "\udc80", "sk-other"])
async def test_what_is_no_key(database: Database, secret: str) -> None:
    assert await ApiKeys(database).find(secret) is None


async def test_a_deleted_key_is_refused(database: Database) -> None:
    here, elsewhere = ApiKeys(database), ApiKeys(database, known_for_s=0)
    secret = await here.create("alice")
    assert await here.find(secret) is not None
    assert await elsewhere.find(secret) is not None
    await here.delete("alice")
    assert await here.find(secret) is None
    assert await elsewhere.find(secret) is None
    with pytest.raises(NotFound):
        await here.delete("alice")


async def test_a_key_that_is_made_later_is_found_when_the_answer_is_old(database: Database) -> None:
    keys = ApiKeys(database, known_for_s=0)
    assert await keys.find(PREFIX + "guess") is None
    assert await keys.find(await keys.create("alice")) is not None


async def test_guesses_do_not_fill_the_memory(database: Database) -> None:
    keys = ApiKeys(database)
    for number in range(50):
        keys._known[str(number)] = (0.0, None)
    for number in range(4096):
        keys._known[f"more{number}"] = (0.0, None)
    await keys.find(PREFIX + "guess")
    assert len(keys._known) == 1


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", "a" * 65, "a\0", "a/b"])
async def test_names_that_are_odd(database: Database, name: str) -> None:
    with pytest.raises(BadRequest, match="not allowed"):
        await ApiKeys(database).create(name)


async def test_a_name_that_is_taken(database: Database) -> None:
    await ApiKeys(database).create("alice")
    with pytest.raises(BadRequest, match="already"):
        await ApiKeys(database).create("alice")
