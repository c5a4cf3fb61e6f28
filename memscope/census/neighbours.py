"""Which entries are selected together: ``neighbours.parquet``, from the token-major parts.

For two entries a and b of a layer, p(a, b) is the share of tokens that select both and p(a) the share that select a.
Their normalised pointwise mutual information, ln(p(a, b) / p(a) p(b)) / -ln p(a, b), is 1 for entries always selected
together and 0 for independent ones (Bouma 2009, "Normalized (pointwise) mutual information in collocation
extraction"). Only positive ones are kept, of pairs seen ``MIN_TOGETHER`` times at least.

The same pass over pairs finds those that are always or never selected together (``census/anomalies/pairs.py``).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, no_type_check

import numpy as np
import pandas as pd
from numba import njit

from memscope.base.files import atomic_path
from memscope.base.parquet import TableWriter, matrix
from memscope.base.work import ALONE, Processes
from memscope.census.anomalies.looks import first_indices, row_text, stretch_length
from memscope.census.anomalies.pairs import N_APART, CoSelection, most_frequent_apart, pair_anomalies
from memscope.recording.info import RecordingInfo
from memscope.recording.part_reader import read_columns

N_NEIGHBOURS = 10
MIN_TOGETHER = 5
MAX_VISITS = 4_000_000_000
"""Pairs looked at per layer; of more, evenly spread tokens are taken."""
MAX_SELECTIONS = 1 << 24
"""Selections of a layer held in memory; likewise."""


def write_neighbours(recording: Path, info: RecordingInfo, group: Processes = ALONE) -> pd.DataFrame | None:
    """Write ``layer entry rank other together npmi tokens``, sorted by layer, entry and rank.

    ``together`` counts tokens, ``tokens`` is the number of tokens that were looked at. Returns pairs that are always or
    never selected together, as ``pair_anomalies`` gives them; none in processes other than the main one.
    """
    text = row_text(recording, info)

    def of_layer(layer: int) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
        found = co_selection(recording, info, layer)
        stretch = stretch_length(first_indices(recording, info, layer), text)
        return neighbour_columns(found, layer), pair_anomalies(found, info, layer, text, stretch)

    def write(of_layers: Iterator[tuple[dict[str, np.ndarray], pd.DataFrame]]) -> pd.DataFrame:
        pairs = []
        with atomic_path(recording / "neighbours.parquet") as temporary:
            writer = TableWriter(temporary)
            for table, anomalies in of_layers:
                writer.write(table)
                pairs.append(anomalies)
            writer.close()
        return pd.concat(pairs, ignore_index=True)

    return group.share(of_layer, info.layers, write)


def neighbour_columns(found: CoSelection, layer: int) -> dict[str, np.ndarray]:
    """Columns of ``neighbours.parquet`` for one layer."""
    entry, rank = np.nonzero(found.other >= 0)
    return {
        "layer": np.full(len(entry), layer, np.uint16),
        "entry": entry.astype(np.uint32),
        "rank": rank.astype(np.uint8),
        "other": found.other[entry, rank].astype(np.uint32),
        "together": found.together[entry, rank],
        "npmi": found.npmi[entry, rank],
        "tokens": np.full(len(entry), len(found.rows)),
    }


def co_selection(recording: Path, info: RecordingInfo, layer: int) -> CoSelection:
    """Which entries of a layer are selected together, and which are not."""
    name, site = f"l{layer}_indices", info.site(layer)
    step = max(1, -(-info.rows * site.selected**2 // MAX_VISITS), -(-info.rows * site.selected // MAX_SELECTIONS))
    parts = (matrix(read_columns(recording, info, part, [name])[name]) for part in info.parts)
    indices = np.concatenate([part[::step].copy() for part in parts])  # a view would keep all of its part
    rows = [
        np.arange(first, first + part.rows, step) for part, first in zip(info.parts, info.first_rows(), strict=True)
    ]
    starts, tokens = _tokens_of_entries(indices, info.knowledge_num)
    n = info.knowledge_num
    found = CoSelection(
        rows=np.concatenate(rows),
        starts=starts,
        tokens=tokens,
        other=np.full((n, N_NEIGHBOURS), -1, np.int64),
        together=np.zeros((n, N_NEIGHBOURS), np.int64),
        npmi=np.zeros((n, N_NEIGHBOURS), np.float32),
        # A head that selects one entry never selects two, whatever they are.
        apart=np.full((n, N_APART if site.selected > site.gate_heads else 0), -1, np.int64),
    )
    by_count = np.argsort(-np.diff(starts), kind="stable")
    _neighbours(indices, starts, tokens, by_count, MIN_TOGETHER, found.other, found.together, found.npmi, found.apart)
    return found


@njit(nogil=True, cache=True)
@no_type_check
def _tokens_of_entries(indices: Any, n_entries: int) -> Any:
    """Tokens that select each entry, entry after entry: starts ``[N + 1]`` and tokens; two heads count once."""
    starts = np.zeros(n_entries + 1, np.int64)
    for step in range(2):
        if step == 1:
            starts = np.cumsum(starts)
            tokens = np.empty(starts[-1], np.uint32)
            filled = starts[:-1].copy()
        for t in range(indices.shape[0]):
            for k in range(indices.shape[1]):
                entry = indices[t, k]
                if entry < 0:
                    continue
                again = False
                for j in range(k):
                    again |= indices[t, j] == entry
                if not again:
                    if step == 0:
                        starts[entry + 1] += 1
                    else:
                        tokens[filled[entry]] = t
                        filled[entry] += 1
    return starts, tokens


@njit(nogil=True, cache=True)
@no_type_check
def _neighbours(
    indices: Any,
    starts: Any,
    tokens: Any,
    by_count: Any,
    min_together: int,
    other: Any,
    together: Any,
    npmi: Any,
    apart: Any,
) -> None:
    n_tokens, k = indices.shape
    keep = other.shape[1]
    counts = np.zeros(len(starts) - 1, np.int32)
    seen = np.full(len(starts) - 1, -1, np.int64)  # the token at which an entry was counted last
    touched = np.empty(len(starts) - 1, np.int64)
    for e in range(len(starts) - 1):
        n_touched = 0
        n_e = starts[e + 1] - starts[e]
        if n_e < min_together:
            continue
        for s in range(starts[e], starts[e + 1]):
            t = tokens[s]
            for j in range(k):
                o = indices[t, j]
                if o >= 0 and o != e and seen[o] != t:
                    seen[o] = t
                    if counts[o] == 0:
                        touched[n_touched] = o
                        n_touched += 1
                    counts[o] += 1
        if apart.shape[1]:
            most_frequent_apart(e, starts, counts, by_count, n_tokens, apart[e])
        for i in range(n_touched):
            o = touched[i]
            seen[o] = -1
            c = counts[o]
            counts[o] = 0
            if c < min_together:
                continue
            n_o = starts[o + 1] - starts[o]
            joint = c / n_tokens
            pmi = np.log(c * (n_tokens / n_e) / n_o)
            value = np.float32(pmi / -np.log(joint)) if c < n_tokens else np.float32(1.0)
            place = keep
            while place > 0 and (
                value > npmi[e, place - 1] or (value == npmi[e, place - 1] and o < other[e, place - 1])
            ):
                place -= 1
            if value > 0 and place < keep:
                for j in range(keep - 1, place, -1):
                    npmi[e, j] = npmi[e, j - 1]
                    other[e, j] = other[e, j - 1]
                    together[e, j] = together[e, j - 1]
                npmi[e, place] = value
                other[e, place] = o
                together[e, place] = c
