"""Loops over the tokens that select an entry, compiled by numba; ``census/anomalies/entries.py`` says what they are
for."""

from enum import IntEnum
from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import njit

from memscope.census.anomalies.looks import RowText

CLASSES = ("digits", "punctuation", "capitals")
"""Classes of tokens; the kernel knows them as bits."""


class ReadCount(IntEnum):
    """Columns of the counts that ``count_negative`` adds to, one row per entry."""

    TOKENS = 0
    """Tokens that select the entry."""
    NEGATIVE_TOKENS = 1
    """Those that read it with a negative weight."""
    LOOKS = 2
    """Looks at the entry: its first token in a stretch."""
    NEGATIVE_LOOKS = 3
    """Those with a negative read weight."""


class EvennessSum(IntEnum):
    """Sums that ``sum_evenness`` adds to."""

    READERS = 0
    """Tokens that read anything."""
    OF_READ = 1
    """Evenness of their reads."""
    OF_GATE = 2
    """Evenness of their gate scores."""
    COMPARED = 3
    """Tokens that read two selections of a gate score above 0."""
    OF_ATTENTION = 4
    """Evenness of the attention alone on these."""


class MostFrequent(NamedTuple):
    """The label that most of an entry's tokens have, ``[entry]``."""

    label: Any
    """-1 where no token has one."""
    hits: Any
    """Tokens with it."""


class EntryTokens(NamedTuple):
    """The tokens that select entries, each counted once, ``[entry]`` in every array."""

    tokens: Any
    """How many."""
    token: MostFrequent
    """Input token."""
    previous: MostFrequent
    """The token before."""
    bigram: MostFrequent
    """Both of them."""
    doc: MostFrequent
    """Document."""
    starts: Any
    """Tokens at the start of a window."""
    classes: Any
    """Tokens of each class, ``[entry, class]``."""


@njit(nogil=True, cache=True)
@no_type_check
def distinct(entries: Any, rows: Any) -> Any:
    """Where an entry or row differs from the one before: the first of a token's selections, bool ``[selection]``."""
    first = np.ones(len(rows), np.bool_)
    for i in range(1, len(rows)):
        first[i] = rows[i] != rows[i - 1] or entries[i] != entries[i - 1]
    return first


def describe_tokens(starts: np.ndarray, rows: np.ndarray, text: RowText, bits: np.ndarray) -> EntryTokens:
    """Count what the tokens that select entries have in common.

    Args:
        starts: where the rows of each entry begin, and the end, int64 ``[entry + 1]``.
        rows: that select the entries, rising within one and each once.
        text: of all rows.
        bits: classes of every token id, uint8 ``[vocab]``.
    """
    n = len(starts) - 1
    most = [
        MostFrequent(*_most_frequent(starts, rows, of_row, int(of_row.max(initial=0)) + 1))
        for of_row in (text.token, text.previous, text.bigram, text.doc)
    ]
    window_starts, classes = np.zeros(n, np.int64), np.zeros((n, len(CLASSES)), np.int64)
    _count_marks(starts, rows, text.token, text.previous, bits, window_starts, classes)
    return EntryTokens(np.diff(starts), most[0], most[1], most[2], most[3], window_starts, classes)


@njit(nogil=True, cache=True)
@no_type_check
def _most_frequent(starts: Any, rows: Any, of_row: Any, n_labels: int) -> Any:
    """Per entry the most frequent label of its rows, the smallest of equals, and its count; -1 labels none."""
    counts = np.zeros(n_labels, np.int64)
    best = np.full(len(starts) - 1, -1, np.int64)
    most = np.zeros(len(starts) - 1, np.int64)
    for e in range(len(starts) - 1):
        for s in range(starts[e], starts[e + 1]):
            label = of_row[rows[s]]
            if label >= 0:
                counts[label] += 1
                if counts[label] > most[e] or (counts[label] == most[e] and label < best[e]):
                    best[e], most[e] = label, counts[label]
        for s in range(starts[e], starts[e + 1]):
            label = of_row[rows[s]]
            if label >= 0:
                counts[label] = 0
    return best, most


@njit(nogil=True, cache=True)
@no_type_check
def _count_marks(
    starts: Any, rows: Any, token: Any, previous: Any, bits: Any, window_starts: Any, classes: Any
) -> None:
    for e in range(len(starts) - 1):
        for s in range(starts[e], starts[e + 1]):
            row = rows[s]
            window_starts[e] += previous[row] < 0
            for c in range(classes.shape[1]):
                classes[e, c] += (bits[token[row]] >> c) & 1


@njit(nogil=True, cache=True)
@no_type_check
def count_negative(indices: Any, read: Any, stretch: Any, last: Any, counts: Any) -> None:
    """Count the tokens at which entries are read with a negative weight, over all slots that select them.

    Args:
        indices: entries that tokens select, ``[token, K]``, tokens in order; -1 is none.
        read: signed read weights, ``[token, K]``.
        stretch: of every token, rising.
        last: stretch in which each entry was looked at last, int64 ``[N]``, -1 at first; moved on.
        counts: int64 ``[N, ReadCount]``, added to.
    """
    for t in range(indices.shape[0]):
        for k in range(indices.shape[1]):
            entry = indices[t, k]
            if entry < 0:
                continue
            weight, again = 0.0, False
            for j in range(indices.shape[1]):
                if indices[t, j] == entry:
                    weight += read[t, j]
                    again |= j < k
            if again:
                continue
            negative = weight < 0
            counts[entry, ReadCount.TOKENS] += 1
            counts[entry, ReadCount.NEGATIVE_TOKENS] += negative
            if last[entry] != stretch[t]:
                last[entry] = stretch[t]
                counts[entry, ReadCount.LOOKS] += 1
                counts[entry, ReadCount.NEGATIVE_LOOKS] += negative


@njit(nogil=True, cache=True)
@no_type_check
def sum_evenness(gate: Any, read: Any, sums: Any) -> None:
    """Add up how even the shares of tokens are: exp(entropy) / number of |read|, gate scores, and |read| / gate score.

    Args:
        gate: gate scores, ``[token, K]``.
        read: read weights, ``[token, K]``.
        sums: float64 ``[EvennessSum]``, added to.
    """
    attention = np.empty(gate.shape[1])
    for t in range(gate.shape[0]):
        if not np.any(read[t] != 0):
            continue
        compared = 0
        for i in range(gate.shape[1]):
            if gate[t, i] > 0:
                attention[compared] = read[t, i] / gate[t, i]
                compared += 1
        sums[EvennessSum.READERS] += 1
        sums[EvennessSum.OF_READ] += _evenness(read[t])
        sums[EvennessSum.OF_GATE] += _evenness(gate[t])
        if compared > 1:
            sums[EvennessSum.COMPARED] += 1
            sums[EvennessSum.OF_ATTENTION] += _evenness(attention[:compared])


@njit(nogil=True, cache=True)
@no_type_check
def _evenness(weights: Any) -> float:
    """exp(entropy) of the shares of absolute weights / their number; 0 where all weights are 0."""
    total, entropy = 0.0, 0.0
    for weight in weights:
        total += abs(weight)
    if total == 0:
        return 0.0
    for weight in weights:
        share = abs(weight) / total
        entropy -= share * np.log(share) if share > 0 else 0.0
    return np.exp(entropy) / len(weights)
