"""Insert and query, on real LanceDB with real vectors."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from stack.context import Stack
from stack.errors import BadRequest, NotFound
from stack.schemas.vector_dbs import RegisterVectorDbRequest
from stack.schemas.vector_io import Chunk
from stack.settings import Settings
from stack.vector.databases import create_table
from stack.vector.flat import FlatVectors
from stack.vector.params import QueryParams, parse_params
from stack.vector.rows import dump, schema, to_chunk, to_table
from stack.vector.state import VectorIndexes
from stack.vector.store import ScoredChunk, replaced_documents
from tests.vector.conftest import opened
from tests.vector.embedder import Embedder

FACTS = {
    "llama": "Llamas live in the Andes and carry loads over high passes.",
    "wing": "The lift of a wing grows with the square of the airspeed.",
    "bread": "Bread dough rises because yeast makes carbon dioxide.",
    "error": "Error code QX-7731 means that the pump has lost pressure.",
    "moon": "The moon raises two tides a day in most of the world's harbours.",
}


def chunk(text: str, document_id: str | None = None, **metadata: Any) -> Chunk:
    return Chunk(content=text, metadata=({"document_id": document_id} if document_id else {}) | metadata)


async def insert(stack: Stack, *chunks: Chunk, **options: Any) -> None:
    await stack.vectors.insert("db", chunks, documents=replaced_documents(chunks), **options)


async def ask(stack: Stack, query: Any, **params: Any) -> list[ScoredChunk]:
    return await stack.vectors.query(["db"], query, parse_params(params))


def documents(found: list[ScoredChunk]) -> list[Any]:
    return [one.chunk.metadata.get("document_id") for one in found]


@pytest.fixture
async def facts(stack: Stack) -> Stack:
    await insert(stack, *(chunk(text, name, chars=len(text)) for name, text in FACTS.items()))
    return stack


async def test_a_vector_finds_by_meaning_and_a_keyword_by_words(facts: Stack) -> None:
    assert documents(await ask(facts, "animals of South America", mode="vector"))[0] == "llama"
    assert documents(await ask(facts, "QX-7731", mode="keyword")) == ["error"]
    for query, document in (("animals of South America", "llama"), ("QX-7731", "error")):
        found = await ask(facts, query)
        assert documents(found)[0] == document
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
        assert all(0 < one.score <= 1 for one in found)


@pytest.mark.parametrize("mode", ["vector", "keyword", "hybrid"])
async def test_a_query_equal_to_a_chunk_finds_it_first(facts: Stack, mode: str) -> None:
    wordy = "wing lift airspeed square grows " * 10
    await insert(facts, chunk(wordy, "wordy"))
    for name, text in [*FACTS.items(), ("wordy", wordy)]:
        found = await ask(facts, text, mode=mode, max_chunks=1)
        assert documents(found) == [name]
    if mode == "vector":
        assert found[0].score == pytest.approx(1.0, abs=1e-4)


async def test_limits_and_thresholds(facts: Stack) -> None:
    assert len(await ask(facts, "the", max_chunks=2, mode="vector")) == 2
    found = await ask(facts, FACTS["moon"], mode="vector", score_threshold=0.9)
    assert documents(found) == ["moon"]
    assert await ask(facts, "zzzz", mode="keyword") == []
    assert await ask(facts, "?!", mode="keyword") == []


async def test_the_same_document_replaces_its_chunks(facts: Stack) -> None:
    await insert(facts, chunk("Llamas are camelids.", "llama", page=1), chunk("They hum.", "llama", page=2))
    found = await ask(facts, "llama", max_chunks=10, filters=eq("document_id", "llama"))
    assert sorted(one.chunk.content for one in found) == ["Llamas are camelids.", "They hum."]
    await insert(facts, chunk("They hum.", "llama", page=2))
    found = await ask(facts, "llama", max_chunks=10, filters=eq("document_id", "llama"))
    assert [one.chunk.content for one in found] == ["They hum."]


async def test_chunks_with_names_of_their_own_replace_each_other_only(stack: Stack) -> None:
    for text in ("first", "second"):
        await insert(stack, chunk(text, "d", chunk_id=text))
    await insert(stack, chunk("second, again", "d", chunk_id="second"))
    found = await ask(stack, "second", mode="vector", max_chunks=10)
    assert sorted(one.chunk.content for one in found) == ["first", "second, again"]


async def test_a_chunk_without_a_document_is_there_once_however_often_it_is_sent(stack: Stack) -> None:
    for _ in range(3):
        await insert(stack, chunk("no document"), chunk("no document"), chunk("no document", page=2))
    assert len(await ask(stack, "no document", mode="vector", max_chunks=10)) == 2


async def test_what_has_expired_is_not_found(stack: Stack) -> None:
    await insert(stack, chunk("stays", "a"))
    await insert(stack, chunk("goes", "b"), ttl_seconds=1)
    assert len(await ask(stack, "goes")) == 2
    await asyncio.sleep(1.1)
    for mode in ("vector", "keyword", "hybrid"):
        assert documents(await ask(stack, "goes stays", mode=mode)) == ["a"]
    with pytest.raises(BadRequest, match="ttl_seconds"):
        await insert(stack, chunk("never"), ttl_seconds=0)


def eq(key: Any, value: Any, kind: str = "eq") -> dict[str, Any]:
    return {"type": kind, "key": key, "value": value}


TAG = 'it\'s "é"\\'
ROWS = {
    "a": {
        "lang": "en",
        "year": 1999,
        "score": 1.5,
        "ok": True,
        "nested": {"deep": "x"},
        "tag": 'it\'s "é"\\',
    },
    "b": {"lang": "de", "year": 2020, "score": 2, "ok": False, "none": None, "tag": "🚀"},
    "c": {"lang": "en", "year": "2020", "date": "2024-05-01"},
}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (eq("lang", "en"), "ac"),
        (eq("lang", "en", "ne"), "b"),
        (eq("year", 2020), "b"),
        (eq("year", 2020.0), "b"),
        (eq("year", "2020"), "c"),
        (eq("score", 1, "gt"), "ab"),
        (eq("score", 2, "gte"), "b"),
        (eq("score", 2, "lt"), "a"),
        (eq("date", "2024-04", "gt"), "c"),
        (eq("date", "2024-05-01", "lte"), "c"),
        (eq("date", "2024-05-01", "lt"), ""),
        (eq("ok", True), "a"),
        (eq("ok", False), "b"),
        (eq("none", None), "b"),
        (eq("missing", "x"), ""),
        (eq("missing", "x", "ne"), "abc"),
        (eq(["nested", "deep"], "x"), "a"),
        (eq("tag", 'it\'s "é"\\'), "a"),
        (eq("tag", "🚀"), "b"),
        ({"type": "in", "key": "lang", "value": ["de", "fr", 7]}, "b"),
        ({"type": "nin", "key": "lang", "value": ["de"]}, "ac"),
        ({"type": "in", "key": "lang", "value": []}, ""),
        ({"type": "and", "filters": [eq("lang", "en"), eq("ok", True)]}, "a"),
        ({"type": "or", "filters": [eq("year", 2020), eq("year", "2020")]}, "bc"),
        ([eq("lang", "en"), eq("year", 1999)], "a"),
    ],
)
async def test_filters(filtered: Stack, condition: Any, expected: str) -> None:
    for mode in ("vector", "keyword", "hybrid"):
        found = await ask(filtered, "word", mode=mode, filters=condition, max_chunks=10)
        assert sorted(documents(found)) == sorted(expected), mode


@pytest.fixture
async def filtered(stack: Stack) -> Stack:
    await insert(stack, *(chunk(f"word {name}", name, **metadata) for name, metadata in ROWS.items()))
    return stack


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_chunks": 0}, "max_chunks"),
        ({"max_chunks": 10**6}, "max_chunks"),
        ({"mode": "magic"}, "params.mode"),
        ({"colour": 1}, "there are max_chunks"),
        ({"filters": {"type": "eq", "key": "a"}}, "filters.value"),
        ({"filters": {"type": "like", "key": "a", "value": "b"}}, "filters.type"),
        ({"filters": {"key": "a", "value": "b"}}, "filters.type"),
        ({"filters": eq('a"b', 1)}, "quotation mark"),
        ({"filters": eq("a", None, "gt")}, "compares numbers or strings"),
        ({"filters": eq("a", True, "gt")}, "compares numbers or strings"),
        ({"filters": {"type": "and", "filters": []}}, "filters.filters"),
        ({"filters": eq("a", 10**400)}, "too large"),
    ],
)
async def test_bad_params(stack: Stack, params: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        await ask(stack, "x", **params)


async def test_deep_filters_are_refused(stack: Stack) -> None:
    condition = eq("a", 1)
    for _ in range(30):
        condition = {"type": "and", "filters": [condition]}
    with pytest.raises(BadRequest, match="nested"):
        await ask(stack, "x", filters=condition)


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
METADATA = st.dictionaries(
    st.text(),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    ),
    max_size=4,
)


@hypothesis_settings(deadline=None)
@given(metadata=METADATA, text=st.text(min_size=1))
def test_rows_keep_chunks_as_they_are(metadata: dict[str, Any], text: str) -> None:
    given_chunk = Chunk(content=text, metadata=metadata)
    table = to_table([given_chunk], np.ones((1, 4), np.float32), None)
    assert table.schema.equals(schema(4))
    (row,) = table.to_pylist()
    assert to_chunk(row).model_dump() == given_chunk.model_dump()
    assert json.dumps(to_chunk(row).metadata) == json.dumps(metadata)


@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(metadata=METADATA)
async def test_any_metadata_comes_back(stack: Stack, metadata: dict[str, Any]) -> None:
    await insert(stack, Chunk(content="the same text", metadata={**metadata, "chunk_id": "1"}))
    (found,) = await ask(stack, "the same text")
    assert dump(found.chunk.metadata) == dump({**metadata, "chunk_id": "1"})


async def test_items_come_back(stack: Stack) -> None:
    items = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    given_chunk = Chunk.model_validate({"content": items, "metadata": {}})
    await insert(stack, given_chunk)
    (found,) = await ask(stack, items)
    assert found.chunk == given_chunk


async def test_an_image_needs_a_model_for_images(stack: Stack) -> None:
    image = {"type": "image", "image": {"data": "aGVsbG8="}}
    with pytest.raises(BadRequest, match="embeds text only"):
        await insert(stack, Chunk.model_validate({"content": image, "metadata": {}}))


async def test_bad_chunks_leave_nothing(stack: Stack) -> None:
    with pytest.raises(BadRequest, match=r"chunks\[1\].content is empty"):
        await insert(stack, chunk("good"), chunk("  "))
    assert await ask(stack, "good") == []
    await insert(stack)
    with pytest.raises(NotFound):
        await stack.vectors.insert("nope", [chunk("x")])
    with pytest.raises(NotFound):
        await stack.vectors.query(["db", "nope"], "x", QueryParams())
    with pytest.raises(BadRequest, match="at least one"):
        await stack.vectors.query([], "x", QueryParams())


async def test_a_text_longer_than_the_model_reads_is_found_by_its_end(stack: Stack) -> None:
    filler = " ".join(text for name, text in FACTS.items() if name != "llama") + " "
    await insert(stack, chunk(filler * 10 + FACTS["llama"] * 10, "long"), chunk(filler, "filler"))
    assert documents(await ask(stack, "animals of South America", mode="vector"))[0] == "long"


async def test_several_databases_at_once(facts: Stack) -> None:
    await facts.vector_dbs.register(RegisterVectorDbRequest(vector_db_id="other", embedding_model="mini"))
    await facts.vectors.insert(
        "other", [chunk("Alpacas live in Peru.", "alpaca"), chunk("Tin melts.", "tin")]
    )
    for mode in ("vector", "keyword", "hybrid"):
        found = await facts.vectors.query(
            ["db", "other", "db"], "llamas and alpacas live in Peru", parse_params({"mode": mode})
        )
        assert set(documents(found[:2])) == {"llama", "alpaca"}
        assert {one.vector_db_id for one in found[:2]} == {"db", "other"}


async def test_deleting_frees_the_disk(facts: Stack, settings: Settings) -> None:
    folder = settings.home / "lancedb"
    assert list(folder.iterdir())
    await facts.vector_dbs.delete("db")
    assert list(folder.iterdir()) == []
    with pytest.raises(NotFound):
        await ask(facts, "llama")
    await facts.vector_dbs.register(RegisterVectorDbRequest(vector_db_id="db", embedding_model="mini"))
    assert await ask(facts, "llama") == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embedding_model": "nope"}, "not registered"),
        ({"embedding_dimension": 100}, "gives 384 dimensions"),
        ({"provider_id": "faiss"}, "only 'lancedb'"),
    ],
)
async def test_registrations_are_checked(stack: Stack, fields: dict[str, Any], message: str) -> None:
    request = {"vector_db_id": "x", "embedding_model": "mini"} | fields
    with pytest.raises(BadRequest, match=message):
        await stack.vector_dbs.register(RegisterVectorDbRequest.model_validate(request))
    with pytest.raises(NotFound):
        await stack.vector_dbs.get("x")


async def test_registering_again_is_fine_and_keeps_the_chunks(facts: Stack) -> None:
    request = RegisterVectorDbRequest(vector_db_id="db", embedding_model="mini", embedding_dimension=384)
    assert await facts.vector_dbs.register(request) == await facts.vector_dbs.get("db")
    assert documents(await ask(facts, FACTS["moon"]))[0] == "moon"


async def test_two_processes_see_each_others_writes(
    facts: Stack, settings: Settings, embedder: Embedder
) -> None:
    async with opened(settings, embedder) as other:
        assert documents(await ask(other, FACTS["moon"]))[0] == "moon"
        await insert(other, chunk("Comets have tails.", "comet"))
        assert documents(await ask(facts, "Comets have tails."))[0] == "comet"
        writes = [
            insert(writer, chunk(f"note {n} of {name}", f"{name}-{n}"))
            for name, writer in (("a", facts), ("b", other))
            for n in range(8)
        ]
        same = [
            insert(writer, chunk("version", "same"), chunk("two", "same")) for writer in (facts, other) * 2
        ]
        await asyncio.gather(*writes, *same)
        found = await ask(other, "note version two", mode="vector", max_chunks=100)
        assert len(found) == len(FACTS) + 1 + 16 + 2
        await other.vector_dbs.delete("db")
        with pytest.raises(NotFound):
            await ask(facts, "note")
        with pytest.raises(NotFound):
            await insert(facts, chunk("late"))


async def test_a_database_that_is_deleted_meanwhile_is_not_found(
    facts: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = facts.lance.table

    async def late(name: str) -> Any:
        found = await table(name)
        await facts.vector_dbs.delete("db")
        return found

    monkeypatch.setattr(facts.lance, "table", late)
    with pytest.raises(NotFound):
        await facts.vectors.insert("db", [], documents=["tides"])


async def test_vectors_in_memory_are_those_of_the_table(
    facts: Stack, settings: Settings, embedder: Embedder
) -> None:
    async def both(stack: Stack) -> list[Any]:
        """The answer from the table (the first after a write), and from memory."""
        first, second, third = [await ask(stack, "animals and tides", mode="vector") for _ in range(3)]
        scores = [pytest.approx(one.score, abs=1e-5) for one in first]
        assert [one.score for one in second] == [one.score for one in third] == scores
        assert documents(first) == documents(second) == documents(third)
        return documents(first)

    async with opened(settings, embedder) as other:
        before = await both(facts)
        await insert(other, chunk("Animals wait for the tides.", "tides"))
        assert (await both(facts))[0] == "tides"
        assert await both(facts) == await both(other) != before
        await other.vectors.insert("db", [], documents=["tides"])
        assert await both(facts) == before
        await insert(facts, chunk("Animals and tides, for a second", "brief"), ttl_seconds=1)
        assert (await both(facts))[0] == "brief"
        await asyncio.sleep(1.1)
        assert await both(facts) == before


async def test_memory_for_vectors_is_bounded(facts: Stack) -> None:
    table = await facts.lance.table((await VectorIndexes(facts.database).find("db")).table_name)
    vector = np.zeros(384, np.float32)
    small = FlatVectors(max_bytes=1000)
    assert [await small.nearest(table, "t", vector, 3) for _ in range(4)].count(None) >= 2
    large = FlatVectors()
    assert await large.nearest(table, "t", vector, 3) is None
    found = await large.nearest(table, "t", vector, 3)
    assert found is not None
    assert len(found) == 3
    everything = await large.nearest(table, "t", vector, 100)
    assert everything is not None
    assert len(everything) == len(FACTS)


async def test_everything_survives_a_restart(settings: Settings, embedder: Embedder, tmp_path: Path) -> None:
    async with opened(settings, embedder) as before:
        await before.vector_dbs.register(RegisterVectorDbRequest(vector_db_id="db", embedding_model="mini"))
        await insert(before, chunk("kept", "k"))
    async with opened(settings, embedder) as after:
        assert documents(await ask(after, "kept")) == ["k"]


async def test_ten_thousand_chunks_at_once(stack: Stack) -> None:
    chunks = [chunk(f"number {n}", f"d{n}") for n in range(10_000)]
    await insert(stack, *chunks)
    assert documents(await ask(stack, "number 7777"))[0] == "d7777"
    await insert(stack, *chunks[:1000])
    found = await ask(stack, "number", mode="vector", max_chunks=1000)
    assert len({one.chunk.content for one in found}) == 1000


async def test_a_registration_that_was_killed_leaves_no_trace(stack: Stack, settings: Settings) -> None:
    indexes = VectorIndexes(stack.database)
    await create_table(stack.lance, await indexes.claim_table("half"), 8)  # and no resource
    with pytest.raises(NotFound):
        await stack.vector_dbs.get("half")
    request = RegisterVectorDbRequest(vector_db_id="half", embedding_model="mini")
    await asyncio.gather(*(stack.vector_dbs.register(request) for _ in range(4)))
    await stack.vectors.insert("half", [chunk("whole")])
    (found,) = await stack.vectors.query(["half"], "whole", QueryParams())
    assert found.chunk.content == "whole"


async def test_filters_are_bounded_in_all(stack: Stack) -> None:
    many = {"type": "in", "key": "k", "value": [f"value {n}" for n in range(1000)]}
    with pytest.raises(BadRequest, match="too many comparisons"):
        await ask(stack, "x", filters={"type": "or", "filters": [many] * 50})
