"""One layer of a recording, counted part by part by the compiled loops of ``kernels.py``.

    count_layer(recording, info, axis, strata)

Memory depends on the bank and the number of strata, not on the number of tokens.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from memscope.base.parquet import matrix
from memscope.census.kernels import MARGIN_BINS, N_SUMS, N_WEIGHTS, SHARE_BINS, read_tokens, tally
from memscope.census.strata import Strata
from memscope.recording.info import RecordingInfo
from memscope.recording.part_reader import read_columns


class LayerCounts(NamedTuple):
    """The counts of one layer; counts of disjoint parts add up, array by array."""

    counts: np.ndarray
    """Selections per entry and class of tokens, int32 ``[N, Strata.count_columns]``."""
    weights: np.ndarray
    """``kernels.Weight`` of every entry per document group, float64 ``[group, N, Weight]``."""
    sums: np.ndarray
    """``kernels.Sum`` per class of tokens, float64 ``[class, Sum]``."""
    shares: np.ndarray
    """Histogram of read shares over selections, int64 ``[SHARE_BINS]``."""
    entropies: np.ndarray
    """Histogram of gate entropy / ln K over tokens, int64 ``[SHARE_BINS]``."""
    margins: np.ndarray
    """Histogram of selection margins, int64 ``[MARGIN_BINS]``."""


def count_layer(recording: Path, info: RecordingInfo, axis: int, strata: Strata) -> LayerCounts:
    """Count one layer over all parts.

    Args:
        recording: its folder.
        info: its description.
        axis: number of the layer among ``info.layers``.
        strata: how tokens are told apart.
    """
    n_classes = strata.cells + len(strata.positions) + len(strata.frequencies)
    counted = LayerCounts(
        counts=np.zeros((info.knowledge_num, strata.count_columns), np.int32),
        weights=np.zeros((len(strata.groups), info.knowledge_num, N_WEIGHTS)),
        sums=np.zeros((n_classes, N_SUMS)),
        shares=np.zeros(SHARE_BINS, np.int64),
        entropies=np.zeros(SHARE_BINS, np.int64),
        margins=np.zeros(MARGIN_BINS, np.int64),
    )
    site, prefix = info.sites[axis], f"l{info.layers[axis]}_"
    columns = ["doc", "pos", "token", "loss", *(prefix + kind for kind in ("indices", *site.columns))]
    for number, (part, first_row) in enumerate(zip(info.parts, info.first_rows(), strict=True)):
        table = read_columns(recording, info, part, columns)
        doc, pos, token, loss = (table[name].to_numpy() for name in columns[:4])
        indices = matrix(table[prefix + "indices"]).astype(np.int64)
        found = {kind: matrix(table[prefix + kind]).astype(np.float32) for kind in site.columns}
        gate = found.get("gate", np.zeros(indices.shape, np.float32))
        if site.varies:
            gate = np.where(indices >= 0, gate, 0)
        read = found.get("read", gate)  # where nothing reads apart from the gate, its scores are the weights
        margin = found.get("margin", np.full((len(indices), site.gate_heads), np.nan, np.float32))
        by_score = found.get("by_score", np.ones_like(gate))  # without a bias, all
        compared = found.get("read_norm", np.abs(read)), margin, found.get("score_margin", margin), by_score
        classes = strata.sum_classes(doc, pos, token, first_row)
        group = strata.group_of(doc)
        tally(indices, gate, read, group, strata.count_classes(classes, seed=number), counted.counts, counted.weights)
        histograms = counted.shares, counted.entropies, counted.margins
        read_tokens(indices, gate, np.abs(read), *compared, loss, classes, counted.sums, *histograms)
    return counted
