"""Which tokens each slot's cache holds, and how much of a new prompt is already computed somewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from stack.engine.base import Priority

MIN_REUSE = 16  # tokens; computing fewer is as cheap as copying them


@dataclass(slots=True, eq=False)
class Slot:
    """One sequence's place in the cache, and the tokens of the sequence that has it or had it last."""

    index: int
    tokens: list[int] = field(default_factory=list)  # a live sequence's own list: grows with it
    computed: int = 0  # how many of the tokens are in the cache
    live: bool = False
    started: bool = False  # a live sequence computes from `computed` on; before, it may wait for a head
    adapter: str | None = None  # whose keys and values these are
    shared: bool = True  # other prompts may use it; not so when images stand behind the tokens
    priority: Priority = Priority.INTERACTIVE
    released: int = 0  # a clock: the longest unused slot is taken first

    @property
    def remaining(self) -> int:
        return len(self.tokens) - self.computed

    def forget(self) -> None:
        """The cache's content is unknown or must not be used again."""
        self.tokens, self.computed = [], 0


class Head(NamedTuple):
    """The beginning of a prompt in another slot's cache. tokens 0: there is none worth copying."""

    source: Slot | None
    tokens: int
    coming: bool  # another sequence is computing a longer one right now: wait for it


class Slots:
    """All slots of a runner."""

    def __init__(self, count: int, reuse: bool) -> None:
        self.all = [Slot(i) for i in range(count)]
        self._reuse = reuse
        self._clock = 0

    def take(
        self, tokens: list[int], priority: Priority, shared: bool, adapter: str | None = None
    ) -> Slot | None:
        """A free slot for a sequence, with `computed` set to what can stay; None when all are live."""
        free = [slot for slot in self.all if not slot.live]
        if not free:
            return None
        heads = {slot.index: self._common(slot, tokens, shared, adapter) for slot in free}
        best = max(free, key=lambda slot: heads[slot.index])
        oldest = min(free, key=lambda slot: (slot.computed > 0, slot.released))
        # A conversation that goes on takes its slot again. A prompt that shares a lesser part with a slot
        # copies that part (see `head`), so that the slot's own conversation may go on, too.
        slot = best if 2 * heads[best.index] >= best.computed else oldest
        slot.computed = heads[slot.index] if heads[slot.index] >= MIN_REUSE else 0
        slot.tokens, slot.priority, slot.shared, slot.adapter = tokens, priority, shared, adapter
        slot.live, slot.started = True, False
        return slot

    def release(self, slot: Slot) -> None:
        """The sequence has ended; its tokens stay for later prompts."""
        self._clock += 1
        slot.live, slot.released = False, self._clock
        slot.tokens = slot.tokens[: slot.computed]
        if not slot.shared:
            slot.forget()

    def head(self, slot: Slot) -> Head:
        """The longest beginning of a live slot's tokens elsewhere, if longer by MIN_REUSE than its own."""
        least = slot.computed + MIN_REUSE
        source, longest, coming = None, 0, 0
        for other in self.all:
            if other is slot:
                continue
            common = self._common(other, slot.tokens, slot.shared, slot.adapter, known=True)
            if common < least:
                continue
            if min(common, other.computed) > longest:
                source, longest = other, min(common, other.computed)
            if other.live and other.started and other.priority <= slot.priority:
                coming = max(coming, common)
        if coming >= max(least, longest + MIN_REUSE):
            return Head(None, 0, True)
        return Head(source, longest, False) if longest >= least else Head(None, 0, False)

    def _common(
        self, slot: Slot, tokens: list[int], shared: bool, adapter: str | None, known: bool = False
    ) -> int:
        """Tokens at the start of both; the last of `tokens` is always computed anew, for its logits."""
        if not (self._reuse and slot.shared and shared) or slot.adapter != adapter:
            return 0
        limit = len(slot.tokens) if known else slot.computed
        return common_prefix(slot.tokens, tokens, min(limit, len(tokens) - 1))


def common_prefix(a: list[int], b: list[int], limit: int) -> int:
    """How many tokens both begin with, at most `limit`. Compares slices: faster than a loop by far."""
    if limit < MIN_REUSE or a[:MIN_REUSE] != b[:MIN_REUSE]:
        return 0
    same, size = MIN_REUSE, limit - MIN_REUSE
    while size > 0:
        if a[same : same + size] == b[same : same + size]:
            same += size
            size = min(size, limit - same)
        else:
            size //= 2
    return same
