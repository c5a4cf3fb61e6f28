"""How much evidence recorded tokens are: neighbouring tokens select alike, so a burst of selections is one observation.

    text = row_text(recording, info)
    stretch = stretch_length(indices, text)                # tokens after which selection no longer repeats itself
    p = upper_tail(hits, chances)                          # at looks, one per entry and stretch

Tests that count tokens take a burst of twenty for twenty observations, and find "only in this document" or "always
together" wherever two bursts meet. Here an entry gets one **look** a stretch of text: one of its tokens there, drawn at
random. Whether that token is special is set against the share of such tokens *in the same document*, so neither a
document's subject nor an entry's liking for it counts as evidence.
"""

from pathlib import Path
from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import njit
from scipy.stats import binom

from memscope.base.parquet import matrix, read_parquet
from memscope.recording.info import RecordingInfo
from memscope.recording.part_reader import read_columns
from memscope.recording.row_columns import disk_array, pieces, row_columns

SHORTEST = 8
"""Tokens that a stretch has at least."""
DECAYED = 0.1
"""Share of the excess similarity of neighbouring tokens that may remain at half a stretch."""
SAMPLED = 1 << 18
"""Tokens of a layer that its stretch is measured on."""


class RowText(NamedTuple):
    """Where every recorded row stands, ``[token]`` each."""

    token: np.ndarray
    """Input token, int32."""
    previous: np.ndarray
    """The token before it in the window, int32; -1 at the start of a window."""
    bigram: np.ndarray
    """Number of the pair of these two, int32."""
    doc: np.ndarray
    """Document, int32."""
    first_row: np.ndarray
    """First row of every document, int64 ``[doc]``."""
    length: np.ndarray
    """Rows of every document, int64 ``[doc]``."""

    @property
    def starts(self) -> np.ndarray:
        """Rows that start a window, bool."""
        return self.previous < 0

    def stretch_of(self, rows: np.ndarray, stretch: int) -> np.ndarray:
        """Number of the stretch that rows lie in; stretches begin with their documents, int64."""
        doc = self.doc[rows]
        per_document = -(-self.length // stretch)
        offset = np.cumsum(per_document) - per_document
        return np.asarray(offset[doc] + (rows - self.first_row[doc]) // stretch)

    def share_in_document(self, special: np.ndarray) -> np.ndarray:
        """Share of every document's rows that are special (bool ``[token]``), ``[doc]``."""
        return np.bincount(self.doc[special], minlength=len(self.length)) / self.length


def row_text(recording: Path, info: RecordingInfo) -> RowText:
    """Read what the rows of a recording are about."""
    documents = read_parquet(recording / "documents.parquet", ["first_row", "rows"])
    columns = row_columns(recording, info, ["token", "previous", "doc"])
    token, previous, wide = columns["token"], columns["previous"], info.vocab_size + 1
    keys, bigram = np.empty(0, np.int64), disk_array(recording, info.rows)
    for piece in pieces(info.rows):
        keys = np.union1d(keys, token[piece].astype(np.int64) * wide + previous[piece] + 1)
    for piece in pieces(info.rows):
        bigram[piece] = np.searchsorted(keys, token[piece].astype(np.int64) * wide + previous[piece] + 1)
    first_row, length = (documents[name].to_numpy().astype(np.int64) for name in ("first_row", "rows"))
    return RowText(token, previous, bigram, columns["doc"], first_row, length)


def first_indices(recording: Path, info: RecordingInfo, layer: int) -> np.ndarray:
    """Selected entries of a layer's first ``SAMPLED`` rows or so, ``[token, K]``."""
    name, found, rows = f"l{layer}_indices", [], 0
    for part in info.parts:
        found.append(matrix(read_columns(recording, info, part, [name])[name]))
        rows += part.rows
        if rows >= SAMPLED:
            break
    return np.concatenate(found)[:SAMPLED]


def stretch_length(indices: np.ndarray, text: RowText) -> int:
    """Tokens of a stretch: twice the distance at which selection repeats itself hardly more than in all the document.

    The distance is the smallest power of two at which what a token selects recurs, beyond the level of two random
    tokens of one document, at most ``DECAYED`` times as often as one token on, or so little that it may be chance.

    Args:
        indices: entries that the first rows select, ``[token, K]``.
        text: of all rows.
    """
    rows = np.arange(len(indices))
    doc = text.doc[: len(rows)]
    begin = text.first_row[doc]
    end = np.minimum(begin + text.length[doc], len(rows))
    anywhere = (begin + np.random.default_rng(0).random(len(rows)) * (end - begin)).astype(np.int64)
    level = _repeated(indices, anywhere)

    def excess(distance: int) -> float:
        return float(_repeated(indices, np.where(rows + distance < end, rows + distance, -1)) - level)

    may_be_left = max(DECAYED * excess(1), 4 * (level / max(1, indices.size)) ** 0.5)
    distance, longest = SHORTEST // 2, int(text.length.max())
    while distance < longest and excess(distance) > may_be_left:
        distance *= 2
    return min(2 * distance, max(longest, SHORTEST))


def pick_looks(rows: np.ndarray, stretches: np.ndarray) -> np.ndarray:
    """One of an entry's rows in each stretch, at random.

    Args:
        rows: of the entry, rising, int64.
        stretches: that they lie in (``RowText.stretch_of``).
    """
    starts = np.flatnonzero(np.diff(stretches, prepend=-1))
    sizes = np.diff(np.append(starts, len(rows)))
    return np.asarray(rows[starts + (np.random.default_rng(len(rows)).random(len(starts)) * sizes).astype(np.int64)])


def upper_tail(hits: int, chances: np.ndarray) -> float:
    """Probability of at least this many hits, at looks that each hit with their own probability.

    A binomial of the mean chance: above its mean its tail is no smaller than the true one (Hoeffding 1956, "On the
    distribution of the number of successes in independent trials").
    """
    n = len(chances)
    return float(binom.sf(hits - 1, n, chances.mean())) if n and hits >= chances.sum() else 1.0


def lower_tail(hits: int, chances: np.ndarray) -> float:
    """Probability of at most this many hits, likewise."""
    n = len(chances)
    return float(binom.cdf(hits, n, chances.mean())) if n and hits <= chances.sum() else 1.0


@njit(nogil=True, cache=True)
@no_type_check
def _repeated(indices: Any, other: Any) -> float:
    """Share of selections that the ``other`` token of every token makes too; tokens with -1 have none."""
    n, hits = 0, 0
    for t in range(indices.shape[0]):
        if other[t] >= 0 and other[t] != t:
            for i in range(indices.shape[1]):
                if indices[t, i] < 0:
                    continue
                n += 1
                for j in range(indices.shape[1]):
                    if indices[other[t], j] == indices[t, i]:
                        hits += 1
                        break
    return hits / max(n, 1)
