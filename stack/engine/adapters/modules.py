"""LoRA adapters on a transformers model as it is: hooks on those of its modules that an adapter changes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stack.engine.adapters.bank import Bank, Part, Plan, Run, Site
from stack.engine.runners.linear import LinearModule

Handles = dict[Site, Any]


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that adapters may change, by the names that PEFT gives them."""
    from transformers.pytorch_utils import Conv1D

    kinds = (nn.Linear, Conv1D, LinearModule)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


@contextmanager
def counted(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Counter[int]]]:
    """By name, how often each module is called within with how many rows."""
    seen: dict[str, Counter[int]] = {name: Counter() for name in modules}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name][inputs[0].shape[:-1].numel()] += 1

    handles = [module.register_forward_hook(partial(note, name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class ModuleBank(Bank):
    """A bank whose sites are modules. A module is hooked only while some adapter changes it."""

    def __init__(
        self, modules: Mapping[str, nn.Module], head: str | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`head` names the module that sees only the rows whose logits are wanted, if it is one of them."""
        self._modules = {_site(name, module): module for name, module in modules.items()}
        self._head = next((site for site in self._modules if site.parts[0].name == head), None)
        self._handles: Handles = {}
        self._plans: tuple[Plan | None, Plan | None] = (None, None)  # of all rows, of the head's
        super().__init__(list(self._modules), lambda name: _weight(modules[name]), dtype, device)

    @contextmanager
    def applied(self, rows: Plan | None, head: Plan | None) -> Iterator[None]:
        """Modules called within add what the plans say."""
        self._plans = (rows, head)
        try:
            yield
        finally:
            self._plans = (None, None)

    def uniform(self, adapter: str | None) -> Plan | None:
        """For a pass all of whose rows, however many, want one adapter."""
        return None if adapter is None else UniformPlan(self, [adapter])

    def _changed(self, site: Site) -> None:
        if site.a is None:
            if (handle := self._handles.pop(site, None)) is not None:
                handle.remove()
        elif site not in self._handles:
            self._handles[site] = self._modules[site].register_forward_hook(partial(self._hook, site))

    def _hook(self, site: Site, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        plan = self._plans[1 if site is self._head else 0]
        if plan is None:
            return output
        y = plan.add(site, inputs[0].reshape(-1, site.inputs), output.reshape(-1, site.outputs))
        return y.view(output.shape)


class UniformPlan(Plan):
    """All rows want the one adapter."""

    def _rescale(self, site: Site, scale: Tensor, y: Tensor) -> None:
        number = self._numbers[0]
        if number < len(scale):
            y += scale[number] * (y if site.bias is None else y - site.bias)

    def _runs_of(self, kind: str, dtype: torch.dtype) -> Sequence[Run]:
        taken = [taken for taken, _ in self._bank.ranks[kind].runs(self._active)]
        return [Run(slice(None), slice(low, high), None) for low, high in taken]


def _site(name: str, module: Any) -> Site:
    kind = re.sub(r"\d+", "*", name)  # the same module of all blocks
    is_conv = hasattr(module, "nf")  # Conv1D of GPT-2: weight [in, out]
    inputs, outputs = module.weight.shape if is_conv else (module.in_features, module.out_features)
    return Site(kind, [Part(name, outputs)], inputs, module.bias)


def _weight(module: Any) -> Tensor:
    """float32 [out, in] on the CPU."""
    weight: Tensor = module.dense() if isinstance(module, LinearModule) else module.weight.detach()
    weight = weight.float().cpu()
    return weight.T if hasattr(module, "nf") else weight
