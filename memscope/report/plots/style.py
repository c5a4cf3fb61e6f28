"""The look that all figures share: panels without a box, colours that colour-blind readers and grey print tell apart.

    figure, axes = panel(dark=False)

Layers are ordered, so they run along viridis; other colours are Okabe and Ito's. No pyplot: a figure is an object
that nothing global remembers.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from memscope.base.printable import one_line

Usage = np.ndarray | Sequence[np.ndarray]
"""Usage of the entries that each layer can select: an array of them for every layer."""
SIZE = (5.6, 3.5)
"""Width and height of one panel in inches."""
ORANGE, GREEN = "#E69F00", "#009E73"
PERCENT = FuncFormatter(lambda share, _: f"{share:.0%}")
THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")
LABELLED = 8
"""Layers that are all named; of more, only some."""


class NotebookFigure(Figure):
    """A figure that notebooks show as a picture; plain figures of matplotlib need pyplot for that."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def panel(dark: bool = False) -> tuple[Figure, Axes]:
    """A figure of one panel."""
    figure, [axes] = panels(1, dark)
    return figure, axes


def panels(count: int, dark: bool = False) -> tuple[Figure, list[Axes]]:
    """An empty figure of panels side by side, without a box and with a faint grid."""
    figure = NotebookFigure(figsize=(SIZE[0] * count, SIZE[1]), layout="constrained")
    figure.patch.set_alpha(0.0 if dark else 1.0)
    made = [figure.add_subplot(1, count, number + 1) for number in range(count)]
    for axes in made:
        axes.patch.set_alpha(0.0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(ink(dark))
        axes.tick_params(colors=ink(dark), labelsize=9)
        axes.xaxis.label.set_color(ink(dark))
        axes.yaxis.label.set_color(ink(dark))
        axes.grid(color=ink(dark), alpha=0.15, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, made


def plain_label(text: str, most: int = 46) -> str:
    """A text from outside as a label: on one line, cut to ``most`` characters, and never read as a formula.

    matplotlib takes what stands between two dollar signs for TeX, and fails on what is none.
    """
    line = one_line(text)
    return (line if len(line) <= most else f"{line[: most - 1]}…").replace("$", r"\$")


def ink(dark: bool) -> str:
    """Colour of text, axes and reference lines."""
    return "#D5D9E0" if dark else "#333840"


def blue(dark: bool) -> str:
    """First colour of a series."""
    return "#56B4E9" if dark else "#0072B2"


def layer_colors(count: int, dark: bool) -> np.ndarray:
    """RGBA per layer, ``[count, 4]``; viridis without the end that vanishes on the page."""
    first, last = (0.3, 1.0) if dark else (0.0, 0.85)
    return np.asarray(colormaps["viridis"](np.linspace(first, last, count)))


ABOVE = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 5, "columnspacing": 1.2, "handlelength": 1.5}
"""The place of a legend where lines may run anywhere."""


def layer_legend(axes: Axes, layers: Sequence[int], dark: bool, columns: int = 5) -> None:
    """Name the layers above the axes: all when few, first, middle and last when many."""
    colors = layer_colors(len(layers), dark)
    named = range(len(layers)) if len(layers) <= LABELLED else (0, len(layers) // 2, len(layers) - 1)
    for number in named:
        axes.plot([], [], color=colors[number], label=f"layer {layers[number]}")
    legend(axes, **ABOVE | {"ncols": columns})


def legend(axes: Axes, **place: Any) -> None:
    """A legend without a frame, in the colour of the axes."""
    axes.legend(frameon=False, fontsize=8, labelcolor=axes.xaxis.label.get_color(), **place)
