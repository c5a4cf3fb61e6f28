"""Pairs of entries that tokens always select together, or never; from what ``census/neighbours.py`` counted of a layer.

Entries that fire on different words are never together either, and there are millions of such pairs. A pair is named as
exclusive only where the same two tokens, input and the one before, are met by now the one and now the other entry.
"""

from typing import Any, NamedTuple, no_type_check

import numpy as np
import pandas as pd
from numba import njit

from memscope.census.anomalies.looks import RowText, lower_tail, pick_looks, upper_tail
from memscope.recording.info import RecordingInfo

MIN_PAIR = 20
"""Least number of tokens that select both of two duplicates, or that would select both of two exclusive entries at
chance level."""
TOGETHER = 0.95
"""Share of the tokens that select either of two duplicates that must select both."""
APART = 0.02
"""Share of the tokens expected to select both of two exclusive entries that may do so."""
N_APART = 10
"""Others looked at for every entry that it excludes at all: those selected most often."""


class CoSelection(NamedTuple):
    """How the entries of a layer are selected together."""

    rows: np.ndarray
    """Rows that were looked at, int64 ``[token]``."""
    starts: np.ndarray
    """Where every entry's tokens begin, and the end, int64 ``[N + 1]``."""
    tokens: np.ndarray
    """Places in ``rows`` that select each entry, entry after entry, each once."""
    other: np.ndarray
    """Nearest entries by NPMI, int64 ``[N, rank]``; -1 fills up."""
    together: np.ndarray
    """Tokens that select both, like ``other``."""
    npmi: np.ndarray
    """NPMI, like ``other``."""
    apart: np.ndarray
    """Entries hardly ever selected with an entry, most frequent first, int64 ``[N, N_APART]``, or of width 0."""

    def of(self, entry: int) -> np.ndarray:
        """Tokens of an entry, as places in ``rows``."""
        return self.tokens[self.starts[entry] : self.starts[entry + 1]].astype(np.int64)


def pair_anomalies(found: CoSelection, info: RecordingInfo, layer: int, text: RowText, stretch: int) -> pd.DataFrame:
    """Candidates of one layer: ``kind layer entry other effect p tokens``, ``duplicate`` and ``exclusive``.

    The effect of duplicates is tokens that select both / either. That of exclusive ones is tokens that select both /
    those expected where each selects its share of every pair of input and previous token, independently of the other.
    ``tokens`` select either; ``p`` is of the first one's looks, against the share of its document that selects the
    other, times all pairs of all layers.

    Args:
        found: of the layer.
        info: of the recording.
        layer: its number.
        text: of all rows.
        stretch: of ``looks.stretch_length``.
    """
    pairs = sum(site.entries * (site.entries - 1) for site in info.sites) / 2
    size = np.diff(found.starts)
    rows = []
    for a, b, together in _duplicates(found, size):
        chances, hits = _looks(found, a, b, text, stretch)
        either = int(size[a] + size[b] - together)
        p = min(1.0, upper_tail(hits, chances) * pairs)
        rows.append(("duplicate", layer, a, b, together / either, p, either))
    for a, b, together, expected in _exclusive(found, text):
        chances, hits = _looks(found, a, b, text, stretch)
        p = min(1.0, lower_tail(hits, chances) * pairs)
        rows.append(("exclusive", layer, a, b, together / expected, p, int(size[a] + size[b] - together)))
    return pd.DataFrame(rows, columns=["kind", "layer", "entry", "other", "effect", "p", "tokens"])


def _duplicates(found: CoSelection, size: np.ndarray) -> list[tuple[int, int, int]]:
    entry, rank = np.nonzero(found.other >= 0)
    other, together = found.other[entry, rank], found.together[entry, rank]
    named = (entry < other) & (together >= MIN_PAIR) & (together >= TOGETHER * (size[entry] + size[other] - together))
    return list(zip(entry[named].tolist(), other[named].tolist(), together[named].tolist(), strict=True))


def _exclusive(found: CoSelection, text: RowText) -> list[tuple[int, int, int, float]]:
    entry, rank = np.nonzero(found.apart >= 0)
    pairs = np.unique(np.sort(np.stack([entry, found.apart[entry, rank]], axis=1), axis=1), axis=0)
    cell = text.bigram[found.rows]
    in_cell = np.bincount(cell)
    together, expected = _given_tokens(pairs, found.starts, found.tokens, cell, in_cell)
    named = (expected >= MIN_PAIR) & (together <= APART * expected)
    columns = (pairs[named, 0], pairs[named, 1], together[named], expected[named])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _looks(found: CoSelection, a: int, b: int, text: RowText, stretch: int) -> tuple[np.ndarray, int]:
    """Chances that looks at an entry's tokens find another entry selected too, and how many do."""
    rows_a, rows_b = found.rows[found.of(a)], found.rows[found.of(b)]
    looks = pick_looks(rows_a, text.stretch_of(rows_a, stretch))
    share = np.bincount(text.doc[rows_b], minlength=len(text.length)) / np.maximum(
        np.bincount(text.doc[found.rows], minlength=len(text.length)), 1
    )
    return share[text.doc[looks]], int(np.isin(looks, rows_b, assume_unique=True).sum())


@njit(nogil=True, cache=True)
@no_type_check
def most_frequent_apart(entry: int, starts: Any, counts: Any, by_count: Any, n_tokens: int, apart: Any) -> None:
    """Fill ``apart`` with the most frequent entries that are hardly ever selected with one.

    Args:
        entry: the one.
        starts: of ``CoSelection``.
        counts: tokens that select both, of every entry.
        by_count: all entries, most frequent first.
        n_tokens: looked at.
        apart: int64, filled from the front.
    """
    n = starts[entry + 1] - starts[entry]
    place = 0
    for other in by_count:
        expected = n * ((starts[other + 1] - starts[other]) / n_tokens)
        if expected < MIN_PAIR:
            return
        if other != entry and counts[other] <= APART * expected:
            apart[place] = other
            place += 1
            if place == len(apart):
                return


@njit(nogil=True, cache=True)
@no_type_check
def _given_tokens(pairs: Any, starts: Any, tokens: Any, cell: Any, in_cell: Any) -> Any:
    """Tokens that select both entries of each pair, and those expected if each selects its share of every cell."""
    together = np.zeros(len(pairs), np.int64)
    expected = np.zeros(len(pairs))
    of_first = np.zeros(len(in_cell), np.int64)
    is_first = np.zeros(len(cell), np.bool_)
    for i in range(len(pairs)):
        a, b = pairs[i]
        for s in range(starts[a], starts[a + 1]):
            of_first[cell[tokens[s]]] += 1
            is_first[tokens[s]] = True
        for s in range(starts[b], starts[b + 1]):
            t = tokens[s]
            together[i] += is_first[t]
            expected[i] += of_first[cell[t]] / in_cell[cell[t]]
        for s in range(starts[a], starts[a + 1]):
            of_first[cell[tokens[s]]] = 0
            is_first[tokens[s]] = False
    return together, expected
