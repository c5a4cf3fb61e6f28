"""Figures of a comparison of two recordings: pure functions from tables to matplotlib figures, without pyplot."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from memscope.report.plots import style

_SHOWN_PREDICATES = 20
_LEAST = 1e-7
"""Divergences below are drawn here: a logarithmic axis has no zero."""


def divergence_dots(layers: pd.DataFrame, word: str = "entry", *, dark: bool = False) -> Figure:
    """Jensen-Shannon divergence per layer on a logarithmic axis, with what other text alone would show.

    Args:
        layers: ``layer jensen_shannon halves_jensen_shannon_a halves_jensen_shannon_b``.
        word: what one entry is called.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    place = np.arange(len(layers))
    values = layers["jensen_shannon"].clip(lower=_LEAST)
    axes.plot(place, values, "o", color=style.blue(dark), markersize=8, label="A against B")
    for x, y, shown in (
        zip(place, values, layers["jensen_shannon"], strict=True) if len(layers) <= style.LABELLED else ()
    ):
        label = axes.annotate(f"{shown:.2g}", (x, y), (0, -14), textcoords="offset points", ha="center", fontsize=8)
        label.set_color(style.ink(dark))
    for side, color in (("A", style.ORANGE), ("B", style.ink(dark))):
        apart = layers[f"halves_jensen_shannon_{side.lower()}"]
        if apart.notna().all():
            _ticks(axes, place, apart.clip(lower=_LEAST), color, f"two halves of {side}")
    axes.axhline(np.log(2), color=style.ink(dark), linestyle=":", linewidth=1, label=f"no {word} in common (ln 2)")
    axes.set(yscale="log", ylim=(None, 2), xlabel="layer", ylabel="Jensen-Shannon divergence (nats)")
    axes.set_xticks(place, [str(layer) for layer in layers["layer"]])
    axes.margins(x=0.08)
    style.legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure


def overlap_bars(layers: pd.DataFrame, words: str = "entries", *, dark: bool = False) -> Figure:
    """Jaccard index of used entries per layer, with both ends of what chance could give.

    Args:
        layers: ``layer jaccard independent_jaccard halves_jaccard``.
        words: what several entries are called.
        dark: for a dark page.
    """
    figure, axes = style.panel(dark)
    place = np.arange(len(layers))
    bars = axes.bar(place, layers["jaccard"], 0.6, color=style.blue(dark), label="A against B")
    if len(layers) <= style.LABELLED:
        axes.bar_label(bars, fmt="%.2f", fontsize=8, label_type="center", color=_page(dark))
    if layers["halves_jaccard"].notna().all():
        _ticks(axes, place, layers["halves_jaccard"], style.ink(dark), "two halves of one")
    _ticks(axes, place, layers["independent_jaccard"], style.ORANGE, "independent sets")
    axes.set(ylim=(0, 1.15), xlabel="layer", ylabel=f"{words} used by both / by either")
    axes.set_xticks(place, [str(layer) for layer in layers["layer"]])
    style.legend(axes, loc="upper center", ncols=3)
    return figure


def usage_scatter(a: np.ndarray, b: np.ndarray, layers: Sequence[int], *, dark: bool = False) -> Figure:
    """Selections of every entry in A against B, both logarithmic; entries of one side alone lie on the axes.

    Args:
        a: selections, ``[layer, N]``.
        b: likewise, of the other recording.
        layers: names of the layers, in the order of the first axis.
        dark: for a dark page.
    """
    figure, [left, right] = style.panels(2, dark)
    colors = style.layer_colors(len(layers), dark)
    half = (len(layers) + 1) // 2
    highest = max(int(a.max(initial=1)), int(b.max(initial=1)))
    for axes, members in ((left, range(half)), (right, range(half, len(layers)))):
        for number in members:
            used = (a[number] > 0) | (b[number] > 0)
            x, y = (np.maximum(side[number][used], 0.4) for side in (a, b))
            axes.plot(x, y, "o", color=colors[number], markersize=2.5, alpha=0.5, markeredgewidth=0, rasterized=True)
            axes.plot([], [], "o", color=colors[number], markersize=5, label=f"layer {layers[number]}")
        axes.plot([1, highest], [1, highest], color=style.ink(dark), linestyle="--", linewidth=1, label="equally often")
        axes.set(xscale="log", yscale="log", xlim=(0.3, highest * 1.6), ylim=(0.3, highest * 1.6))
        axes.set(xlabel="selections in A (left edge: none)", ylabel="selections in B (bottom edge: none)")
        style.legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5)
    if len(layers) == 1:
        right.remove()
        figure.set_figwidth(style.SIZE[0])
    return figure


def evenness_changes(evenness: pd.DataFrame, words: str = "entries", *, dark: bool = False) -> Figure:
    """Coverage and KL to uniform of every layer in A and B.

    Args:
        evenness: ``layer metric a b`` (``Changes.evenness``); rows of all layers together are left out.
        words: what several entries are called.
        dark: for a dark page.
    """
    figure, both = style.panels(2, dark)
    for axes, metric, label in zip(
        both, ("coverage", "kl_to_uniform"), (f"{words} used", "KL to uniform (nats)"), strict=True
    ):
        rows = evenness[(evenness["metric"] == metric) & evenness["layer"].notna()]
        place = np.arange(len(rows))
        axes.vlines(place, rows["a"], rows["b"], color=style.ink(dark), linewidth=1)
        axes.plot(place, rows["a"], "o", color=_page(dark), markeredgecolor=style.blue(dark), markersize=7, label="A")
        axes.plot(place, rows["b"], "o", color=style.blue(dark), markersize=7, label="B")
        axes.set_xticks(place, [f"{layer:.0f}" for layer in rows["layer"]])
        highest = max(float(rows["a"].max()), float(rows["b"].max()))
        axes.set(xlabel="layer", ylabel=label, ylim=(0, 1.25 * highest or 1))
        style.legend(axes, loc="upper right", ncols=2)
    both[0].yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def predicate_changes(predicates: pd.DataFrame, *, dark: bool = False) -> Figure:
    """Share of selections per relation in A and B, largest changes first, with the relation's share of the bank.

    Args:
        predicates: ``predicate bank_share_b selection_share_a selection_share_b``, in order.
        dark: for a dark page.
    """
    shown = predicates.head(_SHOWN_PREDICATES)
    figure, axes = style.panel(dark)
    figure.set_size_inches(2 * style.SIZE[0], 1.0 + 0.21 * len(shown))
    place = np.arange(len(shown))
    axes.hlines(place, shown["selection_share_a"], shown["selection_share_b"], color=style.ink(dark), linewidth=1)
    axes.plot(
        shown["bank_share_b"], place, "|", color=style.ORANGE, markersize=10, markeredgewidth=2, label="share of bank"
    )
    axes.plot(
        shown["selection_share_a"],
        place,
        "o",
        color=_page(dark),
        markeredgecolor=style.blue(dark),
        label="selections, A",
    )
    axes.plot(shown["selection_share_b"], place, "o", color=style.blue(dark), label="selections, B")
    axes.set_yticks(place, [style.plain_label(name, 34) for name in shown["predicate"]])
    axes.set(xlim=(0, None), ylim=(len(shown) - 0.4, -0.6), xlabel="share", ylabel="relation")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    style.legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return figure


def _ticks(axes: Axes, place: np.ndarray, heights: pd.Series, color: str, label: str) -> None:
    axes.hlines(heights, place - 0.38, place + 0.38, color=color, linewidth=2, label=label, zorder=3)


def _page(dark: bool) -> str:
    """Colour of the page, for hollow markers and text on bars."""
    return "#12161C" if dark else "white"
