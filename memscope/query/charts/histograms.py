"""Linked histograms of a bank: each counts the entries that what is chosen in all the others leaves (a cross-filter).

    bins = bin_entries(recording, entry_numbers(recording))
    chosen = read_choices(bins, {"drift": "0.02_0.08", "predicate": "place of birth"})
    left_over(bins, chosen, found)      # those of the found entries that are in a chosen bin of every histogram
    histograms(bins, chosen, found)

A choice is written as a text (``choice_text``) of values, not of numbers of bins, so that an address can hold it.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from memscope.query.needs import is_known
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo

MEASURES = ("usage", "drift", "layers", "readability", "most_in", "predicate", "subject")
"""Names of the histograms; ``most_in`` is the layer that selects an entry most."""
UNKNOWN, OTHERS, NONE = "*unknown", "*others", "*none"
"""Bins of no value, of names beyond those listed, and of no name, as texts have them."""
_BARS = 20
"""Most bars of a measure that is cut evenly."""
_LISTED = 40
"""Most names of a list."""
Choices = Mapping[str, Sequence[int]]
"""Numbers of chosen bins by the name of their histogram; a histogram without any leaves all entries."""


class Bins(NamedTuple):
    """The bins of one measure, and the entries in them; an entry with several names is in several bins of a list."""

    title: str
    kind: Literal["range", "list"]
    """Bars of a number, of which neighbours are chosen together, or names, of which any are."""
    entry: np.ndarray
    """Entry of every pair of an entry and a bin, int64 ``[pair]``."""
    bin: np.ndarray
    """Bin of every pair, int64 ``[pair]``."""
    labels: list[str]
    """What each bin holds, ``[bin]``."""
    texts: list[str]
    """The names of a list's bins in a text, ``[bin]``; of a range, that of ``UNKNOWN`` where it has such a bin."""
    edges: np.ndarray | None = None
    """Lower ends of the bars of a range and the upper end of the last, float64 ``[bar + 1]``."""


class Histogram(NamedTuple):
    """One histogram as it is drawn."""

    name: str
    title: str
    kind: Literal["range", "list"]
    labels: list[str]
    ends: tuple[str, str]
    """Where a range begins and ends."""
    counts: np.ndarray
    """Entries of each bin that the choices in the other histograms leave, int64 ``[bin]``."""
    every: np.ndarray
    """Entries of each bin without any choice, int64 ``[bin]``."""
    chosen: np.ndarray
    """Whether each bin is chosen, bool ``[bin]``."""


def known_histograms(info: RecordingInfo) -> list[str]:
    """Those of ``MEASURES`` that a recording may have."""
    there = {
        "layers": max(map(len, info.banks)) > 1,
        "most_in": len(info.layers) > 1,
        **{name: is_known(info, name) for name in ("drift", "predicate", "subject")},
    }
    return [name for name in MEASURES if there.get(name, True)]


def bin_entries(recording: Recording, numbers: pd.DataFrame) -> dict[str, Bins]:
    """The bins of every histogram by its name; measures that tell no entries apart are left out.

    Args:
        recording: whose entries.
        numbers: ``bank_table.entry_numbers``.
    """
    found = {name: _bin(name, recording, numbers) for name in known_histograms(recording.info)}
    return {name: bins for name, bins in found.items() if len(np.unique(bins.bin)) > 1}


def read_choices(bins: Mapping[str, Bins], texts: Mapping[str, str]) -> dict[str, list[int]]:
    """Chosen bins by histogram, of texts that ``choice_text`` wrote; what is not here is left out."""
    return {name: _read(bins[name], text) for name, text in texts.items() if name in bins and text}


def choice_text(bins: Bins, chosen: Sequence[int]) -> str:
    """Chosen bins as a text: ``0.02_0.08`` or ``place of birth,occupation``; empty for none."""
    if not chosen:
        return ""
    if bins.edges is None:
        return ",".join(bins.texts[number] for number in sorted(chosen))
    bars = [number for number in chosen if number < len(bins.edges) - 1]
    return f"{bins.edges[min(bars)]:.6g}_{bins.edges[max(bars) + 1]:.6g}" if bars else UNKNOWN


def left_over(bins: Mapping[str, Bins], chosen: Choices, found: np.ndarray) -> np.ndarray:
    """Those of the entries ``found`` that are in a chosen bin of every histogram with choices, in their order."""
    masks = _masks(bins, chosen)
    return found[np.logical_and.reduce([mask[found] for mask in masks.values()])] if masks else found


def histograms(bins: Mapping[str, Bins], chosen: Choices, found: np.ndarray) -> list[Histogram]:
    """Every histogram, over the entries ``found``; each counts what the choices in the others leave of them."""
    masks = _masks(bins, chosen)
    drawn = []
    for name, own in bins.items():
        size = len(own.labels)
        base = np.zeros(int(own.entry.max()) + 1, bool)
        base[found] = True
        left = np.logical_and.reduce([base, *(mask for other, mask in masks.items() if other != name)])
        every, counts = (np.bincount(own.bin[mask[own.entry]], minlength=size) for mask in (base, left))
        ends = ("", "") if own.edges is None else (f"{own.edges[0]:,.6g}", f"{own.edges[-1]:,.6g}")
        is_chosen = np.isin(np.arange(size), list(chosen.get(name, ())))
        drawn.append(Histogram(name, own.title, own.kind, own.labels, ends, counts, every, is_chosen))
    return drawn


def _masks(bins: Mapping[str, Bins], chosen: Choices) -> dict[str, np.ndarray]:
    """Whether each entry is in a chosen bin, ``[N]``, for histograms with choices."""
    masks = {}
    for name, numbers in chosen.items():
        if name in bins and numbers:
            own = bins[name]
            masks[name] = np.zeros(int(own.entry.max()) + 1, bool)
            masks[name][own.entry[np.isin(own.bin, list(numbers))]] = True
    return masks


def _read(bins: Bins, text: str) -> list[int]:
    if bins.edges is None or text == UNKNOWN:
        names = set(text.split(","))
        return [number for number, name in enumerate(bins.texts) if name in names]
    try:
        low, high = map(float, text.split("_"))
    except ValueError:
        return []
    middles = (bins.edges[:-1] + bins.edges[1:]) / 2
    return np.flatnonzero((middles >= low) & (middles < high)).tolist()


def _bin(name: str, recording: Recording, numbers: pd.DataFrame) -> Bins:
    layers, every = recording.info.layers, numbers["entry"].to_numpy(np.int64)
    if name == "usage":
        return _doubling("selections", numbers["count"].to_numpy())
    if name == "layers":
        labels = [f"{count} layer{'s' * (count != 1)}" for count in range(len(layers) + 1)]
        return _range("layers that select it", numbers["layers_used"], np.arange(len(layers) + 2.0), labels)
    if name == "most_in":
        used = (numbers["top_layer"] >= 0).to_numpy()
        names = [f"layer {layer}" for layer in layers]
        return _list("most in", every, every[used], np.searchsorted(layers, numbers["top_layer"][used]), names)
    if name in ("predicate", "subject"):
        pairs = recording.sql(f"SELECT DISTINCT entry, unnest({name}) AS name FROM bank")
        pairs = pairs[pairs["name"].fillna("") != ""]
        counts = pairs["name"].value_counts()
        names = sorted(counts.index, key=lambda one: (-counts[one], one))[:_LISTED]
        codes = pd.Index(names).get_indexer(pairs["name"])
        title = "relation" if name == "predicate" else name
        return _list(title, every, pairs["entry"].to_numpy(), codes, names)
    return _even(name, numbers[name].clip(lower=0))  # rounding makes a drift of -1e-8


def _doubling(title: str, counts: np.ndarray) -> Bins:
    """Bars of counts: none, 1, 2 to 3, 4 to 7, and so on."""
    edges = np.array([0.0, *(2.0**step for step in range(int(counts.max(initial=0)).bit_length() + 1))])
    labels = ["never selected", "1", *(f"{low:,.0f} to {2 * low - 1:,.0f}" for low in edges[2:])]
    return _range(title, counts, edges, labels[: len(edges) - 1])


def _even(title: str, values: pd.Series) -> Bins:
    """Bars of equal widths between round numbers."""
    known = values.dropna()
    ends = (known.min(), known.max()) if len(known) else (0, 1)
    edges = np.asarray(MaxNLocator(_BARS, steps=[1, 2, 2.5, 5, 10]).tick_values(*ends))
    labels = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    return _range(title, values, edges, labels)


def _range(title: str, values: pd.Series | np.ndarray, edges: np.ndarray, labels: list[str]) -> Bins:
    """Bars of a number, each without its upper end but for the last; entries without a number are in a bin behind."""
    values, bars = np.asarray(values, np.float64), len(edges) - 1
    missing = np.isnan(values)
    at = np.where(missing, bars, np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bars - 1))
    more = bool(missing.any())
    labels, texts = [*labels, *["unknown"] * more], [""] * bars + [UNKNOWN] * more
    return Bins(title, "range", np.arange(len(values)), at, labels, texts, edges)


def _list(title: str, every: np.ndarray, entry: np.ndarray, code: np.ndarray, names: list[str]) -> Bins:
    """A bin for each name; behind them one of other names (code -1), and one of entries without any."""
    is_bare = np.ones(len(every), bool)
    is_bare[entry] = False
    bare = every[is_bare]
    size = len(names) + 2
    own = entry.astype(np.int64) * size + np.where(code < 0, len(names), code)
    entry, code = np.divmod(np.unique(np.concatenate([own, bare * size + size - 1])), size)  # two other names are one
    labels, texts = [*names, "others", "none"], [*(quote(name, safe=" ") for name in names), OTHERS, NONE]
    there = np.unique(np.concatenate([np.arange(len(names)), code]))
    return Bins(
        title, "list", entry, np.searchsorted(there, code), [labels[n] for n in there], [texts[n] for n in there]
    )
