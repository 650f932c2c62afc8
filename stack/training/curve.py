"""The learning curve of a run as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

TRAIN, VALIDATION = "#0072b2", "#d55e00"  # of Okabe and Ito's palette, which the colour-blind can tell apart
_SIZE = (8.0, 3.6)  # inches a panel


def learning_curve(history: Sequence[dict[str, Any]], title: str) -> bytes:
    """A PNG: losses over steps, and for DPO the margins of rewards and their accuracy below.

    `history` is the trainer's log, one dict for each time that it logged.
    """
    has_rewards = any("rewards/margins" in entry for entry in history)
    figure = Figure(figsize=(_SIZE[0], _SIZE[1] * (2 if has_rewards else 1)), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    panels: list[Axes] = list(figure.subplots(2 if has_rewards else 1, 1, squeeze=False)[:, 0])
    _draw(panels[0], history, {"training": "loss", "validation": "eval_loss"}, "loss, nats")
    if has_rewards:
        margins = {"margin, training": "rewards/margins", "margin, validation": "eval_rewards/margins"}
        _draw(panels[1], history, margins, "reward, chosen less rejected")
        accuracy = panels[1].twinx()
        _line(accuracy, history, "accuracy, validation", "eval_rewards/accuracies", "#009e73")
        accuracy.set(ylabel="accuracy", ylim=(0, 1.02))
        accuracy.legend(loc="lower right", frameon=False)
    panels[0].set_title(title)
    panels[-1].set_xlabel("optimizer steps")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw(axes: Axes, history: Sequence[dict[str, Any]], lines: dict[str, str], label: str) -> None:
    for (name, key), colour in zip(lines.items(), (TRAIN, VALIDATION), strict=True):
        _line(axes, history, name, key, colour)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="upper right", frameon=False)


def _line(axes: Axes, history: Sequence[dict[str, Any]], name: str, key: str, colour: str) -> None:
    points = [(entry["step"], entry[key]) for entry in history if key in entry]
    if points:
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) < 40 else None
        axes.plot(steps, values, color=colour, label=name, marker=marker, markersize=3, linewidth=1.5)
