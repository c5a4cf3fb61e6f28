"""The map of a bank as a figure: a pure function from tables to a matplotlib figure, without pyplot.

    bank_map(recording.map(), recording.map_info).savefig("map.png")

A few entries are points. Many are pixels, because a million points hide one another: the more entries lie there the
more opaque, on a logarithmic scale, in the colour of the commonest cluster there or of the mean.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure

from memscope.report.plots.style import ink, plain_label

SIZE = (9.6, 5.6)
"""Inches, the list of clusters included."""
MOST_POINTS = 20_000
"""Entries drawn as points; more become pixels."""
LISTED = 26
"""Clusters that the list names."""
NOT_TRUSTED = "This map is not to be believed: near entries are not alike, and groups on it mean nothing."
_PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
_GREY = "#8A8F98"
_PIXELS = 400
"""Along the longer side of the map."""


def bank_map(points: pd.DataFrame, info: dict[str, Any], color: str = "cluster", *, dark: bool = False) -> Figure:
    """Entries where the map has them, with what the map is worth below.

    Args:
        points: ``entry x y cluster`` of every entry and, to colour by it, another numeric column.
        info: what ``map.json`` says; of a map that is not trusted, that comes first and no cluster has a colour.
        color: ``cluster``, or the column to colour by. Entries with none of a count (whole numbers) or without a
            number are grey; numbers that span more than two orders of magnitude have logarithmic colours.
        dark: for a dark page.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    figure.patch.set_alpha(0.0 if dark else 1.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.spines[:].set_visible(False)
    if color == "cluster" and not info["trusted"]:
        _draw_grey(axes, _Raster(points), np.ones(len(points), bool))
    elif color == "cluster":
        _draw_clusters(axes, points, info, dark)
    else:
        _draw_numbers(axes, points, color, dark)
    axes.set(xticks=[], yticks=[], aspect="equal")
    if not info["trusted"]:
        figure.suptitle("\n".join([NOT_TRUSTED, *info["why_not"]]), fontsize=8, color=ink(dark))
    figure.supxlabel(_caption(info), fontsize=8, color=ink(dark))
    return figure


class _Raster:
    """Square pixels over all points; images are ``[row, column]`` with the lowest row first."""

    def __init__(self, points: pd.DataFrame):
        place = points[["x", "y"]].to_numpy(np.float64)
        low, high = place.min(0), place.max(0)
        side = max(float((high - low).max()), 1e-9) / _PIXELS
        column, row = ((place - low) / side).astype(np.int64).T
        self.shape = int(row.max()) + 1, int(column.max()) + 1
        self.pixel = row * self.shape[1] + column
        """Pixel of every point."""
        extent = (low[0], low[0] + side * self.shape[1], low[1], low[1] + side * self.shape[0])
        self.frame: dict[str, Any] = {"extent": extent, "origin": "lower", "interpolation": "nearest"}
        """Where ``imshow`` puts an image of this raster."""

    def opacity(self, chosen: np.ndarray | None = None) -> np.ndarray:
        """0 where no (chosen) point lies, else from 0.35 for one to 1, by the logarithm of their number."""
        count = self._sum(np.ones(len(self.pixel)) if chosen is None else chosen.astype(np.float64))
        return np.where(count > 0, 0.35 + 0.65 * np.log(np.maximum(count, 1)) / np.log(max(2, count.max())), 0)

    def commonest(self, cluster: np.ndarray) -> np.ndarray:
        """Cluster of most points of every pixel, the lower of two; 0 where none lies."""
        pair, count = np.unique(self.pixel * (int(cluster.max()) + 1) + cluster, return_counts=True)
        pixel, number = np.divmod(pair, int(cluster.max()) + 1)
        rising = np.lexsort((-number, count))
        found = np.zeros(self.shape[0] * self.shape[1], np.int64)
        found[pixel[rising]] = number[rising]  # of several assignments the last one stays
        return found.reshape(self.shape)

    def mean(self, value: np.ndarray, known: np.ndarray) -> np.ma.MaskedArray:
        """Mean of the known values of every pixel, masked where there are none."""
        count = self._sum(known.astype(np.float64))
        total = self._sum(np.where(known, value, 0))
        return np.ma.masked_where(count == 0, total / np.maximum(count, 1))

    def _sum(self, weight: np.ndarray) -> np.ndarray:
        return np.bincount(self.pixel, weight, self.shape[0] * self.shape[1]).reshape(self.shape)


def _draw_clusters(axes: Axes, points: pd.DataFrame, info: dict[str, Any], dark: bool) -> None:
    """Clusters in colour, their numbers above their medians, their names beside the map."""
    cluster = points["cluster"].to_numpy(np.int64)
    medians = points.groupby("cluster")[["x", "y"]].median()
    colors = np.zeros((int(cluster.max()) + 1, 3))
    colors[medians.index] = _spread_colors(medians.to_numpy(), dark)
    apart = (cluster == cluster.max()) & (info["placed"] < info["entries"])
    colors[cluster[apart]] = to_rgb(_GREY)  # entries without the feature, which stand apart
    raster = _Raster(points)
    if (~apart).sum() <= MOST_POINTS:
        _draw_grey(axes, raster, apart)
        x, y, number = (points[name].to_numpy()[~apart] for name in ("x", "y", "cluster"))
        axes.scatter(x, y, s=_size(len(x)), c=colors[number], linewidths=0, rasterized=True)
    else:
        axes.imshow(np.dstack([colors[raster.commonest(cluster)], raster.opacity()]), **raster.frame)
    style: dict[str, Any] = {"fontsize": 7, "color": ink(dark), "textcoords": "offset points", "ha": "center"}
    box = {"boxstyle": "round,pad=0.1", "facecolor": ink(not dark), "edgecolor": "none", "alpha": 0.6}
    for number, x, y in medians.itertuples():
        axes.annotate(str(number), (x, y), (0, 6), bbox=box, **style)
    for told in info["clusters"][:LISTED]:
        name = f"{told['cluster']}  {plain_label(told['name'], 44)} ({told['size']:,})"
        axes.plot([], [], "s", color=colors[told["cluster"]], markersize=6, label=name)
    left = len(info["clusters"]) - LISTED
    if left > 0:
        axes.plot([], [], " ", label=f"and {left} smaller ones")
    axes.legend(frameon=False, fontsize=7.5, labelcolor=ink(dark), loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_numbers(axes: Axes, points: pd.DataFrame, column: str, dark: bool) -> None:
    """A numeric column in colour, over all entries in grey."""
    value = points[column].to_numpy(np.float64)
    counts = pd.api.types.is_integer_dtype(points[column])
    known = value > 0 if counts else np.isfinite(value)
    raster = _Raster(points)
    _draw_grey(axes, raster, ~known)
    if not known.any():
        return
    low, high = np.quantile(value[known], [0.01, 0.99])
    logarithmic = low > 0 and high > 100 * low
    style: dict[str, Any] = {"cmap": "viridis", "norm": (LogNorm if logarithmic else Normalize)(low, high)}
    if known.sum() <= MOST_POINTS:
        rising = np.flatnonzero(known)[np.argsort(value[known], kind="stable")]  # the highest come on top
        x, y = (points[axis].to_numpy()[rising] for axis in ("x", "y"))
        size = _size(len(rising))
        drawn: Any = axes.scatter(x, y, s=size, c=value[rising], linewidths=0, rasterized=True, **style)
    else:
        drawn = axes.imshow(raster.mean(value, known), **raster.frame, **style)
    assert isinstance(axes.figure, Figure)
    bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.7, extend="both")
    bar.set_label(column.replace("_", " "), color=ink(dark), fontsize=9)
    bar.ax.tick_params(colors=ink(dark), which="both", labelsize=8)
    bar.outline.set_visible(False)


def _draw_grey(axes: Axes, raster: _Raster, chosen: np.ndarray) -> None:
    """The chosen points in grey; the frame takes in all."""
    grey = np.broadcast_to(to_rgb(_GREY), (*raster.shape, 3))
    axes.imshow(np.dstack([grey, 0.5 * raster.opacity(chosen)]), **raster.frame)


def _spread_colors(places: np.ndarray, dark: bool) -> np.ndarray:
    """A colour for every cluster, ``[cluster, 3]``: the one whose nearest bearer so far is the furthest away."""
    palette = np.array([to_rgb(color) for color in (*_PALETTE, "#F0E442" if dark else "#000000")])
    chosen = np.zeros(len(places), np.int64)
    for number, place in enumerate(places):
        distance = np.linalg.norm(places[:number] - place, axis=1)
        bearers = [distance[chosen[:number] == color] for color in range(len(palette))]
        chosen[number] = int(np.argmax([near.min(initial=np.inf) for near in bearers]))
    return np.asarray(palette[chosen])


def choice_in_words(info: dict[str, Any]) -> str:
    """Of how many spaces the map's was chosen, as words to go on with; nothing where it was asked for."""
    tried = [one["feature"] for one in info["chosen_among"] if "gain" in one]
    if not tried:
        return ""
    apart = info["measured_on"]["apart_from_trial"]
    measured = "numbers are of other entries than the choice's" if apart else "numbers are of the choice's own entries"
    return f", the best of {len(tried)} spaces ({', '.join(tried)}; {measured})"


def _size(count: int) -> float:
    """Area of a point in square points: all points together cover about as much at any number."""
    return float(np.clip(20_000 / max(1, count), 2.5, 12))


def _caption(info: dict[str, Any]) -> str:
    pca, random = info["yardstick"]["pca"], info["yardstick"]["random"]
    return (
        f"UMAP of {info['feature']} by {info['metric']} similarity{choice_in_words(info)}; the axes have no unit.\n"
        f"Nearest neighbours kept: {info['neighbours_kept']:.1%} (on a PCA plane {pca['neighbours_kept']:.1%}, "
        f"by chance {random['neighbours_kept']:.2%}).\nTrustworthiness: {info['trustworthiness']:.2f} (on a PCA plane "
        f"{pca['trustworthiness']:.2f}, by chance {random['trustworthiness']:.2f})."
    )
