"""The app's map: colours of entries, and all points as one block of bytes for a script in the browser.

    colors = entry_colors("drift", recording, numbers, cluster, predicates, dark=False)
    pack_points(unit_places(recording.map()), colors, shown, lit=None, focus=None, lasso=[], dark=False)

The block is: length of the head (uint32), the head (JSON, padded to whole words), then per point the entry (uint32),
x and y (uint16 from -2 to 2), the number of its colour and its weight (uint8 each). Ten bytes a point; points with a
colour that matters less come first, so that they are drawn below. Many points are drawn by density first: of every cell
of a grid the point that would lie on top, the heavier the more points are in the cell.
"""

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.path import Path as Polygon

from memscope.query.needs import is_known
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo

COLORS = ("usage", "layer of most use", "readability", "drift", "predicate", "cluster")
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8C6BB1")
NEVER_SELECTED = "never selected"
"""Name of the last cluster of maps of usage, as ``memscope.bank_map.build`` writes it."""
_STEPS = 64
DENSE = 200_000
"""Points from which they are drawn by density first."""
_CELLS = 1024
"""Cells of the density's grid along each side, twice as wide as the map as it opens."""
_LIKE = {
    "values": "what they are",
    "read": "what reading them adds",
    "keys": "the keys that select them",
    "usage": "the tokens that select them",
    "contexts": "the tokens before those that select them",
    "coselection": "what is selected together with them",
}
"""What points are alike in that lie near, by the feature that a map is of."""
_NAMED = 12
_REACH = 2.0
"""How far points may lie from the middle, in halves of the map's side."""
_FAR = 0.02
"""Share of points on each side that are far where they lie beyond half the width of all others."""


def known_colors(info: RecordingInfo) -> list[str]:
    """Those of ``COLORS`` that a recording has."""
    return [name for name in COLORS if is_known(info, name)]


def trust_in_words(said: dict[str, Any], words: str) -> str:
    """What a map can be trusted for, beside chance and a PCA plane.

    Args:
        said: ``Recording.map_info``.
        words: what several entries are called.
    """
    pca, chance = said["yardstick"]["pca"], said["yardstick"]["random"]
    return (
        f"Near {words} are alike in {_LIKE.get(said['feature'], 'what the map is of')}: trustworthiness "
        f"{said['trustworthiness']:.2f}, where a PCA plane has {pca['trustworthiness']:.2f} and a random map "
        f"{chance['trustworthiness']:.2f}. Of the nearest neighbours {said['neighbours_kept']:.1%} are near here too "
        f"(PCA plane {pca['neighbours_kept']:.1%}, random map {chance['neighbours_kept']:.1%}). How far apart groups "
        "lie, and how wide they are, means nothing."
    )


class Colors(NamedTuple):
    """A colour per entry."""

    number: np.ndarray
    """Place in the palette, uint8 ``[N]``."""
    palette: list[str]
    title: str
    key: list[tuple[str, str]]
    """Colours that stand for something, with its name."""
    ramp: list[str]
    """Colours of a scale, from low to high; empty where there is none."""
    low: str = ""
    high: str = ""


def entry_colors(
    by: str,
    recording: Recording,
    numbers: pd.DataFrame,
    cluster: np.ndarray,
    predicates: tuple[np.ndarray, list[str]],
    dark: bool,
) -> Colors:
    """Colour every entry.

    Args:
        by: one of ``COLORS``.
        recording: whose entries.
        numbers: ``bank_table.entry_numbers``.
        cluster: of every entry, -1 for those not on the map.
        predicates: ``bank_table.predicates``.
        dark: for a dark page.
    """
    grey, pale = ("#4A525E", "#39414C") if dark else ("#C4CAD3", "#DDE1E7")
    if by == "usage":
        count = numbers["count"].to_numpy()
        return _scale(
            np.where(count > 0, np.log10(np.maximum(count, 1)), np.nan),
            "selections, all layers",
            grey,
            "never selected",
            10,
        )
    if by == "drift":
        return _scale(numbers["drift"].to_numpy(np.float64), "drift, 1 - cosine to the start", grey, "unknown")
    if by == "readability":
        values = numbers["readability"].to_numpy(np.float64)
        return _scale(values, "readability: AUROC of its typical tokens", grey, "selected too rarely")
    if by == "layer of most use":
        layers = recording.info.layers
        axis = {layer: number for number, layer in enumerate(layers)}
        top = numbers["top_layer"].map(axis).fillna(-1).to_numpy().astype(int)
        shades = [
            to_hex(color)
            for color in colormaps["viridis"](np.linspace(0.3 if dark else 0, 1 if dark else 0.92, len(layers)))
        ]
        names = [f"layer {layer}" for layer in layers]
        return _categories(top, shades, names, "layer that selects it most", grey, "never selected")
    if by == "predicate":
        codes, names = predicates
        colors = [*OKABE_ITO[: len(names)], grey]
        shown = np.where(codes > len(names), -1, codes).astype(int)
        return _categories(shown, colors, [*names, "another relation"], "first relation of the sentence", pale, "none")
    clusters = recording.map_info.get("clusters", [])
    if clusters and clusters[-1]["name"] == NEVER_SELECTED:  # no cluster like the others: they have nothing in common
        cluster, clusters = np.where(cluster == len(clusters) - 1, -1, cluster), clusters[:-1]
    names = [f"{one['name']} ({one['size']:,})" for one in clusters]
    colors = [OKABE_ITO[number % len(OKABE_ITO)] for number in range(len(names))]
    return _categories(
        cluster.astype(int), colors, names, "cluster (words set it apart; colours repeat)", grey, NEVER_SELECTED
    )


def _scale(values: np.ndarray, title: str, none: str, none_name: str, power: int = 0) -> Colors:
    known = ~np.isnan(values)
    low, high = (float(np.quantile(values[known], share)) for share in (0, 0.998)) if known.any() else (0.0, 1.0)
    number = np.zeros(len(values), np.uint8)
    level = np.clip((values[known] - low) / max(high - low, 1e-12), 0, 1)
    number[known] = 1 + np.rint(level * (_STEPS - 1)).astype(np.uint8)
    shades = [to_hex(color) for color in colormaps["viridis"](np.linspace(0, 1, _STEPS))]
    ends = [f"{power**end:,.0f}" if power else f"{end:.3g}" for end in (low, high)]
    key = [] if known.all() else [(none, none_name)]
    return Colors(number, [none, *shades], title, key, shades[:: _STEPS // 8], *ends)


def _categories(
    codes: np.ndarray, colors: list[str], names: list[str], title: str, none: str, none_name: str
) -> Colors:
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    most = sorted(np.argsort(-counts, kind="stable")[:_NAMED].tolist())
    key = [(colors[number], names[number]) for number in most if counts[number]]
    if (codes < 0).any():
        key.append((none, none_name))
    return Colors((np.minimum(codes, 253) + 1).astype(np.uint8), [none, *colors][:255], title, key, [])


def pack_points(
    places: pd.DataFrame,
    colors: Colors,
    shown: np.ndarray,
    lit: np.ndarray | None,
    focus: int | None,
    lasso: list[tuple[int, int]],
    dark: bool,
    every: bool = False,
    words: str = "entries",
) -> bytes:
    """The points as one block of bytes.

    Args:
        places: ``unit_places``.
        colors: of every entry.
        shown: whether each entry is drawn, ``[N]``.
        lit: entries that stand out, the others fade; none = no search.
        focus: an entry to mark and go to.
        lasso: corners to draw, in thousandths.
        dark: for a dark page.
        every: draw every point, also where there are ``DENSE`` and more.
        words: what several entries are called.
    """
    entry, x, y = (places[name].to_numpy() for name in ("entry", "x", "y"))
    kept = shown[entry]
    faded = len(colors.palette)
    number = colors.number[entry].copy()
    if lit is not None:
        found = np.isin(entry, lit)
        number[found & (number == 0)] = faded + 1
        number[~found] = faded
    above = np.where(number == faded, 0, np.where(number == 0, 1, 2))  # later ones are drawn on top
    above[entry == focus] = 3  # never hidden in a cell
    order = np.argsort(above, kind="stable")
    order = order[kept[order]]
    dense, weight = len(order) >= DENSE and not every, np.full(len(order), 255, np.uint8)
    if dense:
        order, weight = _densities(x, y, order)
    size = 5 if len(order) < 3000 else 3.2 if len(order) < 20_000 else 2.2 if len(order) < 100_000 else 1.4
    head: dict[str, Any] = {
        "points": len(order),
        "palette": [*colors.palette, "#2A313B" if dark else "#E9ECF0", "#9AA3B0" if dark else "#6B7480"],
        "sizes": [size * (1.9 if lit is not None else 1)] * faded + [size, 1.9 * size],
        "mark": "#FFB000" if dark else "#D55E00",
        "opacity": 0.9 if len(order) < 20_000 else 0.75,
        "dense": dense,
        "focus": -1 if focus is None else focus,
        "lasso": [[cx / 1000, cy / 1000] for cx, cy in lasso],
        "label": f"Map of {int(kept.sum()):,} {words}. Search and the table below reach the same {words} by keyboard.",
    }
    x16, y16 = (np.rint((values[order] / _REACH + 1) * 32767.5).clip(0, 65535).astype("<u2") for values in (x, y))
    body = b"".join(part.tobytes() for part in (entry[order].astype("<u4"), x16, y16, number[order], weight))
    head["version"] = hashlib.blake2b(body + json.dumps(head).encode(), digest_size=8).hexdigest()
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 4)
    return np.uint32(len(text)).tobytes() + text + body


def _densities(x: np.ndarray, y: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every cell of the grid its last point in an order, still in that order, and its weight, uint8.

    The weight is the logarithm of the cell's number of points, 255 for the fullest.
    """
    column, row = (((values[order] / _REACH + 1) * _CELLS / 2).astype(np.int64) for values in (x, y))
    _, last, count = np.unique((column * (_CELLS + 1) + row)[::-1], return_index=True, return_counts=True)
    weight = np.rint(255 * np.log1p(count) / np.log1p(count.max())).astype(np.uint8)
    place = np.argsort(-last)
    return order[::-1][last[place]], weight[place]


def unit_places(places: pd.DataFrame) -> pd.DataFrame:
    """``Recording.map()`` moved and scaled so that all but far places lie in the square from -1 to 1: ``entry x y``.

    Proportions are kept, and the farthest places lie on the edge of the square from -2 to 2.
    """
    xy = places[["x", "y"]].to_numpy(np.float64)
    low, high = np.quantile(xy, [_FAR, 1 - _FAR], axis=0)
    far = (xy < low - (high - low) / 2) | (xy > high + (high - low) / 2)
    near = np.where(far, np.nan, xy)
    low, high = np.nanmin(near, axis=0), np.nanmax(near, axis=0)
    half = max(float((high - low).max()) / 2, 1e-9)
    unit = (0.95 * (xy - (low + high) / 2) / half).clip(-_REACH, _REACH)
    return pd.DataFrame({"entry": places["entry"].to_numpy(np.int64), "x": unit[:, 0], "y": unit[:, 1]})


def inside(places: pd.DataFrame, lasso: list[tuple[int, int]]) -> np.ndarray:
    """Entries of ``unit_places`` within a lasso, whose corners are in thousandths; rising, int64."""
    entry, x, y = (places[name].to_numpy() for name in ("entry", "x", "y"))
    corners = np.array(lasso, np.float64) / 1000
    low, high = corners.min(0), corners.max(0)
    near = np.flatnonzero((x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1]))
    hit = Polygon(corners).contains_points(np.column_stack([x[near], y[near]]))
    return np.sort(entry[near[hit]])
