"""Figures of the app and the report: pure functions from tables to matplotlib figures, without pyplot.

    lorenz_curve(recording.usage(), recording.info.layers).savefig("lorenz.svg")

Layers are ordered, so they run along viridis; other colours are Okabe and Ito's. Both can be told apart by
colour-blind readers and in grey print. ``dark`` draws for a dark page.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

SIZE = (5.6, 3.5)
"""Width and height of one panel in inches."""
ORANGE, GREEN = "#E69F00", "#009E73"
_POINTS = 400
"""Points that a curve over all entries is thinned to."""
_LABELLED = 8
"""Layers that are all named; of more, only some."""


def usage_histogram(counts: np.ndarray, layers: Sequence[int], *, dark: bool = False) -> Figure:
    """Selections of every entry against its rank in the layer, both on logarithmic axes.

    Args:
        counts: usage per layer and entry, ``[layer, N]``: selections, or summed gate scores or read weights.
        layers: names of the layers, in the order of the first axis.
        dark: for a dark page.
    """
    figure, axes = _panel(dark)
    n = counts.shape[1]
    for row, color in zip(counts, _layer_colors(len(layers), dark), strict=True):
        used = np.sort(row[row > 0])[::-1]
        if len(used):
            kept = np.unique(np.geomspace(1, len(used), _POINTS).astype(int)) - 1
            axes.plot(kept + 1, used[kept], color=color)
            axes.plot(len(used), used[-1], "o", color=color, markersize=4)
    if counts.any():
        axes.axhline(float(counts.mean()), color=_ink(dark), linestyle="--", linewidth=1, label="mean, all layers")
        axes.set_yscale("log")
    axes.set(xscale="log", xlim=(0.9, n * 1.1), xlabel="rank of entry within its layer (1 = most used)")
    axes.set_ylabel("selections" if np.issubdtype(counts.dtype, np.integer) else "summed weight")
    _layer_legend(axes, layers, dark)
    return figure


def lorenz_curve(counts: np.ndarray, layers: Sequence[int], *, dark: bool = False) -> Figure:
    """Share of all usage that the least used entries hold; the diagonal is even selection.

    Args:
        counts: usage per layer and entry, ``[layer, N]``.
        layers: names of the layers, in the order of the first axis.
        dark: for a dark page.
    """
    figure, axes = _panel(dark)
    n = counts.shape[1]
    kept = np.unique(np.linspace(0, n, _POINTS).astype(int))
    for row, color in zip(counts, _layer_colors(len(layers), dark), strict=True):
        mass = np.concatenate([[0.0], np.cumsum(np.sort(row), dtype=np.float64)])
        axes.plot(kept / n, mass[kept] / max(mass[-1], 1e-300), color=color)
    axes.plot([0, 1], [0, 1], color=_ink(dark), linestyle="--", linewidth=1, label="even selection")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="share of entries, least used first", ylabel="share of usage")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_PERCENT)
    _layer_legend(axes, layers, dark)
    return figure


def coverage_bars(metrics: pd.DataFrame, *, dark: bool = False) -> Figure:
    """Share of entries used at all, beside what even selection gives after as many selections.

    Args:
        metrics: ``Recording.layer_metrics()``.
        dark: for a dark page.
    """
    figure, axes = _panel(dark)
    place = np.arange(len(metrics))
    bars = axes.bar(place - 0.2, metrics["coverage"], 0.36, color=_blue(dark), label="recorded")
    even = axes.bar(
        place + 0.2, metrics["even_coverage"], 0.36, color="none", edgecolor=_ink(dark), label="even selection"
    )
    for group in (bars, even) if len(metrics) <= _LABELLED else ():
        axes.bar_label(group, fmt=lambda share: f"{share:.0%}", fontsize=8, padding=2, color=_ink(dark))
    axes.set(ylim=(0, 1.3), ylabel="entries used", xlabel="layer")
    axes.set_xticks(place, [str(layer) for layer in metrics["layer"]])
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(_PERCENT)
    _legend(axes, loc="upper right", ncols=2)
    return figure


def top_mass(metrics: pd.DataFrame, *, dark: bool = False) -> Figure:
    """How many of the most used entries hold 50, 90 and 99% of a layer's usage, on a logarithmic axis.

    Args:
        metrics: ``Recording.layer_metrics()``.
        dark: for a dark page.
    """
    figure, axes = _panel(dark)
    figure.set_figheight(max(SIZE[1], 0.3 * len(metrics)))
    place = np.arange(len(metrics))
    axes.hlines(place, metrics["top50"].clip(lower=1), metrics["top99"].clip(lower=1), color=_ink(dark), linewidth=1)
    for name, color, marker in (("top50", _blue(dark), "o"), ("top90", ORANGE, "s"), ("top99", GREEN, "D")):
        x = metrics[name].clip(lower=1)
        axes.plot(x, place, marker, color=color, markersize=7, label=f"{name.removeprefix('top')}% of usage")
        for entries, y in zip(metrics[name], place, strict=True):
            axes.annotate(
                f"{entries:,}",
                (max(entries, 1), y),
                (0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=_ink(dark),
            )
    n = int(metrics["entries"].max())
    axes.axvline(n, color=_ink(dark), linestyle="--", linewidth=1, label=f"whole bank ({n:,})")
    axes.set(xscale="log", xlim=(0.8, n * 1.6), ylim=(len(metrics) - 0.4, -0.6))
    axes.set(xlabel="most used entries (number)", ylabel="layer")
    axes.set_yticks(place, [str(layer) for layer in metrics["layer"]])
    _legend(axes)
    return figure


def read_share_histogram(reading: pd.DataFrame, *, dark: bool = False) -> Figure:
    """Distribution of the share of a token's read that one selected entry gets, one line per layer.

    Args:
        reading: ``Recording.reading_metrics()``; its ``read_share_histogram`` has equal bins over [0, 1].
        dark: for a dark page.
    """
    figure, axes = _panel(dark)
    highest = 0.1  # a share that any entry got
    for values, color in zip(reading["read_share_histogram"], _layer_colors(len(reading), dark), strict=True):
        histogram = np.asarray(values, dtype=np.float64)
        share = histogram / max(histogram.sum(), 1)
        edges = np.linspace(0, 1, len(share) + 1)
        axes.stairs(share, edges, color=color, linewidth=1.5, baseline=None)
        highest = max(highest, float(edges[1:][share > 0].max(initial=0)))
    axes.set(yscale="log", xlim=(0, highest), xlabel="share of its token's read that an entry gets")
    axes.set_ylabel("share of selections (bins of 2%)")
    axes.xaxis.set_major_formatter(_PERCENT)
    _layer_legend(axes, reading["layer"].tolist(), dark)
    return figure


def training_curve(curve: pd.DataFrame, *, dark: bool = False) -> Figure:
    """Training and validation loss, and entries used on validation per layer, over training steps.

    Args:
        curve: ``Recording.training_curve()``; the second panel is left out where there is no memory.
        dark: for a dark page.
    """
    evaluations = curve[curve["kind"] == "eval"] if len(curve) else curve
    used = {
        int(name.removeprefix("layer_").removesuffix("/dead")): evaluations[name.replace("dead", "entries")]
        - evaluations[name]
        for name in curve.columns
        if name.startswith("layer_") and name.endswith("/dead")
    }
    figure, panels = _panels(2 if used else 1, dark)
    loss = panels[0]
    for kind, color, style, label in (("train", _blue(dark), "-", "training"), ("eval", ORANGE, "o-", "validation")):
        rows = curve[curve["kind"] == kind] if len(curve) else curve
        if len(rows):
            loss.plot(rows["step"], rows["loss"], style, color=color, label=label)
    loss.set(xlabel="training step", ylabel="loss (nats per token)")
    if loss.has_data():
        _legend(loss)
    if used:
        entries = panels[1]
        for values, color in zip(used.values(), _layer_colors(len(used), dark), strict=True):
            entries.plot(evaluations["step"], values, "o-", color=color)
        entries.set(xlabel="training step", ylabel="entries used on validation", ylim=(0, None))
        entries.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        _layer_legend(entries, list(used), dark)
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


_PERCENT = FuncFormatter(lambda share, _: f"{share:.0%}")


def _panel(dark: bool) -> tuple[Figure, Axes]:
    figure, [axes] = _panels(1, dark)
    return figure, axes


def _panels(count: int, dark: bool) -> tuple[Figure, list[Axes]]:
    """An empty figure of panels side by side, without a box and with a faint grid."""
    figure = Figure(figsize=(SIZE[0] * count, SIZE[1]), layout="constrained")
    figure.patch.set_alpha(0.0 if dark else 1.0)
    panels = [figure.add_subplot(1, count, number + 1) for number in range(count)]
    for axes in panels:
        axes.patch.set_alpha(0.0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_ink(dark))
        axes.tick_params(colors=_ink(dark), labelsize=9)
        axes.xaxis.label.set_color(_ink(dark))
        axes.yaxis.label.set_color(_ink(dark))
        axes.grid(color=_ink(dark), alpha=0.15, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, panels


def _ink(dark: bool) -> str:
    return "#D5D9E0" if dark else "#333840"


def _blue(dark: bool) -> str:
    return "#56B4E9" if dark else "#0072B2"


def _layer_colors(count: int, dark: bool) -> np.ndarray:
    """RGBA per layer, ``[count, 4]``; viridis without the end that vanishes on the page."""
    first, last = (0.3, 1.0) if dark else (0.0, 0.85)
    return np.asarray(colormaps["viridis"](np.linspace(first, last, count)))


def _layer_legend(axes: Axes, layers: Sequence[int], dark: bool) -> None:
    """Name the layers: all when few, first, middle and last when many."""
    colors = _layer_colors(len(layers), dark)
    named = range(len(layers)) if len(layers) <= _LABELLED else (0, len(layers) // 2, len(layers) - 1)
    for number in named:
        axes.plot([], [], color=colors[number], label=f"layer {layers[number]}")
    _legend(axes)


def _legend(axes: Axes, **place: Any) -> None:
    axes.legend(frameon=False, fontsize=8, labelcolor=axes.xaxis.label.get_color(), **place)
