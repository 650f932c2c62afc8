"""Who waits, who is next, and how many prompt tokens a step may compute."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from stack.engine.base import Priority

T = TypeVar("T")

STEP_S = 0.2  # aim for a step with prompts: others' tokens come so often, and a new prompt waits so long
MIN_BUDGET, MAX_BUDGET = 32, 8192
SMALLEST_SHARE = 64
QUICK_STEP_S = 0.08  # aim for a step of batch requests while chats come in: the next one waits so long. It is
# twice what the fewest rows take where that is more: the weights are read for few as they are for many
FEWEST_QUICK = 4  # tokens of such a step
QUICK_S = 10.0  # after an interactive request the next one is expected for so long


class Waiting(Generic[T]):
    """First in, first out within a priority; interactive before batch."""

    def __init__(self) -> None:
        self._queues: dict[Priority, deque[T]] = {priority: deque() for priority in Priority}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def append(self, item: T, priority: Priority) -> None:
        self._queues[priority].append(item)

    def put_back(self, item: T, priority: Priority) -> None:
        """As the next of its priority."""
        self._queues[priority].appendleft(item)

    def waits(self, priority: Priority) -> bool:
        return bool(self._queues[priority])

    def peek(self) -> T | None:
        return next((queue[0] for queue in self._queues.values() if queue), None)

    def remove(self, item: T) -> bool:
        for queue in self._queues.values():
            if item in queue:
                queue.remove(item)
                return True
        return False

    def clear(self) -> list[T]:
        items = [item for queue in self._queues.values() for item in queue]
        for queue in self._queues.values():
            queue.clear()
        return items


def share(remaining: Sequence[int], budget: int) -> list[int]:
    """How many of each prompt's remaining tokens to compute now, oldest prompt first.

    Each takes at most half of what is left of the budget, so that a short prompt behind a long one gets its
    first token soon; what nobody took then goes to the oldest. All are computed when that is little more than
    the budget: a step for the rest would take longer.
    """
    if 2 * sum(remaining) <= 3 * budget:
        return list(remaining)
    shares = []
    left = budget
    for tokens in remaining:
        taken = min(tokens, left, max(SMALLEST_SHARE, left // 2))
        shares.append(taken)
        left -= taken
    for i, tokens in enumerate(remaining):
        more = min(tokens - shares[i], left)
        shares[i] += more
        left -= more
    return shares


class Pace:
    """The budget of prompt tokens for a step, from how long steps took: about STEP_S in all on any machine.

    Where rows that write take nearly as long or longer, prompts still get half of STEP_S.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._token_s: float | None = None
        self._writing_s: dict[int, float] = {}  # of a step without prompts, by the bits of its number of rows
        self._quick: float | None = None  # tokens of a short step

    def budget(self, rows: int) -> int:
        """For a step in which so many rows write a token."""
        if self._fixed is not None:
            return self._fixed
        if self._token_s is None:
            return 256
        seconds = max(STEP_S - self._writing(rows), STEP_S / 2)
        return int(min(max(seconds / self._token_s, MIN_BUDGET), MAX_BUDGET))

    @property
    def quick(self) -> int:
        """How many tokens, of prompts and of rows that write, make a short step.

        Until one was seen, a row is taken to cost as much as a token of a prompt.
        """
        return round(self._quick_tokens())

    def observe(self, seconds: float, prompt_tokens: int, rows: int) -> None:
        """A step has taken so long; moving averages forget half after two or three steps."""
        if prompt_tokens == 0:
            self._writing_s[rows.bit_length()] = _toward(seconds, self._writing_s.get(rows.bit_length()))
        elif prompt_tokens >= MIN_BUDGET // 2:
            token_s = max(seconds - self._writing(rows), 1e-6) / prompt_tokens
            self._token_s = _toward(token_s, self._token_s)

    def observe_quick(self, seconds: float, tokens: int) -> None:
        """A step that was to be short has taken so long: the next ones have fewer tokens, or more.

        A step that took less time because it had less to do says nothing.
        """
        if seconds > self._quick_s or tokens >= self.quick:
            self._quick = _toward(tokens * self._quick_s / seconds, self._quick_tokens())

    def _quick_tokens(self) -> float:
        tokens = self._quick
        if tokens is None:
            tokens = SMALLEST_SHARE if self._token_s is None else self._quick_s / self._token_s
        return min(max(tokens, FEWEST_QUICK), MAX_BUDGET)

    @property
    def _quick_s(self) -> float:
        return max(QUICK_STEP_S, 2 * min(self._writing_s.values(), default=0.0))

    def _writing(self, rows: int) -> float:
        """Seconds that so many rows take; those of fewer rows when it is not known."""
        known = [bits for bits in self._writing_s if bits <= rows.bit_length()]
        return self._writing_s[max(known)] if rows and known else 0.0


def _toward(seen: float, average: float | None) -> float:
    return seen if average is None else average + 0.25 * (seen - average)
