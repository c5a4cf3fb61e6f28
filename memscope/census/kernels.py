"""The loops over single selections that the census needs, compiled by numba: one pass, no temporary per selection.

Each function works on one layer of one part, adds into arrays that its caller owns and releases the GIL, so layers
can be counted in parallel threads. docs/reference/metrics.md has plain definitions of what they compute, and the
tests check them against naive loops.
"""

from enum import IntEnum
from typing import Any, no_type_check

import numpy as np
from numba import njit

from memscope.recording.census_file import MARGIN_LOWEST
from memscope.stats.usage import UNREAD_SHARE

SHARE_BINS = 50
"""Equal bins over [0, 1] of the histograms of read shares and of gate entropy / ln K."""
MARGIN_BINS = 48
"""Bins of the histogram of margins: half octaves from ``2**MARGIN_LOWEST`` up, the first also takes all below."""


class Sum(IntEnum):
    """Columns of the sums that ``read_tokens`` adds to, one row per class of tokens."""

    TOKENS = 0
    """Number of tokens."""
    READERS = 1
    """Number of tokens that read anything."""
    UNREAD = 2
    """Unread selections."""
    GATE_ENTROPY = 3
    """Summed over the tokens that read anything, as all up to ``GATE_ATTENTION_RANK_CORRELATION``."""
    GATE_TOP_SHARE = 4
    READ_ENTROPY = 5
    EFFECTIVE_ENTRIES_READ = 6
    READ_TOP_SHARE = 7
    GATE_READ_RANK_CORRELATION = 8
    GATE_ATTENTION_RANK_CORRELATION = 9
    MARGIN = 10
    """Sum of selection margins."""
    MARGINS = 11
    """Number of selection margins."""
    LOSS = 12
    """Sum of losses."""
    LOSSES = 13
    """Number of losses."""
    UNREAD_BY_NORM = 14
    """Unread selections by the norm over read heads."""
    SCORE_MARGIN = 15
    """Sum of margins in raw scores."""
    BY_SCORE = 16
    """Selections that raw scores alone would have made."""
    SELECTIONS = 17
    """Number of selections."""


class Weight(IntEnum):
    """Columns of the weights that ``tally`` adds to, one row per entry."""

    GATE = 0
    """Sum of gate scores."""
    READ = 1
    """Sum of absolute read weights."""
    SIGNED_READ = 2
    """Sum of read weights."""


N_SUMS = len(Sum)
N_WEIGHTS = len(Weight)


@njit(nogil=True, cache=True)
@no_type_check
def tally(indices: Any, gate: Any, read: Any, group: Any, classes: Any, counts: Any, weights: Any) -> None:
    """Count the selections of some tokens.

    Args:
        indices: selected entries, int64 ``[token, K]``; -1 is none.
        gate: gate scores, float32 ``[token, K]``.
        read: read weights, float32 ``[token, K]``.
        group: document group of every token, int64 ``[token]``.
        classes: columns of ``counts`` that a token belongs to, int64 ``[token, class kind]``.
        counts: selections, int32 ``[N, column]``, added to.
        weights: summed gate scores, absolute read weights and read weights, float64 ``[group, N, Weight]``, added to.
    """
    for t in range(indices.shape[0]):
        for k in range(indices.shape[1]):
            entry = indices[t, k]
            if entry < 0:
                continue
            weights[group[t], entry, Weight.GATE] += gate[t, k]
            weights[group[t], entry, Weight.READ] += abs(read[t, k])
            weights[group[t], entry, Weight.SIGNED_READ] += read[t, k]
            for c in range(classes.shape[1]):
                counts[entry, classes[t, c]] += 1


@njit(nogil=True, cache=True)
@no_type_check
def read_tokens(
    indices: Any,
    gate: Any,
    read: Any,
    norm: Any,
    margin: Any,
    score_margin: Any,
    by_score: Any,
    loss: Any,
    classes: Any,
    sums: Any,
    shares: Any,
    entropies: Any,
    margins: Any,
) -> None:
    """Sum up how tokens weigh what they selected; shares are weights divided by their sum over a token's K.

    Weights of no selection are 0.

    Args:
        indices: selected entries, int64 ``[token, K]``; -1 is none.
        gate: gate scores, float32 ``[token, K]``.
        read: absolute read weights, float32 ``[token, K]``.
        norm: read weights that do not cancel over read heads, float32 ``[token, K]``.
        margin: float32 ``[token, H]``, NaN where nothing was rejected.
        score_margin: the same in raw scores alone.
        by_score: 1 where raw scores alone would have made the selection, else 0, float32 ``[token, K]``.
        loss: float32 ``[token]``, NaN where nothing is predicted.
        classes: rows of ``sums`` that a token belongs to, int64 ``[token, class kind]``.
        sums: float64 ``[class, Sum]``, added to.
        shares: histogram of read shares over selections, int64 ``[SHARE_BINS]``, added to.
        entropies: histogram of gate entropy / ln K over tokens, int64 ``[SHARE_BINS]``, added to.
        margins: histogram of margins, int64 ``[MARGIN_BINS]``, added to.
    """
    k = gate.shape[1]
    token = np.zeros(N_SUMS)
    attention = np.zeros(k)
    gate_ranks = np.zeros(k)
    read_ranks = np.zeros(k)
    attention_ranks = np.zeros(k)
    for t in range(gate.shape[0]):
        token[:] = 0
        token[Sum.TOKENS] = 1
        total_gate = 0.0
        total_read = 0.0
        total_norm = 0.0
        for i in range(k):
            total_gate += gate[t, i]
            total_read += read[t, i]
            total_norm += norm[t, i]
        gate_entropy = 0.0
        gate_top = 0.0
        if total_gate > 0:
            for i in range(k):
                share = gate[t, i] / total_gate
                gate_top = max(gate_top, share)
                if share > 0:
                    gate_entropy -= share * np.log(share)
        read_entropy = 0.0
        read_top = 0.0
        for i in range(k):
            share = read[t, i] / total_read if total_read > 0 else 0.0
            read_top = max(read_top, share)
            if share > 0:
                read_entropy -= share * np.log(share)
            attention[i] = read[t, i] / gate[t, i] if gate[t, i] > 0 else 0.0
            if indices[t, i] < 0:
                continue
            token[Sum.SELECTIONS] += 1
            token[Sum.BY_SCORE] += by_score[t, i]
            if share < UNREAD_SHARE:
                token[Sum.UNREAD] += 1
            if total_norm == 0 or norm[t, i] / total_norm < UNREAD_SHARE:
                token[Sum.UNREAD_BY_NORM] += 1
            shares[min(int(share * SHARE_BINS), SHARE_BINS - 1)] += 1
        if total_read > 0:
            token[Sum.READERS] = 1
            token[Sum.GATE_ENTROPY] = gate_entropy
            token[Sum.GATE_TOP_SHARE] = gate_top
            token[Sum.READ_ENTROPY] = read_entropy
            token[Sum.EFFECTIVE_ENTRIES_READ] = np.exp(read_entropy)
            token[Sum.READ_TOP_SHARE] = read_top
            _rank(gate[t], gate_ranks)
            _rank(read[t], read_ranks)
            _rank(attention, attention_ranks)
            token[Sum.GATE_READ_RANK_CORRELATION] = _correlation(gate_ranks, read_ranks)
            token[Sum.GATE_ATTENTION_RANK_CORRELATION] = _correlation(gate_ranks, attention_ranks)
            if k > 1:
                entropies[min(int(gate_entropy / np.log(k) * SHARE_BINS), SHARE_BINS - 1)] += 1
        for h in range(margin.shape[1]):
            if not np.isnan(margin[t, h]):
                token[Sum.MARGIN] += margin[t, h]
                token[Sum.MARGINS] += 1
                token[Sum.SCORE_MARGIN] += score_margin[t, h]
                octave = np.log2(max(margin[t, h], 1e-30))
                margins[min(max(int((octave - MARGIN_LOWEST) * 2), 0), MARGIN_BINS - 1)] += 1
        if not np.isnan(loss[t]):
            token[Sum.LOSS] = loss[t]
            token[Sum.LOSSES] = 1
        for c in range(classes.shape[1]):
            for column in range(N_SUMS):
                sums[classes[t, c], column] += token[column]


@njit(nogil=True, cache=True)
@no_type_check
def _rank(values: Any, ranks: Any) -> None:
    """Average ranks, less their mean; K is small, so every pair is compared."""
    k = len(values)
    for i in range(k):
        below = 0.0
        for j in range(k):
            if values[j] < values[i]:
                below += 1.0
            elif values[j] == values[i]:
                below += 0.5
        ranks[i] = below - 0.5 * k


@njit(nogil=True, cache=True)
@no_type_check
def _correlation(a: Any, b: Any) -> float:
    """Pearson's r of centred values; 0 where one side is constant."""
    ab = 0.0
    aa = 0.0
    bb = 0.0
    for i in range(len(a)):
        ab += a[i] * b[i]
        aa += a[i] * a[i]
        bb += b[i] * b[i]
    return ab / np.sqrt(aa * bb) if aa > 0 and bb > 0 else 0.0
