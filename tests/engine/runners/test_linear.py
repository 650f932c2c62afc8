"""Packed linears beside PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stack.engine.runners.linear import Linear, LinearModule, pack_linears, packs

CPU = torch.device("cpu")
needs_bfloat16 = pytest.mark.skipif(not packs(torch.bfloat16, CPU), reason="needs a CPU with bfloat16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (33,), (2, 5)])
def test_equals_f_linear(dtype: torch.dtype, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(96, 64, dtype=dtype), torch.randn(*shape, 64, dtype=dtype)
    b = torch.randn(96, dtype=dtype) if bias else None
    linear = Linear(weight, b)
    assert linear.packed == packs(dtype, CPU)
    assert (linear.in_features, linear.out_features) == (64, 96)
    torch.testing.assert_close(linear(x), F.linear(x, weight, b))


def test_what_is_packed() -> None:
    assert packs(torch.float32, CPU)
    assert not packs(torch.float16, CPU)
    assert not packs(torch.bfloat16, torch.device("cuda"))
    assert not packs(torch.float32, torch.device("cuda"))


def test_without_the_private_operators_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not packs(torch.float32, CPU)
    assert not Linear(torch.randn(8, 4)).packed


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
def test_a_packed_model_computes_the_same(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.SiLU(), nn.Sequential(nn.Linear(96, 32, bias=False)))
    model.to(dtype).requires_grad_(False)
    x = torch.randn(2, 7, 64, dtype=dtype)
    before = model(x)
    assert pack_linears(model) == 2
    assert isinstance(model[0], LinearModule)
    assert (model[0].weight.dtype, model[0].weight.device) == (dtype, CPU)
    close = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(model(x), before, atol=close, rtol=close)
    assert pack_linears(model) == 0


def test_other_layers_are_left_alone() -> None:
    class Other(nn.Linear):
        """Computes something else, as quantised and adapted layers do."""

    model = nn.Sequential(nn.Linear(8, 8, dtype=torch.float64), Other(8, 8))
    assert pack_linears(model) == 0
