"""Figures of the app and the report: pure functions from tables to matplotlib figures, without pyplot.

    lorenz_curve(recording.usage(), recording.info.layers).savefig("lorenz.svg")

The look is that of ``report/plots/style.py``; ``dark`` draws for a dark page.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from memscope.report.plots import style

Words = tuple[str, str]
ENTRIES = ("entry", "entries")
_POINTS = 400
"""Points that a curve over all entries is thinned to."""


def usage_histogram(
    counts: style.Usage, layers: Sequence[int], words: Words = ENTRIES, *, dark: bool = False
) -> Figure:
    """Selections of every entry against its rank in the layer, both on logarithmic axes.

    Args:
        counts: usage per layer and entry, ``[entry]`` for every layer: selections, or summed gate scores or read
            weights.
        layers: names of the layers, in the order of the first axis.
        words: what an entry and several are called.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    n, every = max(map(len, counts)), np.concatenate(list(counts))
    for row, color in zip(counts, style.layer_colors(len(layers), dark), strict=True):
        used = np.sort(row[row > 0])[::-1]
        if len(used):
            kept = np.unique(np.geomspace(1, len(used), _POINTS).astype(int)) - 1
            axes.plot(kept + 1, used[kept], color=color)
            axes.plot(len(used), used[-1], "o", color=color, markersize=4)
    if every.any():
        axes.axhline(float(every.mean()), color=style.ink(dark), linestyle="--", linewidth=1, label="mean, all layers")
        axes.set_yscale("log")
    axes.set(xscale="log", xlim=(0.9, n * 1.1), xlabel=f"rank of {words[0]} within its layer (1 = most used)")
    axes.set_ylabel("selections" if np.issubdtype(every.dtype, np.integer) else "summed weight")
    style.layer_legend(axes, layers, dark)
    return figure


def lorenz_curve(counts: style.Usage, layers: Sequence[int], words: Words = ENTRIES, *, dark: bool = False) -> Figure:
    """Share of all usage that the least used entries hold; the diagonal is even selection.

    Args:
        counts: usage per layer and entry, ``[entry]`` for every layer.
        layers: names of the layers, in the order of the first axis.
        words: what an entry and several are called.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    for row, color in zip(counts, style.layer_colors(len(layers), dark), strict=True):
        n = len(row)
        kept = np.unique(np.linspace(0, n, _POINTS).astype(int))
        mass = np.concatenate([[0.0], np.cumsum(np.sort(row), dtype=np.float64)])
        axes.plot(kept / n, mass[kept] / max(mass[-1], 1e-300), color=color)
    axes.plot([0, 1], [0, 1], color=style.ink(dark), linestyle="--", linewidth=1, label="even selection")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=f"share of {words[1]}, least used first", ylabel="share of usage")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(style.PERCENT)
    style.layer_legend(axes, layers, dark)
    return figure


def coverage_bars(metrics: pd.DataFrame, words: Words = ENTRIES, *, dark: bool = False) -> Figure:
    """Share of entries used at all, beside what even selection gives after as many selections.

    Args:
        metrics: ``Recording.layer_metrics()``.
        words: what an entry and several are called.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    place = np.arange(len(metrics))
    bars = axes.bar(place - 0.2, metrics["coverage"], 0.36, color=style.blue(dark), label="recorded")
    even = axes.bar(
        place + 0.2, metrics["even_coverage"], 0.36, color="none", edgecolor=style.ink(dark), label="even selection"
    )
    for group in (bars, even) if len(metrics) <= style.LABELLED else ():
        axes.bar_label(group, fmt=_short_percent, fontsize=8, padding=2, color=style.ink(dark))
    axes.set(ylim=(0, 1.3), ylabel=f"{words[1]} used", xlabel="layer")
    axes.set_xticks(place, [str(layer) for layer in metrics["layer"]])
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(style.PERCENT)
    style.legend(axes, loc="upper right", ncols=2)
    return figure


def top_mass(metrics: pd.DataFrame, words: Words = ENTRIES, *, dark: bool = False) -> Figure:
    """How many of the most used entries hold 50, 90 and 99% of a layer's usage, on a logarithmic axis.

    Args:
        metrics: ``Recording.layer_metrics()``.
        words: what an entry and several are called.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    figure.set_figheight(max(style.SIZE[1], 0.3 * len(metrics)))
    place = np.arange(len(metrics))
    axes.hlines(
        place, metrics["top50"].clip(lower=1), metrics["top99"].clip(lower=1), color=style.ink(dark), linewidth=1
    )
    for name, color, marker in (
        ("top50", style.blue(dark), "o"),
        ("top90", style.ORANGE, "s"),
        ("top99", style.GREEN, "D"),
    ):
        x = metrics[name].clip(lower=1)
        axes.plot(x, place, marker, color=color, markersize=7, label=f"{name.removeprefix('top')}% of usage")
        for entries, y in zip(metrics[name], place, strict=True):
            axes.annotate(
                f"{entries:,}",
                (max(entries, 1), y),
                (0, -6 if name == "top90" else 6),  # on the other side of the line, so that neighbours do not collide
                textcoords="offset points",
                ha="center",
                va="top" if name == "top90" else "bottom",
                fontsize=8,
                color=style.ink(dark),
            )
    n = int(metrics["entries"].max())
    axes.axvline(n, color=style.ink(dark), linestyle="--", linewidth=1, label=f"all it can select ({n:,})")
    axes.set(xscale="log", xlim=(0.8, n * 1.6), ylim=(len(metrics) - 0.4, -0.6))
    axes.set(xlabel=f"most used {words[1]} (number)", ylabel="layer")
    axes.set_yticks(place, [str(layer) for layer in metrics["layer"]])
    style.legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
    return figure


def read_share_histogram(reading: pd.DataFrame, word: str = "an entry", *, dark: bool = False) -> Figure:
    """Distribution of the share of a token's read that one selected entry gets, one line per layer.

    Args:
        reading: ``Recording.reading_metrics()``; its ``read_share_histogram`` has equal bins over [0, 1].
        word: what is selected, with its article.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    highest = 0.1  # a share that any entry got
    for values, color in zip(reading["read_share_histogram"], style.layer_colors(len(reading), dark), strict=True):
        histogram = np.asarray(values, dtype=np.float64)
        share = histogram / max(histogram.sum(), 1)
        edges = np.linspace(0, 1, len(share) + 1)
        axes.stairs(share, edges, color=color, linewidth=1.5, baseline=None)
        highest = max(highest, float(edges[1:][share > 0].max(initial=0)))
    axes.set(yscale="log", xlim=(0, highest), xlabel=f"share of its token's read that {word} gets")
    axes.set_ylabel("share of selections (bins of 2%)")
    axes.xaxis.set_major_formatter(style.PERCENT)
    style.layer_legend(axes, reading["layer"].tolist(), dark)
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
    figure, both = style.panels(2 if used else 1, dark)
    loss = both[0]
    for kind, color, marks, label in (
        ("train", style.blue(dark), "-", "training"),
        ("eval", style.ORANGE, "o-", "validation"),
    ):
        rows = curve[curve["kind"] == kind] if len(curve) else curve
        if len(rows):
            loss.plot(rows["step"], rows["loss"], marks, color=color, label=label)
    loss.set(xlabel="training step", ylabel="loss (nats per token)")
    if loss.has_data():
        style.legend(loss)
    if used:
        entries = both[1]
        for values, color in zip(used.values(), style.layer_colors(len(used), dark), strict=True):
            entries.plot(evaluations["step"], values, "o-", color=color)
        entries.set(xlabel="training step", ylabel="entries used on validation", ylim=(0, None))
        entries.yaxis.set_major_formatter(style.THOUSANDS)
        style.layer_legend(entries, list(used), dark)
    last = max(1, curve["step"].max()) if len(curve) else 1
    for axes in both:  # a run that has just begun has one validation: its step alone makes no axis
        axes.set_xlim(-0.03 * last, 1.03 * last)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _short_percent(share: float) -> str:
    return f"{share:.1%}" if 0 < share < 0.095 else f"{share:.0%}"
