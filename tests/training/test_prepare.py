"""Rows of a dataset -> Arrow files of token ids in the storage."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stack.errors import BadRequest
from stack.training import prepare as preparing
from stack.training.data import EpochSampler, open_split
from stack.training.prepare import Counts, prepare
from tests.training.conftest import ROWS, Workshop


async def test_rows_become_ids_in_their_order(workshop: Workshop, tmp_path: Path) -> None:
    plan = await workshop.plan()
    context = await workshop.context(plan)
    counts = await prepare(plan, "train", plan.data, context, workshop.storage)
    rows = await asyncio.to_thread(open_split, plan, "train", workshop.storage, tmp_path)
    assert (len(rows), counts.rows, counts.dropped) == (12, 12, 0)
    assert counts.tokens == sum(map(len, rows["input_ids"]))
    learned = [sum(label != -100 for label in labels) for labels in rows["labels"]]
    # "It is 0." in bytes, <|im_end|> and a newline
    assert (learned[0], counts.learned) == (len("It is 0.") + 2, sum(learned))
    assert context.shown["done"] == 12


async def test_pairs_become_three_columns(workshop: Workshop, tmp_path: Path) -> None:
    plan = await workshop.plan(method="dpo")
    await prepare(plan, "train", plan.data, await workshop.context(plan), workshop.storage)
    rows = await asyncio.to_thread(open_split, plan, "train", workshop.storage, tmp_path)
    assert rows.column_names == ["prompt_ids", "chosen_ids", "rejected_ids"]
    assert len(rows[3]["chosen_ids"]) == len("It is 6.") + 2


async def test_several_shards_are_one_dataset(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "SHARD_ROWS", 5)
    plan = await workshop.plan()
    counts = await prepare(plan, "train", plan.data, await workshop.context(plan), workshop.storage)
    rows = await asyncio.to_thread(open_split, plan, "train", workshop.storage, tmp_path)
    assert counts.rows == len(rows) == 12
    assert len(await workshop.storage.find(plan.work_folder)) == 4  # three shards and the manifest


async def test_what_is_prepared_is_not_prepared_again(workshop: Workshop) -> None:
    plan = await workshop.plan()
    context = await workshop.context(plan)
    first = await prepare(plan, "train", plan.data, context, workshop.storage)
    await workshop.datasets.delete("rows")  # so that reading it again would fail
    assert await prepare(plan, "train", plan.data, context, workshop.storage) == first


async def test_a_row_that_cannot_be_used_is_named(workshop: Workshop) -> None:
    data = await workshop.data([*ROWS, {"messages": [{"role": "user", "content": "?"}]}])
    plan = await workshop.plan(data=data)
    with pytest.raises(BadRequest, match=r"row 12 \(the first is 0\): has no message of the assistant"):
        await prepare(plan, "train", data, await workshop.context(plan), workshop.storage)


async def test_rows_of_which_nothing_is_left_are_dropped(workshop: Workshop) -> None:
    plan = await workshop.plan(max_tokens=16)
    with pytest.raises(BadRequest, match="has no row from which anything can be learned"):
        await prepare(plan, "train", plan.data, await workshop.context(plan), workshop.storage)


def test_counts_add_up() -> None:
    assert Counts(*map(sum, zip(Counts(1, 2, 3, 4), Counts(1, 1, 1, 1), strict=True))) == Counts(2, 3, 4, 5)


def test_an_epoch_has_its_own_order_and_always_the_same() -> None:
    sampler, again = (EpochSampler(10, shuffle=True, seed=1) for _ in range(2))
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    again.set_epoch(1)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert list(again) == second
    assert list(EpochSampler(10, shuffle=True, seed=2)) != first


def test_a_limited_epoch_takes_other_rows_each_time() -> None:
    sampler = EpochSampler(10, shuffle=True, seed=1, limit=4)
    first = list(sampler)
    sampler.set_epoch(1)
    assert (len(sampler), len(first)) == (4, 4)
    assert set(sampler) != set(first)
    assert list(EpochSampler(10, shuffle=False, seed=1, limit=4)) == [0, 1, 2, 3]
