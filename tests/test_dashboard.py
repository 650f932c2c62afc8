"""deployments/grafana.json shows every metric under the name that Prometheus has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from stack import metrics as server
from stack.agents import metrics as agents
from stack.engine import metrics as engine
from stack.telemetry import metrics as telemetry
from stack.tools import metrics as tools
from stack.vector import metrics as vector

DASHBOARD = Path(__file__).parents[1] / "deployments/grafana.json"
SUFFIXES = {"counter": "_total", "histogram": "_bucket", "gauge": ""}


def panels() -> list[dict[str, Any]]:
    return [each for each in json.loads(DASHBOARD.read_text())["panels"] if each["type"] != "row"]


def test_every_metric_is_shown_and_no_other() -> None:
    modules = (server, agents, engine, telemetry, tools, vector)
    known = {name: kind for module in modules for name, (kind, _) in module.METRICS.items()}
    wanted = {f"ray_stack_{name}{SUFFIXES[kind]}" for name, kind in known.items()}
    asked = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    assert set(re.findall(r"ray_stack_\w+", asked)) == wanted


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
