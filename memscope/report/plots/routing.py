"""Figures of routing: load of every layer and entry, lifts by domain, pairs, transitions, and shares with their level.

    load_heatmap(load_matrix(recording), layers, "expert").savefig("load.svg")

Lifts are coloured by their logarithm: orange above 1, purple below. Cells without a number stay empty.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from memscope.report.plots import style

_WRITTEN = 200
"""Cells of a matrix up to which each shows its number."""
_NAMED = 32
"""Rows or columns that are all named; of more, some are."""


def load_heatmap(load: np.ndarray, layers: Sequence[int], word: str, *, dark: bool = False) -> Figure:
    """Load over the even share, layer x entry.

    Args:
        load: ``load_matrix``, ``[layer, entry]``.
        layers: names of its rows.
        word: what an entry is called.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    figure.set_size_inches(2 * style.SIZE[0], 1.2 + 0.32 * max(len(layers), 3))
    _lifts(figure, axes, load, dark, "load / even share")
    _name(axes, [str(layer) for layer in layers], "layer", load.shape[1], word)
    return figure


def lift_heatmap(lifts: pd.DataFrame, word: str, *, dark: bool = False) -> Figure:
    """Lift of every entry in every group of documents; a dot marks what is significant after correction.

    Args:
        lifts: ``domain_lift``.
        word: what an entry is called.
        dark: for a dark page.
    """
    groups = list(dict.fromkeys(lifts["group"]))
    matrix = lifts.pivot(index="group", columns="entry", values="lift").loc[groups].to_numpy(float)
    found = lifts.pivot(index="group", columns="entry", values="q").loc[groups].to_numpy(float) <= 0.05
    figure, axes = style.panel(dark)
    figure.set_size_inches(2 * style.SIZE[0], 1.2 + 0.34 * max(len(groups), 3))
    _lifts(figure, axes, matrix, dark, "lift: share in the group / share elsewhere", write=False)
    rows, columns = np.nonzero(found)
    axes.plot(columns, rows, "o", color=style.ink(dark), markersize=4)
    _name(axes, [style.plain_label(name, 24) or "no group" for name in groups], "group", matrix.shape[1], word)
    return figure


def pair_heatmap(lift: np.ndarray, word: str, *, dark: bool = False) -> Figure:
    """Lift of pairs of a layer's entries, ``[entry, entry]``."""
    figure, axes = style.panel(dark)
    figure.set_size_inches(1.3 * style.SIZE[0], 1.15 * style.SIZE[0])
    _lifts(figure, axes, lift, dark, "together / expected by load", write=False)
    _name(axes, [str(number) for number in range(len(lift))], word, lift.shape[1], word)
    return figure


def transition_heatmap(lift: np.ndarray, layers: tuple[int, int], word: str, *, dark: bool = False) -> Figure:
    """Lift of first choices of one layer (rows) and the next (columns)."""
    figure, axes = style.panel(dark)
    figure.set_size_inches(1.3 * style.SIZE[0], 1.15 * style.SIZE[0])
    _lifts(figure, axes, lift, dark, "tokens / independent layers", write=False)
    names = [str(number) for number in range(len(lift))]
    _name(axes, names, f"{word} of layer {layers[0]}", lift.shape[1], f"{word} of layer {layers[1]}")
    return figure


def shares_by_layer(
    table: pd.DataFrame, value: str, level: str, label: str, level_label: str, *, dark: bool = False
) -> Figure:
    """A share per layer with its 95% interval, beside the level that it has without the effect.

    Args:
        table: one row per layer, with ``low`` and ``high``.
        value: column of the share.
        level: column of the level.
        label: of the axis.
        level_label: of the level.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    place = np.arange(len(table))
    axes.vlines(place, table["low"], table["high"], color=style.blue(dark), linewidth=2)
    axes.plot(place, table[value], "o", color=style.blue(dark), label=label)
    axes.plot(place, table[level], "_", color=style.ink(dark), markersize=16, label=level_label)
    axes.set_xticks(place, [str(layer) for layer in table["layer"]])
    axes.set(xlabel="layer", ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(style.PERCENT)
    style.legend(axes, loc="best")
    return figure


def _lifts(figure: Figure, axes: Axes, values: np.ndarray, dark: bool, label: str, write: bool = True) -> None:
    """Cells coloured by the logarithm of a ratio, symmetric around 1."""
    with np.errstate(divide="ignore"):
        octaves = np.log2(values)
    widest = float(np.clip(np.nanmax(np.abs(octaves[np.isfinite(octaves)]), initial=0.5), 0.5, 5))
    image = axes.imshow(
        octaves.clip(-widest, widest), cmap=colormaps["PuOr_r"], vmin=-widest, vmax=widest, aspect="auto"
    )
    bar = figure.colorbar(image, ax=axes, shrink=0.9, format=FuncFormatter(lambda x, _: f"{2.0**x:.2g}"))
    bar.ax.tick_params(colors=style.ink(dark), labelsize=8)
    bar.set_label(label, color=style.ink(dark), fontsize=8)
    axes.grid(visible=False)
    if write and values.size <= _WRITTEN:
        for row, column in np.argwhere(np.isfinite(values)):
            red, green, blue_, _ = image.to_rgba(np.clip(octaves[row, column], -widest, widest))
            color = "black" if 0.3 * red + 0.59 * green + 0.11 * blue_ > 0.55 else "white"
            axes.text(column, row, f"{values[row, column]:.1f}", ha="center", va="center", fontsize=7, color=color)


def _name(axes: Axes, rows: Sequence[str], row_label: str, columns: int, column_label: str) -> None:
    """Name rows and columns; of many, some."""
    for count, names, setter in ((len(rows), rows, axes.set_yticks), (columns, range(columns), axes.set_xticks)):
        step = max(1, -(-count // _NAMED))
        setter(range(0, count, step), [str(names[number]) for number in range(0, count, step)])
    axes.set_xlabel(column_label, fontsize=9)
    axes.set_ylabel(row_label, fontsize=9)
    axes.tick_params(labelsize=8)
