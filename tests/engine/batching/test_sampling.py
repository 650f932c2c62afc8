"""Drawn tokens follow the distribution that the parameters define; devices and batches don't matter."""

from __future__ import annotations

import math
import time
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

from stack.engine.base import Sampling
from stack.engine.batching.sampling import CANDIDATES, NO_TOKEN, Row, Seen, check_sampling, draw
from stack.errors import BadRequest

DRAWS = 20_000


def exact(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution, in float64, by sorting."""
    scaled = logits.double() / sampling.temperature
    if sampling.top_k:
        scaled[scaled < scaled.sort(descending=True).values[sampling.top_k - 1]] = -math.inf
    probs = scaled.softmax(-1)
    above = torch.tensor([probs[probs > p].sum() for p in probs])
    probs[above >= sampling.top_p] = 0
    return probs / probs.sum()


def chi_square_ok(counts: Tensor, probs: Tensor) -> bool:
    """Pearson's test at about 5 standard deviations; classes of under 5 expected draws are pooled."""
    expected = probs * counts.sum()
    assert counts[probs == 0].sum() == 0
    common = expected >= 5
    terms = ((counts - expected)[common] ** 2 / expected[common]).tolist()
    rest = expected[~common].sum()
    if rest >= 5:
        terms.append(float((counts[~common].sum() - rest) ** 2 / rest))
    freedom = max(1, len(terms) - 1)
    return sum(terms) < freedom + 5 * math.sqrt(2 * freedom) + 10


def histogram(logits: Tensor, sampling: Sampling, seed: int = 0) -> Tensor:
    random = Random(seed)
    counts = torch.zeros(len(logits), dtype=torch.float64)
    for _ in range(DRAWS // 500):
        rows = [Row(sampling, random) for _ in range(500)]
        tokens, _ = draw(logits.repeat(500, 1), rows)
        counts += torch.bincount(torch.tensor(tokens), minlength=len(logits))
    return counts


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.5),
        Sampling(temperature=1.0, top_p=0.5),
        Sampling(temperature=1.0, top_p=0.9),
        Sampling(temperature=2.0, top_p=0.97),
        Sampling(temperature=1.0, top_k=7),
        Sampling(temperature=1.3, top_k=40, top_p=0.8),
    ],
    ids=str,
)
@pytest.mark.parametrize("vocabulary", [50, 400])
def test_draws_follow_the_exact_distribution(sampling: Sampling, vocabulary: int) -> None:
    sampling = Sampling(sampling.temperature, sampling.top_p, min(sampling.top_k, vocabulary))
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 1.5
    assert chi_square_ok(histogram(logits, sampling), exact(logits, sampling))


def test_a_wrong_distribution_is_noticed() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    counts = histogram(logits, Sampling(temperature=1.1))
    assert not chi_square_ok(counts, exact(logits, Sampling(temperature=1.0)))


def test_nuclei_wider_than_the_candidates_are_exact() -> None:
    logits = torch.randn(400, generator=torch.Generator().manual_seed(3)) * 0.5
    for top_p in (0.3, 0.9):
        sampling = Sampling(temperature=1.0, top_p=top_p)
        probs = exact(logits, sampling)
        if top_p == 0.9:
            assert int((probs > 0).sum()) > 2 * CANDIDATES
        assert chi_square_ok(histogram(logits, sampling), probs)


def test_equally_likely_tokens_are_in_the_nucleus_together() -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, 1.0, -1.0])
    sampling = Sampling(temperature=1.0, top_p=0.6)  # 0.47 for the first, 0.17 for each tie
    counts = histogram(logits, sampling)
    assert chi_square_ok(counts, exact(logits, sampling))
    assert (counts > 0).tolist() == [True, True, True, True, False]


def test_a_tiny_top_p_and_a_tiny_temperature_are_greedy() -> None:
    logits = torch.randn(8, 500, generator=torch.Generator().manual_seed(4))
    best = logits.argmax(-1).tolist()
    for sampling in (
        Sampling(),
        Sampling(temperature=1e-9),
        Sampling(temperature=1e-3),
        Sampling(temperature=1.0, top_p=1e-6),
        Sampling(temperature=1.0, top_k=1),
    ):
        assert draw(logits.clone(), [Row(sampling) for _ in range(8)])[0] == best


def test_a_rows_tokens_do_not_depend_on_its_batch() -> None:
    logits = torch.randn(6, 1000, generator=torch.Generator().manual_seed(5)) * 2
    ways = [
        Sampling(seed=1),
        Sampling(temperature=1.0, seed=2),
        Sampling(temperature=1.0, top_p=0.9, seed=3),
        Sampling(temperature=0.7, top_k=30, top_p=0.8, seed=4),
        Sampling(temperature=1.0, repetition_penalty=1.3, seed=5),
        Sampling(temperature=3.0, top_p=0.99, seed=6),
    ]
    together = [Row.of(way, [1, 2, 3]) for way in ways]
    alone = [Row.of(way, [1, 2, 3]) for way in ways]
    for _ in range(20):
        tokens, _ = draw(logits.clone(), together)
        assert tokens == [draw(logits[i : i + 1].clone(), [alone[i]])[0][0] for i in range(6)]


def test_seeds_repeat_and_their_absence_does_not() -> None:
    logits = torch.zeros(1, 1000)

    def tokens(seed: int | None) -> list[int]:
        row = Row.of(Sampling(temperature=1.0, seed=seed), [])
        return [draw(logits.clone(), [row])[0][0] for _ in range(8)]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)
    assert tokens(None) != tokens(None)


def test_repetition_penalty_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0, 0.5], [2.0, 1.0, -1.0, 0.5]])
    rows = [Row.of(Sampling(repetition_penalty=4.0), [0, 2, 0]), Row.of(Sampling(), [0, 2])]
    tokens, _ = draw(logits, rows)
    assert logits[0].tolist() == [0.5, 1.0, -4.0, 0.5]  # 2 / 4, unseen, -1 * 4, unseen
    assert logits[1].tolist() == [2.0, 1.0, -1.0, 0.5]
    assert tokens == [1, 0]
    seen = Seen([5, 5, 6])
    for token in [*range(200), 6]:
        seen.add(token)
    assert sorted(seen.ids.tolist()) == list(range(200))


def mask_of(allowed: list[int], vocabulary: int) -> Tensor:
    words = np.zeros(-(-vocabulary // 32), np.uint32)
    for token in allowed:
        words[token // 32] |= np.uint32(1 << (token % 32))
    return torch.from_numpy(words.view(np.int32))


@pytest.mark.parametrize("vocabulary", [64, 75])
def test_masks_allow_exactly_their_tokens(vocabulary: int) -> None:
    logits = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(6))
    allowed = [[3], [31, 32, 63], list(range(vocabulary)), []]
    rows = [Row(Sampling(temperature=1.0), mask=mask_of(a, vocabulary)) for a in allowed]
    drawn = [set[int]() for _ in rows]
    for _ in range(300):
        for tokens, token in zip(drawn, draw(logits.clone(), rows)[0], strict=True):
            tokens.add(token)
    assert drawn[0] == {3}
    assert drawn[1] == {31, 32, 63}
    assert len(drawn[2]) > 20
    assert drawn[3] == {NO_TOKEN}
    masked = [Row(mask=mask_of([3], vocabulary)), Row(), Row(mask=mask_of([], vocabulary)), Row()]
    tokens, _ = draw(logits.clone(), masked)
    assert tokens == [3, int(logits[1].argmax()), NO_TOKEN, int(logits[3].argmax())]


def test_broken_logits_give_no_token() -> None:
    for sampling in (Sampling(), Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=3)):
        logits = torch.zeros(3, 100)
        logits[0, 5] = math.nan
        logits[1, 7] = math.inf
        tokens, _ = draw(logits, [Row(sampling) for _ in range(3)])
        assert tokens[:2] == [NO_TOKEN, NO_TOKEN]
        assert tokens[2] >= 0


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = torch.randn(3, 90, generator=torch.Generator().manual_seed(7))
    logprobs = logits.double().log_softmax(-1)
    rows = [
        Row.of(Sampling(repetition_penalty=2.0), [1, 2], top_logprobs=3),
        Row.of(Sampling(temperature=2.0, top_p=0.5, seed=1), []),
        Row.of(Sampling(temperature=2.0, seed=1), [], top_logprobs=0),
    ]
    rows[0].mask = mask_of([8], 90)
    tokens, answers = draw(logits, rows)
    assert tokens[0] == 8
    assert answers[1] is None
    first, last = answers[0], answers[2]
    assert first is not None
    assert last is not None
    assert first.chosen == pytest.approx(float(logprobs[0, 8]), abs=1e-5)
    assert [token for token, _ in first.top] == logprobs[0].topk(3).indices.tolist()
    assert [value for _, value in first.top] == pytest.approx(logprobs[0].topk(3).values.tolist(), abs=1e-5)
    assert last.chosen == pytest.approx(float(logprobs[2, tokens[2]]), abs=1e-5)
    assert last.top == []


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=-1),
        Sampling(temperature=math.nan),
        Sampling(temperature=math.inf),
        Sampling(top_p=0),
        Sampling(top_p=1.1),
        Sampling(top_p=math.nan),
        Sampling(top_k=-1),
        Sampling(repetition_penalty=0),
        Sampling(repetition_penalty=math.nan),
    ],
    ids=str,
)
def test_values_without_a_distribution_are_refused(sampling: Sampling) -> None:
    with pytest.raises(BadRequest, match="must be"):
        check_sampling(sampling)


def test_a_step_of_32_rows_costs_milliseconds() -> None:
    """Loose bounds, so that a loaded machine passes: a sort of 32 x 49,152 takes over 60 ms on a free one."""
    logits = torch.randn(32, 49_152, generator=torch.Generator().manual_seed(8)) * 3

    def best_of(rows: list[Row]) -> float:
        times = []
        for _ in range(7):
            fresh = logits.clone()
            start = time.perf_counter()
            draw(fresh, rows)
            times.append(time.perf_counter() - start)
        return min(times)

    assert best_of([Row() for _ in range(32)]) < 0.005
    assert best_of([Row(Sampling(temperature=1.0, top_p=0.9)) for _ in range(32)]) < 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_draws_the_same_tokens() -> None:
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(9)) * 2
    ways = [
        Sampling(repetition_penalty=1.2),
        Sampling(temperature=1.0, seed=2),
        Sampling(temperature=1.0, top_p=0.9, seed=3),
        Sampling(temperature=0.7, top_k=30, seed=4),
    ]
    here, there = ([Row.of(way, [1, 2, 3], top_logprobs=2) for way in ways] for _ in range(2))
    for _ in range(50):
        assert draw(logits.clone(), here)[0] == draw(logits.cuda(), there)[0]
