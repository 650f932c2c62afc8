"""Which slot a prompt gets, and where the beginning of it comes from."""

from __future__ import annotations

import random

from stack.engine.base import Priority
from stack.engine.batching.prefix import MIN_REUSE, Slot, Slots, common_prefix

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH


def tokens(size: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(1000), k=size)


def take(slots: Slots, prompt: list[int], priority: Priority = INTERACTIVE, shared: bool = True) -> Slot:
    slot = slots.take(prompt, priority, shared)
    assert slot is not None
    return slot


def compute(slot: Slot, count: int | None = None) -> Slot:
    slot.started = True
    slot.computed = len(slot.tokens) if count is None else count
    return slot


def test_common_prefix_is_what_a_loop_finds() -> None:
    draw = random.Random(0)
    for _ in range(500):
        same = draw.choice([0, 3, MIN_REUSE, draw.randrange(300)])
        head = tokens(same)
        a, b = (head + [draw.randrange(2) for _ in range(draw.randrange(50))] for _ in range(2))
        limit = min(len(a), len(b), draw.choice([1000, 20, 100]))
        length = next((i for i in range(limit) if a[i] != b[i]), limit)
        assert common_prefix(a, b, limit) == (length if length >= MIN_REUSE else 0)


def test_a_prompt_goes_on_where_most_of_it_is() -> None:
    slots = Slots(3, reuse=True)
    first, second = (compute(take(slots, tokens(100, seed))) for seed in (1, 2))
    slots.release(first)
    slots.release(second)
    again = take(slots, [*tokens(100, 2), 7, 8])
    assert (again.index, again.computed) == (second.index, 100)


def test_the_last_token_is_always_computed() -> None:
    slots = Slots(1, reuse=True)
    slots.release(compute(take(slots, tokens(50))))
    assert take(slots, tokens(50)).computed == 49


def test_a_small_share_leaves_the_slot_to_its_conversation() -> None:
    slots = Slots(2, reuse=True)
    old = compute(take(slots, tokens(100)))
    slots.release(old)
    new = take(slots, tokens(30) + tokens(40, 1))
    assert new.index != old.index
    assert slots.head(new) == (old, 30, False)


def test_empty_slots_come_first_then_the_longest_unused() -> None:
    slots = Slots(3, reuse=True)
    taken = [compute(take(slots, tokens(40, seed))) for seed in range(3)]
    assert slots.take(tokens(5), INTERACTIVE, True) is None
    for i in (1, 0, 2):
        slots.release(taken[i])
    assert [take(slots, tokens(40, 10 + i)).index for i in range(3)] == [1, 0, 2]
    fresh = Slots(2, reuse=True)
    slots.release(compute(take(fresh, tokens(40))))
    assert take(fresh, tokens(40, 1)).computed == 0


def test_a_prompt_waits_for_a_head_that_is_being_computed() -> None:
    slots = Slots(4, reuse=True)
    leader = compute(take(slots, tokens(200)), 0)
    follower = take(slots, tokens(150) + tokens(20, 1))
    assert slots.head(follower).coming
    compute(leader, 100)
    assert slots.head(follower).coming
    compute(leader, 150)
    assert slots.head(follower) == (leader, 150, False)


def test_nobody_waits_for_one_that_waits_or_goes_later() -> None:
    slots = Slots(4, reuse=True)
    take(slots, tokens(200))  # not started
    assert slots.head(take(slots, tokens(200))) == (None, 0, False)
    compute(take(slots, tokens(100, 3), BATCH), 0)
    assert not slots.head(take(slots, tokens(100, 3), INTERACTIVE)).coming


def test_images_are_not_shared() -> None:
    slots = Slots(3, reuse=True)
    seen = compute(take(slots, tokens(100), shared=False))
    assert slots.head(take(slots, tokens(100))) == (None, 0, False)
    slots.release(seen)
    assert seen.computed == 0
    without = Slots(2, reuse=False)
    without.release(compute(take(without, tokens(100))))
    assert take(without, tokens(100)).computed == 0


def test_an_adapter_never_shares_another_ones_keys() -> None:
    slots = Slots(3, reuse=True)
    prompt = tokens(100)

    def take_for(adapter: str | None) -> Slot:
        slot = slots.take(list(prompt), INTERACTIVE, True, adapter)
        assert slot is not None
        return slot

    base = compute(take_for(None))
    mine = take_for("mine")
    assert mine.computed == 0
    assert slots.head(mine).source is None, "a live slot of the base is not copied either"
    compute(mine)
    yours = take_for("yours")
    assert (yours.computed, slots.head(yours).tokens) == (0, 0)
    slots.release(base)
    slots.release(mine)
    again = take_for("mine")
    assert (again, again.computed) == (mine, 99)
    slots.release(again)
    assert (take_for(None), base.computed) == (base, 99)
