"""Metrics on Ray's: Prometheus reads them, as `ray_stack_…`, from Ray's metrics port."""

from __future__ import annotations

from typing import Any

from ray.serve import metrics

from stack import metrics as server
from stack.agents import metrics as agents
from stack.engine import metrics as engine
from stack.telemetry import metrics as telemetry
from stack.tools import metrics as tools
from stack.vector import metrics as vector

_ALL = {
    **agents.METRICS,
    **engine.METRICS,
    **server.METRICS,
    **telemetry.METRICS,
    **tools.METRICS,
    **vector.METRICS,
}
_BOUNDARIES_S = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]


class ServeMeter:
    """A `Meter` whose reports have these labels. Ray adds the application, deployment and replica."""

    def __init__(self, **labels: str) -> None:
        self._labels = labels
        self._metrics: dict[str, Any] = {}
        self._further: dict[tuple[tuple[str, str], ...], ServeMeter] = {}

    def labelled(self, **labels: str) -> ServeMeter:
        key = tuple(labels.items())
        if key not in self._further:
            self._further[key] = ServeMeter(**self._labels, **labels)
        return self._further[key]

    def count(self, name: str, value: float = 1.0) -> None:
        if value > 0:  # Ray refuses to add nothing
            self._get(name, metrics.Counter).inc(value)

    def gauge(self, name: str, value: float) -> None:
        self._get(name, metrics.Gauge).set(value)

    def observe(self, name: str, value: float) -> None:
        self._get(name, metrics.Histogram, boundaries=_BOUNDARIES_S).observe(value)

    def _get(self, name: str, kind: Any, **options: Any) -> Any:
        if name not in self._metrics:
            _, description = _ALL.get(name, ("", name))
            metric = kind(f"stack_{name}", description=description, tag_keys=tuple(self._labels), **options)
            metric.set_default_tags(dict(self._labels))  # which Serve adds to
            self._metrics[name] = metric
        return self._metrics[name]
