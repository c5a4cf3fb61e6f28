"""Figures that only the app shows, in the look of ``memscope.report.plots.style``: pure functions from tables to
figures."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from memscope.report.plots import style

_SHARES = ("coverage", "unread_share", "by_score_share")
"""Metrics that are shown in percent."""


def score_histogram(
    scores: dict[int, np.ndarray], layers: Sequence[int], name: str = "gate score", *, dark: bool = False
) -> Figure:
    """Scores of all selections of one entry, one line per layer that uses it.

    Args:
        scores: gate scores by layer.
        layers: all layers that select, which colours go by.
        name: of a score.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    figure.set_figheight(2.4)
    low = min(float(values.min()) for values in scores.values())
    high = max(float(values.max()) for values in scores.values())
    edges = np.linspace(low, high if high > low else low + 1, 41)
    colors = dict(zip(layers, style.layer_colors(len(layers), dark), strict=True))
    for layer, values in scores.items():
        axes.stairs(np.histogram(values, edges)[0], edges, color=colors[layer], linewidth=1.6, label=f"layer {layer}")
    axes.set(xlabel=name, ylabel="selections")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    style.legend(axes)
    return figure


def layer_usage(usage: pd.DataFrame, even: float, *, dark: bool = False) -> Figure:
    """Selections of one entry per layer, beside the even share.

    Args:
        usage: ``EntryCard.usage``.
        even: selections that every entry would get in a layer.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    figure.set_figheight(2.4)
    position = np.arange(len(usage))
    axes.bar(position, usage["count"], 0.6, color=style.layer_colors(len(usage), dark))
    axes.axhline(even, color=style.ink(dark), linestyle="--", linewidth=1, label=f"even share ({even:,.1f})")
    axes.set(xlabel="layer", ylabel="selections")
    axes.set_xticks(position, [str(layer) for layer in usage["layer"]])
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    style.legend(axes)
    return figure


def place_on_map(x: np.ndarray, y: np.ndarray, entry: int, *, dark: bool = False) -> Figure:
    """Where one entry lies among all, drawn by density."""
    figure, axes = style.panel(dark)
    figure.set_size_inches(3.2, 3.2)
    known = ~(np.isnan(x) | np.isnan(y))
    density, _, _ = np.histogram2d(x[known], y[known], 140)
    extent = (x[known].min(), x[known].max(), y[known].min(), y[known].max())
    axes.imshow(
        np.log1p(density.T),
        origin="lower",
        extent=extent,
        aspect="auto",
        cmap="Greys_r" if dark else "Greys",
        alpha=0.8,
    )
    axes.plot(
        x[entry], y[entry], "o", color=style.ORANGE, markersize=11, markeredgecolor=style.ink(dark), markeredgewidth=1.5
    )
    axes.margins(0.05)  # the mark is whole at the edge, too
    axes.autoscale()
    axes.set_axis_off()
    return figure


def count_histogram(
    counts: style.Usage,
    layers: Sequence[int],
    log: bool,
    words: tuple[str, str] = ("an entry", "entries"),
    *,
    dark: bool = False,
) -> Figure:
    """How many entries have how much usage, one line per layer.

    Args:
        counts: usage per layer and entry, ``[entry]`` for every layer.
        layers: names of the layers.
        words: what an entry, with its article, and several are called.
        log: logarithmic bins and axes; entries without usage stand at the left end. Otherwise 40 equal bins up to the
            99.5th percentile, with the last one holding all above.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    every = np.concatenate(list(counts))
    used = every[every > 0]
    top = float(used.max()) if used.size else 1.0
    if log:
        least = float(used.min()) if used.size else 1.0
        edges = np.geomspace(least, top * 1.01, 40)
        if np.issubdtype(every.dtype, np.integer):
            edges = np.unique(np.append(np.rint(edges), top + 1)) - 0.5  # no bin without a whole number in it
        edges = np.concatenate([[edges[0] / 2.5, edges[0] / 1.4], edges])
        values = [np.where(row > 0, row, edges[:2].mean()) for row in counts]
        axes.set(xscale="log", yscale="log", xlabel=f"usage of {words[0]} (left end: none)", ylabel=words[1])
    else:
        edges = np.linspace(0, float(np.quantile(used, 0.995)) if used.size else 1.0, 41)
        values = [np.minimum(row, edges[-1]) for row in counts]
        axes.set(xlabel=f"usage of {words[0]} (right end: all above)", ylabel=words[1])
    for row, color in zip(values, style.layer_colors(len(layers), dark), strict=True):
        axes.stairs(np.histogram(row, edges)[0], edges, color=color, linewidth=1.5)
    if every.any():
        axes.axvline(float(every.mean()), color=style.ink(dark), linestyle="--", linewidth=1, label="even share")
    style.layer_legend(axes, layers, dark)
    return figure


def profile(rows: dict[int, pd.DataFrame], value: str, name: str, axis: str, *, dark: bool = False) -> Figure:
    """A number along the position or the frequency of the reading token, one line per layer.

    Args:
        rows: profile rows by layer (``label`` and ``value``).
        value: column to draw.
        name: what it is.
        axis: what the labels are.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    layers = list(rows)
    labels = next(iter(rows.values()))["label"].tolist()
    for frame, color in zip(rows.values(), style.layer_colors(len(layers), dark), strict=True):
        axes.plot(np.arange(len(frame)), frame[value], "o-", color=color, markersize=4)
        if f"even_{value}" in frame:
            axes.plot(np.arange(len(frame)), frame[f"even_{value}"], ":", color=color, linewidth=1)
    axes.set_xticks(np.arange(len(labels)), map(style.plain_label, labels), rotation=35, ha="right")
    axes.set(xlabel=axis, ylabel=name)
    _percent(axes, value)
    style.layer_legend(axes, layers, dark)
    return figure


def histograms_of(
    values: dict[str, np.ndarray], edges: np.ndarray, xlabel: str, ylabel: str, log: str, *, dark: bool = False
) -> Figure:
    """Shares per bin, one line per name; names are ordered (layers, heads); ``log`` names logarithmic axes."""
    figure, axes = style.panel(dark)
    colors = style.layer_colors(len(values), dark)
    axes.set(xscale="log" if "x" in log else "linear", yscale="log" if "y" in log else "linear")
    if "y" not in log:
        axes.yaxis.set_major_formatter(style.PERCENT)
    for number, ((name, counts), color) in enumerate(zip(values.items(), colors, strict=True)):
        named = len(values) <= style.LABELLED or number in (0, len(values) - 1)
        shares = counts / max(1, counts.sum())
        label = style.plain_label(name) if named else None
        axes.stairs(shares, edges, color=color, linewidth=1.5, baseline=None, label=label)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    style.legend(axes)
    return figure


def gate_against_read(
    gate: np.ndarray, read: np.ndarray, selected: int, score: str = "gate", *, dark: bool = False
) -> Figure:
    """Density of selections by gate share and read share, both over their token's sum, on logarithmic axes."""
    shares = f"{score} share"
    figure, axes = style.panel(dark)
    figure.set_size_inches(style.SIZE[0], 4.0)
    edges = np.geomspace(1e-3, 1, 61)
    counts, _, _ = np.histogram2d(np.clip(gate.ravel(), 1e-3, 1), np.clip(read.ravel(), 1e-3, 1), [edges, edges])
    mesh = axes.pcolormesh(
        edges, edges, np.ma.masked_equal(np.log10(np.maximum(counts.T, 0.5)), np.log10(0.5)), cmap="viridis"
    )
    axes.plot([1e-3, 1], [1e-3, 1], color=style.ink(dark), linewidth=1, linestyle="--", label=f"read share = {shares}")
    axes.axhline(0.01, color=style.ORANGE, linewidth=1.2, label="unread below")
    axes.axvline(
        1 / selected, color=style.ink(dark), linewidth=0.8, linestyle=":", label=f"even {shares} (1/{selected})"
    )
    axes.set(xscale="log", yscale="log", xlabel=f"{shares} of the token", ylabel="share of the token's read")
    bar = figure.colorbar(mesh, ax=axes, label="selections, log10")
    bar.ax.yaxis.label.set_color(style.ink(dark))
    bar.ax.tick_params(colors=style.ink(dark))
    style.legend(axes, **style.ABOVE | {"ncols": 2})
    return figure


def metrics_over_time(curve: pd.DataFrame, metrics: dict[str, str], *, dark: bool = False) -> Figure:
    """Evenness on validation over training steps, one panel per metric, one line per layer.

    Args:
        curve: ``Recording.training_curve()``.
        metrics: column of ``layer_{l}/...`` and its name.
        dark: for a dark page.
    """
    evaluations = curve[curve["kind"] == "eval"]
    layers = sorted({int(name.split("/")[0].removeprefix("layer_")) for name in curve if name.startswith("layer_")})
    figure, axes = style.panels(len(metrics), dark)
    figure.set_size_inches(2.9 * len(metrics), 2.7)
    for panel, (metric, name) in zip(axes, metrics.items(), strict=True):
        for layer, color in zip(layers, style.layer_colors(len(layers), dark), strict=True):
            panel.plot(evaluations["step"], evaluations[f"layer_{layer}/{metric}"], "o-", color=color, markersize=4)
        panel.set(xlabel="training step", ylabel=name)
        panel.set_ylim(bottom=0)
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        _percent(panel, metric)
    style.layer_legend(axes[0], layers, dark, columns=2)
    return figure


def paired_metrics(both: pd.DataFrame, metrics: dict[str, str], *, dark: bool = False) -> Figure:
    """Metrics of two recordings per layer, one panel each: A as dots, B as squares, a line from one to the other.

    Args:
        both: ``pairs.paired_metrics``.
        metrics: column and its name; those that the table lacks are left out.
        dark: for a dark page.
    """
    shown = {metric: name for metric, name in metrics.items() if f"{metric}_a" in both}
    figure, axes = style.panels(len(shown), dark)
    figure.set_size_inches(2.9 * len(shown), 2.7)
    position = np.arange(len(both))
    for panel, (metric, name) in zip(axes, shown.items(), strict=True):
        panel.vlines(position, both[f"{metric}_a"], both[f"{metric}_b"], color=style.ink(dark), linewidth=1)
        panel.plot(position, both[f"{metric}_a"], "o", color=style.blue(dark), label="A")
        panel.plot(position, both[f"{metric}_b"], "s", color=style.ORANGE, label="B")
        highest = float(both[[f"{metric}_a", f"{metric}_b"]].max(axis=None))
        panel.set(xlabel="layer", ylabel=name, ylim=(0, 1.12 * highest or 1))
        panel.set_xticks(position, [str(layer) for layer in both["layer"]])
        panel.margins(x=0.12)
        _percent(panel, metric)
    style.legend(axes[0])
    return figure


def _percent(axes: Axes, metric: str) -> None:
    if metric in _SHARES:
        axes.yaxis.set_major_formatter(style.PERCENT if axes.get_ylim()[1] > 0.05 else PercentFormatter(1))
    elif axes.get_ylim()[1] >= 1000:
        axes.yaxis.set_major_formatter(style.THOUSANDS)
