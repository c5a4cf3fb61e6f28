"""Figures of what a gate prefers and depends on: pure functions from tables to matplotlib figures, without pyplot.

    preference_forest(recording.preferences()).savefig("preferences.svg")

The look is that of ``report/plots/style.py``; ``dark`` draws for a dark page.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from memscope.recording.census_file import MARGIN_LOWEST, ClassProfile, Overlap
from memscope.report.plots import style

_OCTAVES = 5
"""Doublings from 1 beyond which lifts are drawn at the edge."""
_DISJOINT = float(np.log(2))
"""Jensen-Shannon divergence of distributions without a common entry."""
_LEAST_DRIFT = 1e-6
"""Entries that moved less are drawn here; cosines in float32 tell no smaller ones apart."""


def preference_forest(preferences: pd.DataFrame, limit: int = 24, *, dark: bool = False) -> Figure:
    """Lift of the labels with the strongest evidence, beside the range that shuffled labels reach.

    Filled dots are significant after correction for all tests (in the lift or in ranks), whiskers the 95% interval
    over other documents, grey bars the 95% range of shuffled labels. Lifts beyond 32 and 1/32 lie at the edge.

    Args:
        preferences: ``Recording.preferences()``.
        limit: rows shown: significant ones first, then by rising p.
        dark: for a dark page.
    """
    order = preferences.assign(found=preferences["significant"] | preferences["rank_significant"])
    order = order.sort_values(["found", "p"], ascending=[False, True], kind="stable")
    shown = order.head(limit).sort_values("lift", ascending=False, kind="stable")
    figure, axes = style.panel(dark)
    figure.set_size_inches(2 * style.SIZE[0], 1.1 + 0.24 * max(4, len(shown)))
    place = np.arange(len(shown))
    columns = ("low", "lift", "high", "chance_low", "chance_high")
    octaves = np.log2(shown[list(columns)].to_numpy(float).clip(2.0**-_OCTAVES, 2.0**_OCTAVES))
    widest = int(np.ceil(np.nanmax(np.abs(octaves), initial=1.0)))
    low, lift, high, chance_low, chance_high = 2.0**octaves.T
    axes.hlines(
        place, chance_low, chance_high, color=style.ink(dark), alpha=0.22, linewidth=8, label="shuffled labels, 95%"
    )
    axes.hlines(place, low, high, color=style.blue(dark), linewidth=1.6, label="other documents, 95%")
    found = shown["found"].to_numpy(bool)
    page = "#14171c" if dark else "white"
    for group, face, label in ((~found, page, "not significant"), (found, style.blue(dark), "significant (q ≤ 5%)")):
        if group.any():
            axes.plot(
                lift[group], place[group], "o", color=face, markeredgecolor=style.blue(dark), label=label, zorder=3
            )
    axes.axvline(1, color=style.ink(dark), linestyle="--", linewidth=1)
    names = [f"{style.plain_label(f'{row.attribute}: {row.label}')} · layer {row.layer}" for row in shown.itertuples()]
    axes.set_yticks(place, names)
    axes.set(xscale="log", xlim=(2.0**-widest / 1.1, 2.0**widest * 1.1), ylim=(len(shown) - 0.4, -0.6))
    axes.set_xlabel("lift: share of selections / share of entries (1 = as its entries)")
    axes.set_ylabel("label of the sentence")
    axes.set_xticks(2.0 ** np.arange(-widest, widest + 1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}" if x >= 1 else f"1/{1 / x:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    style.legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
    return figure


def overlap_heatmap(overlap: Overlap, layers: Sequence[int], together: np.ndarray, *, dark: bool = False) -> Figure:
    """Which layers use the same entries: Jaccard index beside chance, and Jensen-Shannon divergence of usage.

    Args:
        overlap: ``Recording.census.overlap``.
        layers: names of the layers, in the order of the matrices.
        together: which layers select from the same bank, ``[layer, layer]`` (``sites.in_common``); others stay empty.
        dark: for a dark page.
    """
    figure, [left, right] = style.panels(2, dark)
    jaccard, chance, divergence = map(np.array, (overlap.jaccard, overlap.even_jaccard, overlap.jensen_shannon))
    pairs = together & ~np.eye(len(layers), dtype=bool)
    beyond = np.where(pairs, jaccard - chance, np.nan)
    widest = max(0.02, float(np.nanmax(np.abs(beyond), initial=0)))
    _matrix(figure, left, beyond, jaccard, layers, "PuOr_r", (-widest, widest), dark)
    left.set_title("Jaccard index; colour: above or below chance", fontsize=9, color=style.ink(dark))
    _matrix(figure, right, np.where(pairs, divergence, np.nan), divergence, layers, "viridis_r", (0.0, _DISJOINT), dark)
    right.set_title("Jensen-Shannon divergence of usage, nats", fontsize=9, color=style.ink(dark))
    return figure


def class_divergence(
    profiles: Sequence[Sequence[ClassProfile]], layers: Sequence[int], classes: str, *, dark: bool = False
) -> Figure:
    """How far the entries chosen for a class of tokens differ from those of the whole layer, over classes.

    Args:
        profiles: one kind of ``Recording.census.layers[...].profiles`` per layer.
        layers: names of the layers.
        classes: what the classes are, for the axis.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    labels = list(dict.fromkeys(row.label for rows in profiles for row in rows))
    for rows, color in zip(profiles, style.layer_colors(len(layers), dark), strict=True):
        place = [labels.index(row.label) for row in rows]
        axes.plot(place, [row.divergence for row in rows], "o-", color=color, markersize=4)
        axes.plot(place, [row.even_divergence for row in rows], ":", color=color, linewidth=1)
    axes.plot([], [], ":", color=style.ink(dark), linewidth=1, label="as many tokens at random")
    axes.set_xticks(range(len(labels)), map(style.plain_label, labels), rotation=30, ha="right", fontsize=8)
    axes.set(xlabel=classes, ylabel="KL from the layer's usage (nats)", ylim=(0, None))
    style.layer_legend(axes, layers, dark)
    return figure


def entropy_dots(
    reading: pd.DataFrame,
    selected: int | Sequence[int],
    words: tuple[str, str] = ("gate shares", "all selected entries alike"),
    *,
    dark: bool = False,
) -> Figure:
    """Entropy of a token's gate and read shares per layer, as a share of the most possible, with standard errors.

    Args:
        reading: ``Recording.reading_metrics()``; what it lacks is not drawn.
        selected: selections per token (K), of all layers or of each.
        words: what shares of gate scores are called, and the line at the most possible entropy.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    place = np.arange(len(reading))
    each = np.broadcast_to(selected, len(reading))
    most = np.where(each > 1, np.log(np.maximum(each, 2)), 1.0)
    for name, color, marker, label in (
        ("gate_entropy", style.blue(dark), "o", words[0]),
        ("read_entropy", style.ORANGE, "s", "read shares"),
    ):
        if name not in reading:
            continue
        error = pd.to_numeric(reading.get(f"{name}_se", pd.Series(0.0, reading.index))).fillna(0)
        axes.errorbar(place, reading[name] / most, error / most, fmt=marker, color=color, capsize=3, label=label)
    axes.axhline(1, color=style.ink(dark), linestyle="--", linewidth=1, label=words[1])
    axes.set(ylim=(0, 1.25), xlabel="layer", ylabel=f"entropy / ln {selected if isinstance(selected, int) else 'K'}")
    axes.set_xticks(place, [str(layer) for layer in reading["layer"]])
    style.legend(axes, loc="upper center", ncols=3)
    return figure


def margin_lines(reading: pd.DataFrame, *, dark: bool = False) -> Figure:
    """How far the weakest selected entry stands above the best rejected one, by what the selection saw (bias included).

    Ties are named, not drawn.

    Args:
        reading: ``Recording.reading_metrics()``; the first bin of its ``margin_histogram`` holds ties.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    layers = reading["layer"].tolist()
    occupied = [2.0**MARGIN_LOWEST]
    for number, (values, color) in enumerate(
        zip(reading["margin_histogram"], style.layer_colors(len(layers), dark), strict=True)
    ):
        share = np.asarray(values, dtype=np.float64) / max(sum(values), 1)
        edges = 2.0 ** (MARGIN_LOWEST + 0.5 * np.arange(len(share) + 1))
        label = f"layer {layers[number]}" + (f" ({share[0]:.0%} ties)" if share[0] >= 0.005 else "")
        axes.stairs(share[1:], edges[1:], color=color, linewidth=1.5, baseline=None, label=label)
        occupied += edges[1:][np.flatnonzero(share[1:])].tolist() + edges[2:][np.flatnonzero(share[1:])].tolist()
    low = min(occupied[1:], default=occupied[0])
    axes.set(xscale="log", xlim=(low, max(*occupied, 2 * low)), ylim=(0, None))
    axes.set(xlabel="selection margin: above the best rejected entry", ylabel="share of tokens and gate heads")
    axes.yaxis.set_major_formatter(style.PERCENT)
    style.legend(axes)
    return figure


def drift_curves(drift: np.ndarray, used: np.ndarray, *, dark: bool = False) -> Figure:
    """Share of entries that moved further than a drift, for used and never selected ones.

    Args:
        drift: 1 - cosine to the initial entry, ``[N]``.
        used: whether any layer selected the entry, bool ``[N]``.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    for members, color, line, label in (
        (used, style.blue(dark), "-", "used"),
        (~used, style.ORANGE, "--", "never selected"),
    ):
        values = np.sort(drift[members & ~np.isnan(drift)])
        if len(values):
            kept = np.unique(np.linspace(0, len(values) - 1, 400).astype(int))
            further = 1 - kept / len(values)
            axes.plot(values[kept].clip(_LEAST_DRIFT), further, line, color=color, label=f"{label} ({len(values):,})")
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="drift (1 − cosine to the initial entry)")
    axes.set_ylabel("entries that moved at least so far")
    axes.yaxis.set_major_formatter(style.PERCENT)
    if axes.has_data():
        style.legend(axes)
    return figure


def _matrix(
    figure: Figure,
    axes: Axes,
    color: np.ndarray,
    shown: np.ndarray,
    layers: Sequence[int],
    colors: str,
    limits: tuple[float, float],
    dark: bool,
) -> None:
    """Cells coloured by one matrix and named by another; NaN stays empty."""
    image = axes.imshow(color, cmap=colormaps[colors], vmin=limits[0], vmax=limits[1])
    bar = figure.colorbar(image, ax=axes, shrink=0.85)
    bar.ax.tick_params(colors=style.ink(dark), labelsize=8)
    names = [str(layer) for layer in layers]
    axes.set_xticks(range(len(layers)), names)
    axes.set_yticks(range(len(layers)), names)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("layer", fontsize=9)
    axes.set_ylabel("layer", fontsize=9)
    axes.grid(visible=False)
    if len(layers) > style.LABELLED:
        return
    form = ".2f" if np.nanmax(np.where(np.isnan(color), np.nan, shown), initial=0) >= 0.1 else ".3f"
    for row, column in np.argwhere(~np.isnan(color)):
        red, green, blue_, _ = image.to_rgba(color[row, column])
        light = 0.3 * red + 0.59 * green + 0.11 * blue_ > 0.55
        axes.text(
            column,
            row,
            f"{shown[row, column]:{form}}",
            ha="center",
            va="center",
            fontsize=8,
            color="black" if light else "white",
        )
