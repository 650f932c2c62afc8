"""Draw tokens at random from what a constraint allows: a model that knows nothing at all."""

from __future__ import annotations

import random

import numpy as np
import torch

from stack.engine.grammar.constraint import TokenConstraint


def draw(
    constraint: TokenConstraint, seed: int, tokens: int, end: int, vocab_size: int
) -> tuple[list[int], bool]:
    """Up to so many tokens, and whether the constraint or the end token ended them."""
    rng = random.Random(seed)
    mask = torch.zeros(-(-vocab_size // 32), dtype=torch.int32)
    drawn: list[int] = []
    while len(drawn) < tokens:
        constraint.fill_mask(mask.zero_())
        allowed = np.flatnonzero(np.unpackbits(mask.numpy().view(np.uint8), bitorder="little"))
        token = int(rng.choice(allowed))
        if token == end:
            return drawn, True
        constraint.accept(token)
        drawn.append(token)
        if constraint.complete:
            return drawn, True
    return drawn, False
