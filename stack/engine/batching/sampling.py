"""Logits to tokens, for a whole batch in one go, on whatever device the logits are.

Order of operations: log-probabilities are taken first, from the logits as the model gave them; then
repetition penalty, grammar mask, temperature, top_k, top_p. A row only pays for what it asks: greedy rows
are one argmax, and the vocabulary is never sorted.

A token is in the top_p nucleus when the tokens strictly more likely than it have less than top_p of the
mass (Holtzman et al. 2020; equally likely tokens are in or out together).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stack.engine.base import Sampling
from stack.errors import BadRequest

CANDIDATES = 64  # most nuclei are narrower; wider ones are drawn without candidates
BLOCK = 64
NO_TOKEN = -1  # in place of a token: the logits are NaN, or the mask allows nothing


class Seen:
    """The distinct tokens of one sequence, for its repetition penalty."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._set = set(tokens)
        self._count = len(self._set)
        self._ids = np.fromiter(self._set, dtype=np.int64, count=self._count)

    def add(self, token: int) -> None:
        if token in self._set:
            return
        self._set.add(token)
        if self._count == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty(max(64, self._count), np.int64)])
        self._ids[self._count] = token
        self._count += 1

    @property
    def ids(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return self._ids[: self._count]


@dataclass(slots=True)
class Row:
    """How one sequence draws its tokens, and what its earlier tokens left behind."""

    sampling: Sampling = field(default_factory=Sampling)
    random: Random = field(default_factory=Random)  # one number a token: the same seed on every device
    seen: Seen | None = None  # only with a repetition penalty
    mask: Tensor | None = None  # int32 [ceil(vocab / 32)], a set bit allows the token
    top_logprobs: int | None = None

    @classmethod
    def of(cls, sampling: Sampling, prompt: Sequence[int], top_logprobs: int | None = None) -> Row:
        penalised = sampling.repetition_penalty != 1.0
        return cls(
            sampling, Random(sampling.seed), Seen(prompt) if penalised else None, top_logprobs=top_logprobs
        )

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature < 1e-5 or self.sampling.top_k == 1


class Logprobs(NamedTuple):
    """Of one drawn token, and of the most likely ones, best first."""

    chosen: float
    top: list[tuple[int, float]]


def check_sampling(sampling: Sampling) -> None:
    """Raises BadRequest for a value that no distribution has."""
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise BadRequest(f"temperature is {sampling.temperature}; it must be 0 (greedy) or more, and finite")
    if not 0 < sampling.top_p <= 1:
        raise BadRequest(f"top_p is {sampling.top_p}; it must be above 0 and at most 1")
    if sampling.top_k < 0:
        raise BadRequest(f"top_k is {sampling.top_k}; it must be 0 (no restriction) or more")
    if not (math.isfinite(sampling.repetition_penalty) and sampling.repetition_penalty > 0):
        raise BadRequest(
            f"repetition_penalty is {sampling.repetition_penalty}; it must be above 0 and finite"
        )


@torch.inference_mode()
def draw(logits: Tensor, rows: Sequence[Row]) -> tuple[list[int], list[Logprobs | None]]:
    """One token for each row of float32 `logits` [rows, vocab], which are overwritten."""
    wanting = [i for i, row in enumerate(rows) if row.top_logprobs is not None]
    logprobs = torch.log_softmax(_select(logits, wanting), -1) if wanting else None
    _penalise(logits, rows)
    _mask(logits, rows)
    tokens = _sample(logits, rows)
    answers: list[Logprobs | None] = [None] * len(rows)
    if logprobs is not None:
        for i, answer in zip(wanting, _gather_logprobs(logprobs, wanting, rows, tokens), strict=True):
            answers[i] = answer
    return tokens, answers


def _select(logits: Tensor, rows: list[int]) -> Tensor:
    """Those rows, which are ascending."""
    if len(rows) == len(logits):
        return logits
    return logits.index_select(0, torch.tensor(rows, device=logits.device))


def _gather_logprobs(
    logprobs: Tensor, wanting: list[int], rows: Sequence[Row], tokens: list[int]
) -> list[Logprobs]:
    chosen_ids = torch.tensor([[max(tokens[i], 0)] for i in wanting], device=logprobs.device)
    chosen = logprobs.gather(-1, chosen_ids)[:, 0].tolist()
    counts = [min(rows[i].top_logprobs or 0, logprobs.shape[-1]) for i in wanting]
    best = logprobs.topk(max(counts), -1)
    values, indices = best.values.tolist(), best.indices.tolist()
    return [
        Logprobs(chosen[j], list(zip(indices[j][:count], values[j][:count], strict=True)))
        for j, count in enumerate(counts)
    ]


def _penalise(logits: Tensor, rows: Sequence[Row]) -> None:
    """Divide the positive and multiply the negative logits of seen tokens (Keskar et al. 2019)."""
    penalised = [(i, row, row.seen.ids) for i, row in enumerate(rows) if row.seen is not None]
    if not penalised:
        return
    lengths = [len(ids) for _, _, ids in penalised]
    where = np.repeat(np.array([i for i, _, _ in penalised]), lengths)
    factor = np.repeat(
        np.array([row.sampling.repetition_penalty for _, row, _ in penalised], np.float32), lengths
    )
    ids = np.concatenate([ids for _, _, ids in penalised])
    flat = torch.from_numpy(where * logits.shape[-1] + ids).to(logits.device)
    penalty = torch.from_numpy(factor).to(logits.device)
    values = logits.view(-1)[flat]
    logits.view(-1)[flat] = torch.where(values > 0, values / penalty, values * penalty)


@cache
def _bits(device: torch.device) -> Tensor:
    """For each byte, its 8 bits from the lowest on: 0 where set, -inf where not."""
    bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
    return torch.zeros(256, 8).masked_fill_(bits == 0, -math.inf).to(device)


def _mask(logits: Tensor, rows: Sequence[Row]) -> None:
    masks = [row.mask for row in rows if row.mask is not None]
    if not masks:
        return
    masked = [i for i, row in enumerate(rows) if row.mask is not None]
    # Looking bytes up in a table is eight times as fast as shifting the bits out of the words.
    packed = torch.stack(masks).to(logits.device, non_blocking=True).view(torch.uint8)
    bias = torch.nn.functional.embedding(packed.int(), _bits(logits.device)).flatten(1)
    bias = bias[:, : logits.shape[-1]]
    if len(masked) == len(rows):
        logits += bias
    else:
        logits.index_add_(0, torch.tensor(masked, device=logits.device), bias)


def _sample(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    drawn = [i for i, row in enumerate(rows) if not row.greedy]
    tokens = _argmax(logits) if len(drawn) < len(rows) else [NO_TOKEN] * len(rows)
    if not drawn:
        return tokens
    ranked = [i for i in drawn if rows[i].sampling.top_k > 0]
    nuclei = [i for i in drawn if rows[i].sampling.top_k == 0]
    for indices, sample in ((ranked, _sample_top_k), (nuclei, _sample_top_p)):
        if indices:
            for i, token in zip(
                indices, sample(_select(logits, indices), [rows[i] for i in indices]), strict=True
            ):
                tokens[i] = token
    return tokens


def _argmax(logits: Tensor) -> list[int]:
    if logits.device.type == "cpu":  # numpy's is ten times as fast as torch's, and takes NaN for the largest
        array = logits.numpy()
        best = array.argmax(-1)
        values = array[np.arange(len(array)), best]
        return [int(i) if math.isfinite(v) else NO_TOKEN for i, v in zip(best, values, strict=True)]
    found = logits.max(-1)
    finite = torch.isfinite(found.values)
    return [int(i) for i in torch.where(finite, found.indices, NO_TOKEN).tolist()]


def _column(values: Iterable[float], like: Tensor) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32, device=like.device)[:, None]


def _sample_top_k(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    """The k best tokens, renormalised, then top_p among them."""
    width = min(max(row.sampling.top_k for row in rows), logits.shape[-1])
    best = logits.topk(width, -1)
    kept = torch.arange(width, device=logits.device) < _column((row.sampling.top_k for row in rows), logits)
    scaled = (best.values - best.values[:, :1]) / _column((row.sampling.temperature for row in rows), logits)
    probs = torch.softmax(scaled.masked_fill(~kept, -math.inf), -1)
    top_p = _column((row.sampling.top_p for row in rows), logits)
    if any(row.sampling.top_p < 1 for row in rows):
        probs = probs.masked_fill(_mass_above(probs) >= top_p, 0.0)
    picks = _invert(probs, rows)
    tokens = best.indices.gather(-1, picks)
    return [int(t) for t in _unless_broken(tokens, best.values[:, :1]).tolist()]


def _sample_top_p(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    most = logits.amax(-1, keepdim=True)
    logits.div_(_column((row.sampling.temperature for row in rows), logits))
    weights = torch.softmax(logits, -1)
    limits = _column((row.sampling.top_p if row.sampling.top_p < 1 else math.inf for row in rows), logits)
    tokens = torch.full((len(rows), 1), NO_TOKEN, device=logits.device)
    narrow = [i for i, row in enumerate(rows) if row.sampling.top_p < 1]
    wide = [i for i, row in enumerate(rows) if row.sampling.top_p >= 1]
    if narrow:
        drawn, covered = _draw_from_candidates(
            _select(weights, narrow), _select(limits, narrow), [rows[i] for i in narrow]
        )
        tokens[narrow] = drawn
        wide += [i for i, inside in zip(narrow, covered, strict=True) if not inside]
    if wide:
        wide.sort()
        tokens[wide] = _draw_by_rejection(
            _select(weights, wide), _select(limits, wide), [rows[i] for i in wide]
        )
    return [int(t) for t in _unless_broken(tokens, most).tolist()]


def _draw_from_candidates(weights: Tensor, limits: Tensor, rows: Sequence[Row]) -> tuple[Tensor, list[bool]]:
    """Tokens [rows, 1], and for which rows the candidates hold the nucleus; other rows draw nothing."""
    best = weights.topk(min(CANDIDATES, weights.shape[-1]), -1)
    above = _mass_above(best.values)
    last = above[:, -1:] >= limits  # then whatever is not more likely than the last candidate is outside, too
    covered = [True] * len(rows) if best.values.shape[-1] == weights.shape[-1] else last[:, 0].tolist()
    picks = _invert(best.values.masked_fill(above >= limits, 0.0), rows, covered)
    return best.indices.gather(-1, picks), covered


def _draw_by_rejection(weights: Tensor, limits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Tokens [rows, 1]: draw from everything, and again from what is more likely, until within the nucleus.

    A token outside the nucleus shows that all not more likely ones are outside as well, so that few rounds
    are needed; what is accepted is distributed as the nucleus, renormalised. Without top_p the first draw
    is accepted.
    """
    picks = _invert_in_blocks(weights, rows)
    if all(row.sampling.top_p >= 1 for row in rows):
        return picks
    chances = weights.gather(-1, picks)
    above = torch.where(weights > chances, weights, 0.0).sum(-1, keepdim=True)
    outside = [i for i, out in enumerate((above >= limits)[:, 0].tolist()) if out]
    if outside:
        likelier = _select(weights, outside)
        likelier = torch.where(likelier > _select(chances, outside), likelier, 0.0)
        picks[outside] = _draw_by_rejection(likelier, _select(limits, outside), [rows[i] for i in outside])
    return picks


def _mass_above(probs: Tensor) -> Tensor:
    """For each of the descending `probs` [rows, n], the sum of the strictly greater ones."""
    before = probs.cumsum(-1) - probs
    new = torch.ones_like(probs, dtype=torch.bool)
    new[:, 1:] = probs[:, 1:] < probs[:, :-1]
    # Ties take the sum before the first of them: sums only grow, so it is the running maximum of those.
    return torch.where(new, before, 0.0).cummax(-1).values


def _invert(weights: Tensor, rows: Sequence[Row], wanted: Sequence[bool] | None = None) -> Tensor:
    """Index [rows, 1] where the cumulated weights pass a uniform random number; weights need no norm."""
    uniform = (row.random.random() if wanted is None or wanted[i] else 0.0 for i, row in enumerate(rows))
    return _find(weights, _column(uniform, weights) * weights.sum(-1, keepdim=True))[0]


def _invert_in_blocks(weights: Tensor, rows: Sequence[Row]) -> Tensor:
    """As `_invert`, for many weights: finds the block first, since sums are much faster than running sums."""
    count = weights.shape[-1] // BLOCK
    blocks = torch.unflatten(weights[:, : count * BLOCK], -1, (count, BLOCK))
    sums = torch.cat([blocks.sum(-1), weights[:, count * BLOCK :]], -1)  # the rest is blocks of one
    uniform = _column((row.random.random() for row in rows), weights)
    block, left = _find(sums, uniform * sums.sum(-1, keepdim=True))
    within = block.clamp(max=max(count - 1, 0))
    if count:
        inside, _ = _find(blocks.gather(1, within[:, :, None].expand(-1, -1, BLOCK))[:, 0], left)
    else:
        inside = block
    return torch.where(block < count, within * BLOCK + inside, block - count + count * BLOCK)


def _find(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Index [rows, 1] where the running sum passes the target, and what of the target lies in that weight."""
    sums = weights.cumsum(-1)
    found = torch.searchsorted(sums, target, right=True).clamp_(max=weights.shape[-1] - 1)
    # Rounding can put the target on the total itself, beyond the last entry with any weight.
    chosen = weights.gather(-1, found)
    if bool((chosen <= 0).any()):
        found = torch.where(chosen <= 0, weights.argmax(-1, keepdim=True), found)
        chosen = weights.gather(-1, found)
    return found, (target - sums.gather(-1, found) + chosen).clamp_(min=0)


def _unless_broken(tokens: Tensor, largest: Tensor) -> Tensor:
    return torch.where(torch.isfinite(largest), tokens, NO_TOKEN)[:, 0]
