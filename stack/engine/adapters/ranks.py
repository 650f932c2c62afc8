"""Which ranks of the concatenated matrices belong to which adapter."""

from __future__ import annotations

from typing import NamedTuple

GAP = 32  # foreign ranks between two adapters that are computed along rather than apart


class Range(NamedTuple):
    low: int
    high: int


class Ranks:
    """Ranges of [0, capacity), one for each adapter, all multiples of `unit`; holes are filled first."""

    def __init__(self, unit: int = 1) -> None:
        self._unit = unit
        self.ranges: dict[str, Range] = {}
        self.capacity = 0

    def take(self, key: str, width: int) -> Range:
        """The first hole that is wide enough, or new ranks at the end, of which there then are spare ones."""
        width = -(-width // self._unit) * self._unit
        low = 0
        for taken in sorted(self.ranges.values()):
            if taken.low - low >= width:
                break
            low = taken.high
        self.ranges[key] = Range(low, low + width)
        if low + width > self.capacity:
            self.capacity = max(low + width, min(2 * self.capacity, low + 4 * width))
        return self.ranges[key]

    def free(self, key: str) -> Range | None:
        """Also forgets capacity when most of it is empty."""
        freed = self.ranges.pop(key, None)
        end = max((taken.high for taken in self.ranges.values()), default=0)
        if 4 * end <= self.capacity:
            self.capacity = end
        return freed

    def runs(self, keys: set[str]) -> list[tuple[Range, list[str]]]:
        """The ranges of `keys`, neighbours as one, each with its keys."""
        runs: list[tuple[Range, list[str]]] = []
        for key in sorted(keys & self.ranges.keys(), key=self.ranges.__getitem__):
            low, high = self.ranges[key]
            if runs and low - runs[-1][0].high <= GAP:
                runs[-1] = (Range(runs[-1][0].low, high), [*runs[-1][1], key])
            else:
                runs.append((Range(low, high), [key]))
        return runs
