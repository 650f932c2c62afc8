"""The optimiser of a plan, by its first steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stack.training.arguments import optimizer, training_arguments
from stack.training.dtypes import compute_dtype
from tests.training.plans import make_plan


def step(name: str) -> float:
    """Where one weight of 2 is after a step of 0.1 at a gradient of 0.5, with a weight decay of 0.1."""
    kind, arguments = optimizer(make_plan(optimizer=name, lr=0.1))
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    weight.grad = torch.tensor([0.5])
    kind([{"params": [weight], "weight_decay": 0.1}], **arguments).step()
    return weight.item()


def test_sgd_adds_the_decay_to_the_gradient_and_has_no_momentum() -> None:
    assert step("sgd") == pytest.approx(2 - 0.1 * (0.5 + 0.1 * 2))


def test_adamw_decays_apart_from_the_gradient() -> None:
    # Adam's first step is lr * sign(gradient).
    assert step("adamw") == pytest.approx(2 - 0.1 * 0.1 * 2 - 0.1)


def test_adam_adds_the_decay_to_the_gradient() -> None:
    assert step("adam") == pytest.approx(2 - 0.1)


@pytest.mark.parametrize("has", [False, True])
def test_bfloat16_is_computed_where_the_hardware_does(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stack.training.dtypes.computes_bfloat16", lambda device: has)
    plan = make_plan(dtype="bf16")
    assert compute_dtype(plan, torch.device("cpu")) == (torch.bfloat16 if has else torch.float32)
    assert training_arguments(plan, Path("out"))["bf16"] is has
