"""The batcher over a Runner whose every step is checked; see test_exact.py for real models."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Sequence

import pytest
import torch
from torch import Tensor

from stack.engine import metrics
from stack.engine.base import FinishReason, Generation, Output, Priority, Sampling, Segment
from stack.errors import BadRequest, ContextTooLong, NotReady, Overloaded, StackError
from tests.engine.batching.asking import CountingMeter, Make, collect, prompt_of, until
from tests.engine.toy import END, VOCABULARY, ToyRunner, greedy, toy_tokenizer


async def test_one_request(make: Make) -> None:
    prompt = prompt_of(10)
    output = await collect(make(ToyRunner()), Generation(prompt, max_tokens=20))
    assert output.token_ids == greedy(prompt, 20)
    assert output.text == toy_tokenizer().decode(output.token_ids)
    assert output.finish is FinishReason.LENGTH


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("budget", [3, 70, None])
async def test_mixed_arrivals_give_what_each_gives_alone(make: Make, reuse: bool, budget: int | None) -> None:
    """Shared heads, continued conversations, priorities, cancellations: 60 requests over 5 slots."""
    draw = random.Random(1)
    heads = [prompt_of(40, seed) for seed in range(3)]
    runner, meter = ToyRunner(5, 256, reuses_prefixes=reuse), CountingMeter()
    batcher = make(runner, prefill_budget=budget, meter=meter)

    async def one(i: int) -> None:
        await asyncio.sleep(draw.random() * 0.1)
        prompt = draw.choice(heads)[: draw.randrange(1, 41)] + prompt_of(draw.randrange(60), 100 + i)
        if draw.random() < 0.2:
            stream = batcher.generate(Generation(prompt))
            async for _ in stream:
                if draw.random() < 0.3:
                    break
            await stream.aclose()
            return
        priority = draw.choice(list(Priority))
        output = await collect(batcher, Generation(prompt, max_tokens=15, priority=priority))
        assert output.token_ids == greedy(prompt, 15)
        more = prompt + output.token_ids + prompt_of(5, i)
        assert (await collect(batcher, Generation(more, max_tokens=5))).token_ids == greedy(more, 5)

    await asyncio.gather(*(one(i) for i in range(60)))
    assert (meter.counts[metrics.REUSED_TOKENS] > 500) == reuse
    assert max(len(step) for step in runner.steps) >= (2 if budget == 3 else 4)


async def test_end_tokens_and_their_text(make: Make) -> None:
    prompt = prompt_of(5)
    said = greedy(prompt, 10)
    output = await collect(make(ToyRunner(), end_tokens=[END, said[4]]), Generation(prompt))
    until_end = said[: said.index(said[4]) + 1]
    assert output.token_ids == until_end
    assert output.text == toy_tokenizer().decode(until_end[:-1])
    assert output.finish is FinishReason.STOP


async def test_stop_strings(make: Make) -> None:
    prompt = prompt_of(5)
    text = toy_tokenizer().decode(greedy(prompt, 30))
    output = await collect(make(ToyRunner()), Generation(prompt, max_tokens=30, stop=("nowhere", text[7:11])))
    assert output.text == text[:7]
    assert output.finish is FinishReason.STOP
    assert len(output.token_ids) == 11


async def test_the_context_ends_generation(make: Make) -> None:
    batcher = make(ToyRunner(context_length=32))
    output = await collect(batcher, Generation(prompt_of(30)))
    assert (len(output.token_ids), output.finish) == (2, FinishReason.LENGTH)
    output = await collect(batcher, Generation(prompt_of(32)))
    assert (len(output.token_ids), output.finish) == (1, FinishReason.LENGTH)
    output = await collect(batcher, Generation(prompt_of(30), max_tokens=10**9))
    assert len(output.token_ids) == 2


@pytest.mark.parametrize(
    ("generation", "error", "words"),
    [
        (Generation([]), BadRequest, "empty"),
        (Generation([1] * 33), ContextTooLong, "33 tokens, the model takes 32"),
        (Generation([VOCABULARY]), BadRequest, "vocabulary of 64"),
        (Generation([-1]), BadRequest, "vocabulary of 64"),
        (Generation([1], max_tokens=-1), BadRequest, "max_tokens is -1"),
        (Generation([1], stop=("",)), BadRequest, "stop string is empty"),
        (Generation([1], stop=("x",) * 65), BadRequest, "at most 64"),
        (Generation([1], top_logprobs=-1), BadRequest, "top_k of logprobs"),
        (Generation([1], sampling=Sampling(temperature=float("nan"))), BadRequest, "temperature is nan"),
    ],
)
async def test_what_cannot_be_computed_is_refused_at_once(
    make: Make, generation: Generation, error: type[StackError], words: str
) -> None:
    runner = ToyRunner(context_length=32)
    with pytest.raises(error, match=words):
        await anext(make(runner).generate(generation))
    assert runner.steps == []


async def test_seeds_and_logprobs_are_a_requests_own(make: Make) -> None:
    batcher = make(ToyRunner(8))
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=11)
    mine = Generation(prompt_of(5), sampling=sampling, max_tokens=12, top_logprobs=3)
    alone = await collect(batcher, mine)
    others = [
        Generation(prompt_of(5, seed), sampling=Sampling(temperature=1.0), max_tokens=12) for seed in range(7)
    ]
    together, *rest = await asyncio.gather(*(collect(batcher, each) for each in (mine, *others)))
    assert together.token_ids == alone.token_ids
    assert together.logprobs == alone.logprobs
    assert all(other.logprobs == [] for other in rest)
    assert [entry.token for entry in alone.logprobs] == list(alone.text)
    for i, entry in enumerate(alone.logprobs):
        logits = torch.log_softmax(_logits_after(mine.prompt, alone.token_ids[:i]), -1)
        assert entry.logprob == pytest.approx(float(logits[alone.token_ids[i]]), abs=1e-5)
        assert list(entry.top.values()) == pytest.approx(logits.topk(3).values.tolist(), abs=1e-5)


def _logits_after(prompt: Sequence[int], said: Sequence[int]) -> Tensor:
    from tests.engine.toy import next_logits

    return next_logits([*prompt, *said])


class Only:
    """A Constraint: these tokens in this order, then complete."""

    def __init__(self, tokens: Sequence[int], fail: str = "") -> None:
        self.tokens, self.at, self.fail = list(tokens), 0, fail

    def fill_mask(self, mask: Tensor) -> None:
        if self.fail == "fill":
            raise RuntimeError("a grammar's own trouble")
        mask.zero_()
        if self.fail != "empty":
            token = self.tokens[self.at]
            bit = 1 << (token % 32)
            mask[token // 32] = bit if bit < 1 << 31 else bit - (1 << 32)

    def accept(self, token_id: int) -> None:
        if self.fail == "accept":
            raise BadRequest("a grammar that cannot go on")
        assert token_id == self.tokens[self.at]
        self.at += 1

    @property
    def complete(self) -> bool:
        return self.at == len(self.tokens)


async def test_constraints_and_their_failures_are_a_requests_own(make: Make) -> None:
    batcher = make(ToyRunner(8))
    wanted = [5, 31, 32, 62, 0]
    outputs = await asyncio.gather(
        collect(batcher, Generation(prompt_of(4), constraint=Only(wanted))),
        collect(batcher, Generation(prompt_of(4), constraint=Only(wanted, "fill"))),
        collect(batcher, Generation(prompt_of(4), constraint=Only(wanted, "accept"))),
        collect(batcher, Generation(prompt_of(4), constraint=Only(wanted, "empty"))),
        collect(batcher, Generation(prompt_of(4), max_tokens=9)),
        return_exceptions=True,
    )
    done, fill, accept, empty, free = outputs
    assert isinstance(done, Output)
    assert (done.token_ids, done.finish) == (wanted, FinishReason.STOP)
    assert isinstance(fill, StackError)
    assert "grammar" in str(fill)
    assert "trouble" not in str(fill)
    assert isinstance(accept, BadRequest)
    assert isinstance(empty, StackError)
    assert "allows no further token" in str(empty)
    assert isinstance(free, Output)
    assert free.token_ids == greedy(prompt_of(4), 9)


async def test_overload(make: Make) -> None:
    for queue in (0, 3):
        runner = ToyRunner(2)
        runner.go.clear()
        batcher = make(runner, max_queue=queue)
        tasks = [
            asyncio.create_task(collect(batcher, Generation(prompt_of(3), max_tokens=3)))
            for _ in range(2 + queue)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=f"{2 + queue} requests") as refused:
            await collect(batcher, Generation(prompt_of(3)))
        assert refused.value.retry_after_s >= 1
        runner.go.set()
        for output in await asyncio.gather(*tasks):
            assert output.token_ids == greedy(prompt_of(3), 3)
        await collect(batcher, Generation(prompt_of(3), max_tokens=1))


async def test_cancelling_frees_the_slot_within_a_step(make: Make) -> None:
    """While it queues, while its prompt is computed, while it decodes; and a place in the queue at once."""
    runner = ToyRunner(1, context_length=4096)
    batcher = make(runner, max_queue=1, prefill_budget=10)

    async def start(prompt: list[int]) -> tuple[AsyncIterator[Output], asyncio.Task[Output]]:
        stream = batcher.generate(Generation(prompt))
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        return stream, task

    decoding, first = await start(prompt_of(3))
    await first
    _, queued = await start(prompt_of(3, 1))
    with pytest.raises(Overloaded):
        await collect(batcher, Generation(prompt_of(3, 2)))
    queued.cancel()
    await asyncio.wait([queued])
    waiting = asyncio.create_task(collect(batcher, Generation(prompt_of(3, 2), max_tokens=2)))
    await asyncio.sleep(0)
    await decoding.aclose()  # type: ignore[attr-defined]  # an async generator
    steps = len(runner.steps)
    assert (await waiting).token_ids == greedy(prompt_of(3, 2), 2)
    started = [step[0].tokens for step in runner.steps].index(prompt_of(3, 2))
    assert started <= steps + 2

    long = prompt_of(4000, 3)
    _, prefilling = await start(long)
    await until(lambda: runner.steps[-1][0].start > 0)
    prefilling.cancel()
    await asyncio.wait([prefilling])
    steps = len(runner.steps)
    assert (await collect(batcher, Generation(prompt_of(3, 4), max_tokens=2))).finish
    assert sum(len(step[0].tokens) == 10 for step in runner.steps[steps:]) <= 2


async def test_a_cancelled_task_frees_its_slot(make: Make) -> None:
    runner, meter = ToyRunner(1, context_length=100_000, step_s=0.001), CountingMeter()
    batcher = make(runner, meter=meter)
    task = asyncio.create_task(collect(batcher, Generation(prompt_of(3))))
    await until(lambda: len(runner.steps) > 3)
    task.cancel()
    await asyncio.wait([task])
    count = len(runner.steps)
    await asyncio.sleep(0.05)
    assert len(runner.steps) <= count + 1


async def test_prompts_are_computed_in_chunks_while_others_stream(make: Make) -> None:
    runner = ToyRunner(4, context_length=2000)
    batcher = make(runner, prefill_budget=100)
    streaming = batcher.generate(Generation(prompt_of(3)))
    await anext(streaming)
    runner.go.clear()
    long, short = prompt_of(900, 1), prompt_of(20, 2)
    tasks = [asyncio.create_task(collect(batcher, Generation(each, max_tokens=1))) for each in (long, short)]
    await asyncio.sleep(0)
    runner.go.set()
    outputs = await asyncio.gather(*tasks)
    await streaming.aclose()
    assert [output.token_ids for output in outputs] == [greedy(long, 1), greedy(short, 1)]
    slots = {step[0].slot for step in runner.steps[:2]}
    first = next(i for i, step in enumerate(runner.steps) if any(s.slot not in slots for s in step))
    steps = runner.steps[first : first + 8]
    assert all(slots <= {s.slot for s in step if len(s.tokens) == 1} for step in steps)  # the stream goes on
    assert all(80 <= sum(len(s.tokens) for s in step if s.slot not in slots) <= 150 for step in steps)
    # The short prompt is done at once although the long one came before it.
    assert any(list(s.tokens) == short for step in steps[:2] for s in step)


async def test_a_failed_step_fails_its_requests_only(make: Make) -> None:
    runner, meter = ToyRunner(2), CountingMeter()
    batcher = make(runner, meter=meter)
    errors = {
        61: RuntimeError("secret inside"),
        60: torch.OutOfMemoryError("CUDA out of memory"),
        59: MemoryError(),
    }

    def before(segments: Sequence[Segment]) -> None:
        for segment in segments:
            for token, error in errors.items():
                if token in segment.tokens and segment.start == 0:
                    raise error

    runner.before = before
    said = {}
    for token in errors:
        try:
            await collect(batcher, Generation([token, 1, 2], max_tokens=3))
        except StackError as error:
            said[token] = error
    assert "secret" not in str(said[61])
    assert said[61].status == 500
    assert isinstance(said[60], Overloaded)
    assert isinstance(said[59], Overloaded)
    assert meter.counts[metrics.FAILED_STEPS] == 3
    assert (await collect(batcher, Generation([1, 2], max_tokens=4))).token_ids == greedy([1, 2], 4)


async def test_media_prompts_run_alone_and_share_nothing(make: Make) -> None:
    runner = ToyRunner(3)
    batcher = make(runner, prefill_budget=10)
    prompt = prompt_of(40)
    media = {"pixel_values": torch.zeros(1)}
    other = asyncio.create_task(collect(batcher, Generation(prompt_of(5, 9), max_tokens=30)))
    for _ in range(2):
        output = await collect(batcher, Generation(prompt, max_tokens=5, media=media))
        assert output.token_ids == greedy(prompt, 5)
    assert (await collect(batcher, Generation(prompt, max_tokens=5))).token_ids == greedy(prompt, 5)
    await other
    withmedia = [step for step in runner.steps if any(segment.media for segment in step)]
    assert [len(step) for step in withmedia] == [1, 1]
    assert [len(step[0].tokens) for step in withmedia] == [40, 40]
    assert runner.copies == []


async def test_a_conversation_goes_on_in_its_slot(make: Make) -> None:
    runner = ToyRunner(3)
    batcher = make(runner)
    prompt = prompt_of(50)
    first = await collect(batcher, Generation(prompt, max_tokens=10))
    await collect(batcher, Generation(prompt_of(50, 1), max_tokens=5))
    more = prompt + first.token_ids + prompt_of(7, 2)
    runner.steps.clear()
    await collect(batcher, Generation(more, max_tokens=1))
    assert [(s.start, len(s.tokens)) for step in runner.steps for s in step] == [(59, 8)]
    assert runner.copies == []


async def test_a_shared_head_is_computed_once(make: Make) -> None:
    """Twelve prompts with one head of 100 tokens arrive together: computed once, copied eleven times."""
    runner, meter = ToyRunner(12), CountingMeter()
    runner.go.clear()
    batcher = make(runner, prefill_budget=1000, meter=meter)
    head = prompt_of(100)
    prompts = [head + prompt_of(10, 50 + i) for i in range(12)]
    tasks = [asyncio.create_task(collect(batcher, Generation(p, max_tokens=2))) for p in prompts]
    await asyncio.sleep(0)
    runner.go.set()
    for prompt, output in zip(prompts, await asyncio.gather(*tasks), strict=True):
        assert output.token_ids == greedy(prompt, 2)
    prompts_and_first_tokens = 12 * 110 + 12
    assert meter.counts[metrics.REUSED_TOKENS] >= 11 * 100  # a token more where prompts go on alike by chance
    assert runner.computed == prompts_and_first_tokens - meter.counts[metrics.REUSED_TOKENS]
    assert len(runner.copies) == 11
    assert len(runner.steps) <= 5


async def test_a_lesser_share_is_copied_and_the_conversation_kept(make: Make) -> None:
    runner = ToyRunner(2)
    batcher = make(runner)
    head = prompt_of(20)
    conversation = head + prompt_of(60, 1)
    await collect(batcher, Generation(conversation, max_tokens=1))
    await collect(batcher, Generation(head + prompt_of(5, 2), max_tokens=1))
    assert [tokens for _, _, tokens in runner.copies] == [20]
    runner.steps.clear()
    await collect(batcher, Generation([*conversation, 1, 2], max_tokens=1))
    assert runner.computed == 2


async def test_a_slow_consumer_gets_everything_merged(make: Make) -> None:
    runner = ToyRunner()
    batcher = make(runner)
    prompt = prompt_of(5)
    stream = batcher.generate(Generation(prompt, max_tokens=40))
    outputs = [await anext(stream)]
    await until(lambda: runner.computed >= 5 + 39)
    await asyncio.sleep(0.02)
    outputs += [output async for output in stream]
    assert len(outputs) <= 3
    assert [token for output in outputs for token in output.token_ids] == greedy(prompt, 40)
    assert [output.finish for output in outputs][-1] is FinishReason.LENGTH


async def test_closing_lets_requests_finish_within_the_grace(make: Make) -> None:
    runner = ToyRunner(step_s=0.001)
    batcher = make(runner)
    task = asyncio.create_task(collect(batcher, Generation(prompt_of(3), max_tokens=20)))
    await until(lambda: len(runner.steps) > 1)
    await asyncio.to_thread(batcher.close, 10.0)
    assert (await task).token_ids == greedy(prompt_of(3), 20)
    with pytest.raises(NotReady, match="shutting down"):
        await collect(batcher, Generation([1]))


async def test_closing_fails_what_the_grace_does_not_cover(make: Make) -> None:
    runner = ToyRunner(1, context_length=100_000, step_s=0.001)
    batcher = make(runner)
    tasks = [asyncio.create_task(collect(batcher, Generation(prompt_of(3)))) for _ in range(2)]
    await until(lambda: len(runner.steps) > 1)
    started = time.monotonic()
    await asyncio.to_thread(batcher.close, 0.05)
    assert time.monotonic() - started < 5
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, NotReady)
    assert "batcher" not in {thread.name for thread in threading.enumerate()}


def test_consumers_in_several_loops_one_of_which_dies(make: Make) -> None:
    runner = ToyRunner(4, context_length=100_000, step_s=0.0005)
    batcher = make(runner)

    def dies() -> None:
        async def leave() -> None:
            stream = batcher.generate(Generation(prompt_of(4)))
            await anext(stream)
            streams.append(stream)  # neither finished nor closed

        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave())
        loop.close()

    streams: list[AsyncIterator[Output]] = []
    results: list[Output] = []
    threads = [threading.Thread(target=dies)] + [
        threading.Thread(
            target=lambda: results.append(
                asyncio.run(collect(batcher, Generation(prompt_of(4), max_tokens=30)))
            )
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [result.token_ids for result in results] == [greedy(prompt_of(4), 30)] * 2
    count = len(runner.steps)
    time.sleep(0.05)
    assert len(runner.steps) <= count + 2, "the dead loop's request still runs"


async def test_what_is_measured(make: Make) -> None:
    meter = CountingMeter()
    batcher = make(ToyRunner(2), meter=meter)
    await asyncio.gather(*(collect(batcher, Generation(prompt_of(20, i), max_tokens=6)) for i in range(3)))
    await asyncio.to_thread(batcher.close)
    assert meter.counts[metrics.PREFILL_TOKENS] == 60
    assert meter.counts[metrics.DECODE_TOKENS] == 18
    assert len(meter.observed[metrics.TIME_TO_FIRST_TOKEN]) == 3
    assert len(meter.observed[metrics.TIME_PER_OUTPUT_TOKEN]) == 3
    assert len(meter.observed[metrics.STEP_SECONDS]) >= 12
    assert meter.gauges[metrics.QUEUE_LENGTH] == meter.gauges[metrics.BATCH_SIZE] == 0
    assert {*meter.counts, *meter.gauges, *meter.observed} <= set(metrics.METRICS)


async def test_calls_run_between_steps(make: Make) -> None:
    runner = ToyRunner()
    batcher = make(runner)
    threads: list[str] = []
    await batcher.call(lambda: threads.append(threading.current_thread().name))  # nothing else to do
    generating = asyncio.create_task(collect(batcher, Generation(prompt_of(10), max_tokens=50)))
    await until(lambda: len(runner.steps) > 2)
    await batcher.call(lambda: threads.append(threading.current_thread().name))
    assert threads == ["batcher", "batcher"]
    with pytest.raises(ZeroDivisionError):
        await batcher.call(lambda: 1 // 0 and None)
    assert (await generating).token_ids == greedy(prompt_of(10), 50)
    batcher.close()
    with pytest.raises(NotReady):
        await batcher.call(lambda: None)


async def test_segments_carry_the_adapter(make: Make) -> None:
    runner = ToyRunner()
    await collect(make(runner), Generation(prompt_of(10), max_tokens=3, adapter="a"))
    assert {segment.adapter for step in runner.steps for segment in step} == {"a"}
