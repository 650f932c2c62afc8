"""The continuous batcher: an Engine that computes all live requests together, in a thread of its own.

Each step is one forward pass over one token of every live sequence and chunks of new prompts, then one
sampling step. The event loops only enqueue and receive.

Priorities: waiting interactive requests are admitted before batch ones. When every slot is taken, an
interactive request takes the slot of the batch request with the fewest tokens, which goes back to the head
of its queue and later goes on where it was, its tokens computed again. A pass of batch requests alone is
given up when an interactive one comes in, and run again later. Until that has its first token, batch ones
stand still; then they take part in its steps, and for QUICK_S in turns, so that the steps are short. So batch
work may fill the machine, interactive requests hardly wait for it, and no slot has to stay empty for them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import torch

from stack.engine import metrics
from stack.engine.base import (
    Generation,
    Meter,
    NoMeter,
    Output,
    Priority,
    Runner,
    Segment,
    Stop,
    Stopped,
)
from stack.engine.batching.outputs import Delivery, deliver
from stack.engine.batching.prefix import Slot, Slots
from stack.engine.batching.request import Request, check
from stack.engine.batching.sampling import NO_TOKEN, Row, draw
from stack.engine.batching.schedule import QUICK_S, Pace, Waiting, share
from stack.engine.batching.text_stream import TokenTexts, decoder
from stack.errors import NotReady, Overloaded, StackError
from stack.tracing import took

if TYPE_CHECKING:
    from collections.abc import Collection

    from opentelemetry.context import Context

    from stack.engine.batching.sampling import Logprobs

log = logging.getLogger(__name__)

Batch = list[tuple[Request, Segment]]


class Batcher:
    """Serves a Runner, which no one else may touch until `close` has returned.

    `max_queue` requests may wait beyond those that hold a slot; batch requests are refused when half of that
    is taken, so that they never keep interactive ones out. `prefill_budget` fixes the prompt tokens of
    a step; without it they follow the machine's speed.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Any,
        *,
        end_tokens: Collection[int],
        max_queue: int = 256,
        meter: Meter | None = None,
        prefill_budget: int | None = None,
    ) -> None:
        self.context_length = runner.context_length
        self._runner = runner
        self._decode, self._texts = decoder(tokenizer), TokenTexts(tokenizer)
        self._end_tokens = frozenset(end_tokens)
        self._limits = {
            Priority.INTERACTIVE: runner.slots + max_queue,
            Priority.BATCH: runner.slots + max_queue // 2,
        }
        self._meter: Meter = meter or NoMeter()
        self._pace = Pace(prefill_budget)
        self._slots = Slots(runner.slots, runner.reuses_prefixes)
        self._masks = torch.zeros(runner.slots, -(-runner.vocab_size // 32), dtype=torch.int32)
        self._live: list[Request] = []  # of the compute thread, in order of admission
        self._deliveries: list[Delivery] = []
        self._interactive = -QUICK_S  # when one was live last
        self._turn = 0
        self._quick = False  # whether this step, of one pass, was to be short
        self._stop = Stop()  # of a pass of batch requests
        self._stopped = False  # whether batch requests have yet to make up for a pass that was given up
        self._changed = threading.Condition()  # guards what follows
        self._waiting: Waiting[Request] = Waiting()
        self._calls: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._open = 0  # requests that neither ended nor were cancelled
        self._deadline: float | None = None  # closing: when to give up on what is live
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    # In the event loops.

    async def generate(self, request: Generation) -> AsyncGenerator[Output]:
        """Raises BadRequest, Overloaded or NotReady before the first Output."""
        check(request, self.context_length, self._runner.vocab_size)
        mine = Request(request, self.context_length, self._decode, self._texts)
        self._submit(mine)
        try:
            while True:
                output = await mine.outputs.get()
                yield output
                if output.finish is not None:
                    return
        finally:
            self._abandon(mine)

    async def call(self, function: Callable[[], None]) -> None:
        """Run it in the compute thread, between two steps. Raises what it raises."""
        future: Future[None] = Future()
        with self._changed:
            if self._deadline is not None:
                raise NotReady("the model is shutting down; try again later")
            self._calls.append((function, future))
            self._changed.notify()
        await asyncio.wrap_future(future)

    def close(self, grace_s: float = 0.0) -> None:
        """Take no more requests, let the others run for `grace_s`, fail the rest with NotReady."""
        with self._changed:
            self._deadline = time.monotonic() + grace_s
            self._changed.notify()
        self._thread.join()

    def _submit(self, request: Request) -> None:
        with self._changed:
            if self._deadline is not None:
                raise NotReady("the model is shutting down; try again later")
            if self._open >= self._limits[request.generation.priority]:
                raise Overloaded(
                    f"the model already serves or queues {self._open} requests, its limit; try again later"
                )
            self._open += 1
            self._waiting.append(request, request.generation.priority)
            if request.generation.priority is Priority.INTERACTIVE:
                self._stop.set()
            self._changed.notify()

    def _abandon(self, request: Request) -> None:
        with self._changed:
            if request.ended:
                return
            request.cancelled = True
            self._waiting.remove(request)
            self._count_out(request)
            self._changed.notify()

    def _count_out(self, request: Request) -> None:
        """With the lock held."""
        if not request.ended:
            request.ended = True
            self._open -= 1

    # In the compute thread.

    def _run(self) -> None:
        while self._work_to_do():
            self._make_calls()
            started = time.perf_counter()
            try:
                step = self._step()
            except Exception as error:  # outside of any one batch: all that is live shares the failure
                self._fail(list(self._live), error)
                step = None
            if self._deliveries:
                self._hand_over()
            if step is not None:
                seconds = time.perf_counter() - started
                self._pace.observe(seconds, *step)
                if self._quick:
                    self._pace.observe_quick(seconds, sum(step))
                self._report(seconds, step[0])
        with self._changed:
            rest = [*self._live, *self._waiting.clear()]
        for request in rest:
            self._end(request, NotReady("the model is shutting down; try again later"))
        self._hand_over()
        self._make_calls()

    def _make_calls(self) -> None:
        while self._calls:
            function, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                function()
            except Exception as error:  # the caller's
                future.set_exception(error)
            else:
                future.set_result(None)

    def _work_to_do(self) -> bool:
        """Waits until there is some. False: closed, and the grace is over."""
        with self._changed:
            while not (self._live or self._waiting or self._calls) and self._deadline is None:
                self._changed.wait()
            idle = not self._live and not self._waiting
            return self._deadline is None or (not idle and time.monotonic() < self._deadline)

    def _step(self) -> tuple[int, int] | None:
        """One step for all. Returns how many prompt tokens it had, and how many rows that wrote a token;
        None when there was nothing to do, or it was given up."""
        for request in [request for request in self._live if request.cancelled]:
            self._leave(request)
        self._admit()
        batches = self._plan()
        if not all(self._compute(batch) for batch in batches):
            return None
        sizes = [len(segment.tokens) for batch in batches for _, segment in batch]
        return (sum(size for size in sizes if size > 1), sizes.count(1)) if sizes else None

    def _admit(self) -> None:
        while True:
            with self._changed:
                request = self._waiting.peek()
            if request is None:
                return
            generation = request.generation
            slot = self._slots.take(
                request.tokens, generation.priority, generation.media is None, generation.adapter
            )
            if slot is None:
                victim = self._victim() if generation.priority is Priority.INTERACTIVE else None
                if victim is None:
                    return
                self._preempt(victim)
                continue
            with self._changed:
                if not self._waiting.remove(request):  # cancelled in the meantime
                    self._slots.release(slot)
                    continue
            request.slot = slot
            request.admitted = request.admitted or time.perf_counter()
            self._live.append(request)
            self._meter.count(metrics.REUSED_TOKENS, slot.computed)

    def _victim(self) -> Request | None:
        batch = [request for request in self._live if request.generation.priority is Priority.BATCH]
        return min(batch, key=lambda request: len(request.tokens), default=None)

    def _preempt(self, request: Request) -> None:
        self._leave(request)
        with self._changed:
            if not request.cancelled:
                self._waiting.put_back(request, request.generation.priority)
        self._meter.count(metrics.PREEMPTIONS)

    def _plan(self) -> list[Batch]:
        """What to compute now: one pass for all, and one for each prompt with media.

        Batch requests stand still while an interactive one waits for its first token.
        """
        together: Batch = []
        alone: list[Batch] = []
        prompts: list[tuple[Request, Slot]] = []
        urgent = any(_is_urgent(request) for request in self._live)
        for request in self._live:
            slot = request.slot
            assert slot is not None
            if urgent and slot.priority is Priority.BATCH:
                continue
            if slot.started and slot.remaining == 1:
                together.append((request, request.segment(slot, 1)))
            elif request.media is not None and slot.computed == 0:
                slot.started = True
                alone.append([(request, request.segment(slot, slot.remaining))])
            elif slot.started or self._start(slot):
                prompts.append((request, slot))
        prompts.sort(key=lambda prompt: prompt[1].priority)
        waiting = [slot.remaining for _, slot in prompts]
        budget = self._pace.budget(len(together))
        hurries = self._hurries() and not urgent
        self._quick = hurries and not alone
        if hurries:
            quick = min(self._pace.quick, budget + len(together))
            together = self._take_turns(together, quick - min(sum(waiting), quick // 2))
            budget = max(quick - len(together), 1)
        shares = share(waiting, budget)
        together += [
            (request, request.segment(slot, size))
            for (request, slot), size in zip(prompts, shares, strict=True)
            if size
        ]
        return [together, *alone] if together else alone

    def _hurries(self) -> bool:
        """Whether chats come in, so that steps of batch requests have to be short."""
        if any(request.generation.priority is Priority.INTERACTIVE for request in self._live):
            self._interactive = time.monotonic()
        return time.monotonic() - self._interactive < QUICK_S

    def _take_turns(self, rows: Batch, count: int) -> Batch:
        """So many of the rows that write, among them all of interactive requests."""
        chats = [row for row in rows if row[0].generation.priority is Priority.INTERACTIVE]
        others = [row for row in rows if row[0].generation.priority is Priority.BATCH]
        left = max(count - len(chats), 1)
        if len(others) <= left:
            return rows
        first = self._turn % len(others)
        self._turn = first + left
        return chats + [*others[first:], *others[:first]][:left]

    def _start(self, slot: Slot) -> bool:
        """Take the prompt's head from another slot. False: another one is computing it, wait for that."""
        head = self._slots.head(slot)
        if head.coming:
            return False
        if head.source is not None:
            self._runner.copy_prefix(head.source.index, slot.index, head.tokens)
            self._meter.count(metrics.REUSED_TOKENS, head.tokens - slot.computed)
            slot.computed = head.tokens
        slot.started = True
        return True

    def _compute(self, batch: Batch) -> bool:
        """False: it was given up for an interactive request."""
        try:
            logits = self._runner.forward([segment for _, segment in batch], self._stop_of(batch))
            for request, segment in batch:
                assert request.slot is not None
                request.slot.computed += len(segment.tokens)
            drawing = [request for request, segment in batch if segment.wants_logits]
            if drawing:
                rows = [self._row(request) for request in drawing]
                tokens, logprobs = draw(logits, rows)
        except Stopped:
            self._meter.count(metrics.STOPPED_STEPS)
            self._stopped = True
            return False
        except Exception as error:  # whatever it was, those that are not in this batch must go on
            self._fail([request for request, _ in batch], error)
            return True
        if any(request.generation.priority is Priority.BATCH for request, _ in batch):
            self._stopped = False
        if drawing:
            self._meter.count(metrics.DECODE_TOKENS, len(drawing))
            for request, token, chosen in zip(drawing, tokens, logprobs, strict=True):
                self._take(request, token, chosen)
        return True

    def _stop_of(self, batch: Batch) -> Stop | None:
        """What ends the pass when an interactive request comes in. None when nothing may.

        It may not when it has one already, nor when the one before was given up: many chats make batch
        requests slow, but do not keep them from going on.
        """
        if self._stopped or any(request.generation.priority is Priority.INTERACTIVE for request, _ in batch):
            return None
        with self._changed:
            self._stop.set(self._waiting.waits(Priority.INTERACTIVE))
        return self._stop

    def _row(self, request: Request) -> Row:
        """How the request draws; ends it when its constraint raises."""
        constraint, row = request.generation.constraint, request.row
        if constraint is None or request.slot is None:
            return row
        mask = self._masks[request.slot.index].zero_()
        try:
            constraint.fill_mask(mask)
        except Exception as error:  # a constraint is the request's own: no other may suffer from it
            self._end(request, _constraint_error(error))
            return Row()
        row.mask = mask
        return row

    def _take(self, request: Request, token: int, logprobs: Logprobs | None) -> None:
        if request.slot is None or request.cancelled:
            return
        if token == NO_TOKEN:
            request.slot.forget()  # whatever made it so may be in the cache
            self._end(request, _no_token(request))
            return
        try:
            output = request.advance(token, logprobs, self._end_tokens)
        except Exception as error:  # as in _row
            self._end(request, _constraint_error(error))
            return
        now = time.perf_counter()
        if request.first_token is None:
            request.first_token = now
            self._meter.observe(metrics.TIME_TO_FIRST_TOKEN, now - request.arrived)
        if output.finish is None:
            self._deliveries.append((request.outputs, output))
            return
        if request.generated > 1:
            self._meter.observe(
                metrics.TIME_PER_OUTPUT_TOKEN, (now - request.first_token) / (request.generated - 1)
            )
        self._end(request, output)

    def _end(self, request: Request, last: Output | StackError) -> None:
        if request.trace is not None:
            _tell(request, request.trace)
        with self._changed:
            self._count_out(request)
        self._leave(request)
        self._deliveries.append((request.outputs, last))

    def _leave(self, request: Request) -> None:
        """Give the slot back."""
        if request.slot is not None:
            self._live.remove(request)
            self._slots.release(request.slot)
            request.slot = None

    def _fail(self, requests: list[Request], error: Exception) -> None:
        log.error("A step of %d sequences failed", len(requests), exc_info=error)
        self._meter.count(metrics.FAILED_STEPS)
        told = _step_error(error)
        for request in requests:
            if request.slot is not None:
                request.slot.forget()
                self._end(request, told)
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()

    def _hand_over(self) -> None:
        gone = deliver(self._deliveries)
        self._deliveries = []
        for request in [request for request in self._live if request.outputs in gone]:
            self._abandon(request)

    def _report(self, seconds: float, prompt_tokens: int) -> None:
        self._meter.gauge(metrics.QUEUE_LENGTH, len(self._waiting))
        self._meter.gauge(metrics.BATCH_SIZE, len(self._live))
        self._meter.observe(metrics.STEP_SECONDS, seconds)
        if prompt_tokens:
            self._meter.count(metrics.PREFILL_TOKENS, prompt_tokens)


def _is_urgent(request: Request) -> bool:
    return request.generation.priority is Priority.INTERACTIVE and request.first_token is None


def _step_error(error: Exception) -> StackError:
    if isinstance(error, StackError):
        return error
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return Overloaded("the model ran out of memory; send a shorter prompt, or try again with less load")
    return StackError("the model failed to compute this request; the server's log says why")


def _constraint_error(error: Exception) -> StackError:
    if isinstance(error, StackError):
        return error
    log.error("A constraint failed", exc_info=error)
    return StackError("the output's grammar failed during generation; the server's log says why")


def _no_token(request: Request) -> StackError:
    if request.generation.constraint is not None:
        return StackError("the output's grammar allows no further token here; simplify the schema or grammar")
    return StackError("the model computed no valid probabilities for this request (not a number)")


def _tell(request: Request, trace: Context) -> None:
    """Where the request's time went: waiting for a slot, its prompt, its answer."""
    wall, now = time.time_ns(), time.perf_counter()

    def at(seconds: float) -> int:
        return wall - int((now - seconds) * 1e9)

    admitted = request.admitted or now
    first = request.first_token or now
    took("queue", trace, at(request.arrived), at(admitted))
    if request.admitted:
        took("prefill", trace, at(admitted), at(first))
    if request.first_token is not None:
        took("decode", trace, at(first), wall)
