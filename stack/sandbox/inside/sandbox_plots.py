"""A matplotlib backend: Agg, whose `plt.show()` saves the open figures in the working folder."""

from __future__ import annotations

import os
from typing import Any

from matplotlib import pyplot
from matplotlib.backend_bases import FigureCanvasBase, FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

_PICTURES = (".png", ".jpg", ".jpeg", ".svg", ".pdf")


class FigureManager(FigureManagerBase):
    """A figure that pyplot made."""

    @classmethod
    def pyplot_show(cls, *, block: bool | None = None) -> None:
        save_open()


class FigureCanvas(FigureCanvasAgg):
    """Knows whether the script has saved the figure in a file by itself."""

    manager_class = FigureManager
    saved = False

    def print_figure(self, filename: Any, *arguments: Any, **options: Any) -> Any:
        self.saved = self.saved or isinstance(filename, str | os.PathLike)
        return super().print_figure(filename, *arguments, **options)


def save_open() -> None:
    """Save the open figures that show something and are not in a file yet, and close them all."""
    for number in pyplot.get_fignums():
        figure = pyplot.figure(number)
        is_empty = len(figure.get_children()) == 1  # its background
        if not is_empty and not _is_saved(figure.canvas):
            figure.savefig(_free_name())
    pyplot.close("all")


def _is_saved(canvas: FigureCanvasBase) -> bool:
    """Of other backends, e.g. after `matplotlib.use("Agg")`, nobody knows: if there is a picture, it is."""
    if isinstance(canvas, FigureCanvas):
        return canvas.saved
    return any(name.lower().endswith(_PICTURES) for name in os.listdir())


def _free_name() -> str:
    number = 1
    while os.path.lexists(name := f"figure_{number}.png"):
        number += 1
    return name
