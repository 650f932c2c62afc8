"""The LoRA matrices of all adapters on a runner in PyTorch, and what they add to a batch of mixed rows.

For each linear layer the adapters' A stand one below the other, and so do their B: a pass multiplies with
both once, whatever rows want which adapter, and a mask between the two leaves each row its own ranks
(as the batched LoRA of Chen et al. 2023, Punica, with a mask in place of a gathering kernel).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stack.engine.adapters.ranks import Range, Ranks
from stack.engine.adapters.weights import Lora
from stack.errors import BadRequest

NOBODY = -2  # owns the free ranks; rows without an adapter are those of -1


class Part(NamedTuple):
    """One of the base model's linear layers in a site, which may hold several side by side."""

    name: str  # as the adapters' files name it
    outputs: int


@dataclass(eq=False, slots=True)
class Site:
    """A linear layer as the runner computes it, and the adapters' matrices for it, if any has some."""

    kind: str  # sites of one kind share the layout of their ranks: the same layer of all blocks
    parts: Sequence[Part]
    inputs: int
    bias: Tensor | None = None  # [outputs]
    a: Tensor | None = None  # [capacity, inputs] in the bank's layout
    b: Tensor | None = None  # [capacity, outputs] in the bank's layout
    scale: Tensor | None = None  # [adapters, outputs], less 1: of DoRA

    @property
    def outputs(self) -> int:
        return sum(part.outputs for part in self.parts)


class Addition(NamedTuple):
    """What an adapter adds at one site, the matrices in the bank's layout once they are prepared."""

    ranks: int
    a: Tensor  # [ranks, inputs]
    b: Tensor  # [ranks, outputs]
    scale: Tensor | None  # [outputs], less 1


Prepared = Mapping[Site, Addition]


def additions(
    sites: Sequence[Site], lora: Mapping[str, Lora], weight: Callable[[str], Tensor]
) -> dict[Site, Addition]:
    """An adapter site by site, in float32. BadRequest when it does not fit the model.

    `weight` gives the float32 [outputs, inputs] weight of a part, which DoRA needs.
    """
    left = dict(lora)
    found = {}
    for site in sites:
        mine = [left.pop(part.name, None) for part in site.parts]
        if any(mine):
            found[site] = _addition(site, mine, weight)
    if left:
        raise BadRequest(
            f"the adapter changes {next(iter(left))}, which is no linear layer of its base model"
        )
    return found


def _addition(site: Site, loras: Sequence[Lora | None], weight: Callable[[str], Tensor]) -> Addition:
    ranks = sum(len(lora.a) for lora in loras if lora is not None)
    a, b = torch.zeros(ranks, site.inputs), torch.zeros(ranks, site.outputs)
    scale = torch.zeros(site.outputs)
    rank = output = 0
    for part, lora in zip(site.parts, loras, strict=True):
        if lora is not None:
            if lora.a.shape[1] != site.inputs or lora.b.shape[0] != part.outputs:
                raise BadRequest(
                    f"the adapter was made for another model: at {part.name} it takes {lora.a.shape[1]} and "
                    f"gives {lora.b.shape[0]} numbers, its base model {site.inputs} and {part.outputs}"
                )
            here, outputs = slice(rank, rank + len(lora.a)), slice(output, output + part.outputs)
            own_b, own_scale = lora.applied(lambda name=part.name: weight(name))  # type: ignore[misc]
            a[here], b[here, outputs] = lora.a, own_b.T
            if own_scale is not None:
                scale[outputs] = own_scale - 1
            rank += len(lora.a)
        output += part.outputs
    return Addition(
        ranks, a, b, scale if any(lora is not None and lora.magnitude is not None for lora in loras) else None
    )


class Bank:
    """The `RunnerAdapters` of runners that compute in PyTorch."""

    def __init__(
        self,
        sites: Sequence[Site],
        weight: Callable[[str], Tensor],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.sites = sites
        self._weight, self._dtype, self._device = weight, dtype, device
        self.ranks = {site.kind: Ranks(self.unit) for site in sites}
        self.owners: dict[
            str, Tensor
        ] = {}  # kind -> int32 [capacity]: the number of the adapter that has a rank
        self.numbers: dict[str, int] = {}
        self.scaled: set[str] = set()  # the adapters that have scales

    # The layout of the matrices: a runner may have its own.

    unit = 1  # an adapter has a multiple of so many ranks

    def _shapes(self, site: Site, ranks: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of a and b."""
        return (ranks, site.inputs), (ranks, site.outputs)

    def _views(self, a: Tensor, b: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Some ranks of both."""
        return a[low:high], b[low:high]

    def _laid_out(self, site: Site, added: Addition) -> Addition:
        a, b, scale = (
            None if tensor is None else tensor.to(self._device, self._dtype)
            for tensor in (added.a, added.b, added.scale)
        )
        assert a is not None
        assert b is not None
        return Addition(added.ranks, a, b, scale)

    def _changed(self, site: Site) -> None:
        """The site has other matrices than before."""

    # In any thread.

    def prepare(self, lora: Mapping[str, Lora]) -> Prepared:
        found = additions(self.sites, lora, self._weight)
        return {site: self._laid_out(site, added) for site, added in found.items()}

    # In the runner's thread.

    @torch.no_grad()
    def add(self, key: str, prepared: Prepared) -> None:
        if key in self.numbers:
            return
        self.numbers[key] = number = _first_free(self.numbers.values())
        if any(added.scale is not None for added in prepared.values()):
            self.scaled.add(key)
        for kind in {site.kind for site in prepared}:
            ranks, before = self.ranks[kind], self.ranks[kind].capacity
            taken = ranks.take(key, max(x.ranks for site, x in prepared.items() if site.kind == kind))
            self._lay_out(kind, before)
            self.owners[kind][taken.low : taken.high] = number
        for site in self.sites:
            taken_here = self.ranks[site.kind].ranges.get(key)
            if taken_here is not None and (site in prepared or site.a is not None):
                self._write(site, taken_here, prepared.get(site), number)
            self._changed(site)

    @torch.no_grad()
    def remove(self, key: str) -> None:
        number = self.numbers.pop(key, None)
        self.scaled.discard(key)
        for kind, ranks in self.ranks.items():
            before = ranks.capacity
            freed = ranks.free(key)
            if freed is not None:
                self.owners[kind][freed.low : freed.high] = NOBODY
                self._lay_out(kind, before)
        for site in self.sites:
            if site.scale is not None and number is not None:
                site.scale = None if not self.scaled else _zeroed(site.scale, number)
            self._changed(site)

    def plan(self, adapters: Sequence[str | None]) -> Plan | None:
        """For rows that want these adapters; None when none wants any."""
        return Plan(self, adapters) if any(adapters) else None

    def _lay_out(self, kind: str, before: int) -> None:
        """Give the kind's matrices its capacity of ranks."""
        capacity = self.ranks[kind].capacity
        if capacity == before:
            return
        owners = torch.full((capacity,), NOBODY, dtype=torch.int32, device=self._device)
        if (old := self.owners.get(kind)) is not None:
            owners[: len(old)] = old[:capacity]
        self.owners[kind] = owners
        for site in self.sites:
            if site.kind == kind and site.a is not None and site.b is not None:
                old_a, old_b = site.a, site.b
                site.a, site.b = self._new(site, capacity)
                kept = min(before, capacity)
                if site.a is not None and site.b is not None:
                    views = self._views(site.a, site.b, 0, kept), self._views(old_a, old_b, 0, kept)
                    for new, old in zip(*views, strict=True):
                        new.copy_(old)

    def _new(self, site: Site, capacity: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Zeros; nothing for no ranks."""
        if not capacity:
            return None, None
        a, b = (
            torch.zeros(shape, dtype=self._dtype, device=self._device)
            for shape in self._shapes(site, capacity)
        )
        return a, b

    def _write(self, site: Site, taken: Range, added: Addition | None, number: int) -> None:
        if site.a is None or site.b is None:
            site.a, site.b = self._new(site, self.ranks[site.kind].capacity)
        assert site.a is not None
        assert site.b is not None
        for view in self._views(site.a, site.b, *taken):
            view.zero_()
        if added is None:
            return
        views = self._views(site.a, site.b, taken.low, taken.low + added.ranks)
        for view, own in zip(views, (added.a, added.b), strict=True):
            view.copy_(own)
        if added.scale is not None:
            count = max(number + 1, 0 if site.scale is None else len(site.scale))
            scale = added.scale.new_zeros(count, len(added.scale))
            if site.scale is not None:
                scale[: len(site.scale)] = site.scale
            scale[number] = added.scale
            site.scale = scale


class Run(NamedTuple):
    """Rows and ranks that are multiplied together."""

    rows: slice
    ranks: slice
    mask: Tensor | None  # [rows, ranks]; None: all rows want all of the ranks


class Plan:
    """Which rows of a pass want which adapter."""

    def __init__(self, bank: Bank, adapters: Sequence[str | None]) -> None:
        """Raises KeyError for an adapter that the bank does not have."""
        self._bank = bank
        self._adapters = adapters
        self._numbers = [-1 if key is None else bank.numbers[key] for key in adapters]
        self._of_rows = torch.tensor(self._numbers, device=bank._device)
        self._active = {key for key in adapters if key is not None}
        scaled = [row for row, key in enumerate(adapters) if key in bank.scaled]
        self._scaled = torch.tensor(scaled, device=bank._device) if scaled else None
        self._runs: dict[str, Sequence[Run]] = {}

    def add(self, site: Site, x: Tensor, y: Tensor) -> Tensor:
        """Change y [rows, outputs], the base layer's output for x [rows, inputs], in place."""
        if site.a is None or site.b is None:
            return y
        if self._scaled is not None and site.scale is not None:
            self._rescale(site, site.scale, y)
        if site.kind not in self._runs:
            self._runs[site.kind] = self._runs_of(site.kind, x.dtype)
        for rows, ranks, mask in self._runs[site.kind]:
            inner = x[rows] @ site.a[ranks].T
            if mask is not None:
                inner *= mask
            y[rows].addmm_(inner, site.b[ranks])
        return y

    def _rescale(self, site: Site, scale: Tensor, y: Tensor) -> None:
        """DoRA's: what comes from the weight, not the bias, is scaled."""
        rows = self._scaled
        assert rows is not None
        numbers = self._of_rows[rows]
        known = numbers < len(scale)
        rows, numbers = rows[known], numbers[known]
        own = y[rows]
        y[rows] = own + scale[numbers] * (own if site.bias is None else own - site.bias)

    def _runs_of(self, kind: str, dtype: torch.dtype) -> Sequence[Run]:
        runs = []
        for (low, high), keys in self._bank.ranks[kind].runs(self._active):
            own = {self._bank.numbers[key] for key in keys}
            places = [row for row, number in enumerate(self._numbers) if number in own]
            rows, ranks = slice(places[0], places[-1] + 1), slice(low, high)
            mask = None
            if len(keys) > 1 or len(places) < rows.stop - rows.start:
                owner = self._bank.owners[kind][ranks]
                mask = (self._of_rows[rows, None] == owner[None]).to(dtype)
            runs.append(Run(rows, ranks, mask))
        return runs


def _first_free(taken: object) -> int:
    used = set(taken)  # type: ignore[call-overload]
    return next(number for number in range(len(used) + 1) if number not in used)


def _zeroed(scale: Tensor, number: int) -> Tensor:
    if number < len(scale):
        scale[number] = 0
    return scale
