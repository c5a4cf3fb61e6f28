"""Find the entries of a text bank that share rare words with the text up to a token.

BM25 (Robertson and Zaragoza 2009) with words of the query weighted by their rarity too, so that a name counts for more
than the words around it. The query of a token is the last words of its text, each once, up to and with the token: a
word that the next token goes on with counts as it stands. Scores are shares: 1 is what an entry would score that has
every word of the query once and a mean length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import njit

from memscope.base.work import in_threads
from memscope.text_bank.words import WordReader

_K1, _B = 1.2, 0.75
"""Saturation of repeated words, and weight of an entry's length: the usual values of BM25."""
_BLOCKED = -1e12
"""Sum that no words make up for."""
_NONE = np.empty(0, np.int64)
_NO_WORD, _UNKNOWN = -2, -1
"""A token outside of words, and in a word that no entry has."""


class Found(NamedTuple):
    """The entries that share most with the text up to every token, best first; equal scores by number."""

    entries: np.ndarray
    """int64 ``[batch, pos, k]``; -1 where fewer entries share a word."""
    scores: np.ndarray
    """float32 ``[batch, pos, k]``, 0 where there is no entry."""


@dataclass(frozen=True)
class LexicalIndex:
    """Which entries have each word, and how much that counts."""

    reader: WordReader
    vocabulary: np.ndarray
    """Words of the bank, uint64 ``[word]``, sorted."""
    weights: np.ndarray
    """Weight of each in a query, float32 ``[word]``: its squared rarity (inverse document frequency)."""
    starts: np.ndarray
    """Where the entries of each word begin in the two arrays below, int64 ``[word + 1]``."""
    entries: np.ndarray
    scores: np.ndarray
    """Weight of the word times its saturated count in the entry, float32."""
    n_entries: int
    bos: int
    """The token that opens a text: words before it take no part."""
    window: int
    """Words of a query."""

    @classmethod
    def build(cls, ids: np.ndarray, lengths: np.ndarray, reader: WordReader, bos: int, window: int) -> "LexicalIndex":
        """Index a bank of token ids ``[N, L]``, of which the first ``lengths [N]`` of a row are text."""
        # All rows are read as one text, a bos behind each: no word goes on beyond it.
        place = np.arange(ids.shape[1] + 1)
        rows = np.where(place == lengths[:, None], bos, np.pad(ids, ((0, 0), (0, 1))))
        ends = reader.read(rows[place <= lengths[:, None]])
        owners = np.repeat(np.arange(len(ids)), lengths + 1)[ends.whole]
        words, sizes = ends.words[ends.whole], np.bincount(owners, minlength=len(ids))
        vocabulary, word = np.unique(words, return_inverse=True)
        pairs, counts = np.unique(word * len(ids) + owners, return_counts=True)
        word, owners = np.divmod(pairs, len(ids))  # by word, then by entry
        having = np.bincount(word, minlength=len(vocabulary))
        rarity = np.log1p((len(ids) - having + 0.5) / (having + 0.5))
        length = 1 - _B + _B * sizes / max(1.0, sizes.mean())
        scores = rarity[word] ** 2 * counts * (_K1 + 1) / (counts + _K1 * length[owners])
        return cls(
            reader=reader,
            vocabulary=vocabulary,
            weights=(rarity**2).astype(np.float32),
            starts=np.concatenate([[0], np.cumsum(having)]),
            entries=owners,
            scores=scores.astype(np.float32),
            n_entries=len(ids),
            bos=bos,
            window=window,
        )

    def search(self, tokens: np.ndarray, k: int, blocked: Sequence[np.ndarray] | None = None) -> Found:
        """The best ``k`` entries for the text up to every token of ``tokens [batch, pos]``.

        Args:
            tokens: token ids.
            k: how many.
            blocked: per row, entries that are not to be found.
        """
        without = [_NONE] * len(tokens) if blocked is None else blocked
        rows = list(in_threads(lambda row: self._search_row(*row, k), zip(tokens, without, strict=True)))
        return Found(np.stack([row.entries for row in rows]), np.stack([row.scores for row in rows]))

    def _search_row(self, tokens: np.ndarray, blocked: np.ndarray, k: int) -> Found:
        ends = self.reader.read(tokens)
        place = np.searchsorted(self.vocabulary, ends.words)
        known = self.vocabulary[np.minimum(place, len(self.vocabulary) - 1)] == ends.words
        word = np.where(ends.words == 0, _NO_WORD, np.where(known, place, _UNKNOWN))
        best = _search(
            word, ends.begins, tokens == self.bos, self.weights, self.starts, self.entries, self.scores,
            np.asarray(blocked, np.int64), self.n_entries, self.window, k,
        )  # fmt: skip
        return Found(*best)


@njit(nogil=True, cache=True)
@no_type_check
def _search(
    word: Any,
    begins: Any,
    opens: Any,
    weights: Any,
    starts: Any,
    entries: Any,
    scores: Any,
    blocked: Any,
    n_entries: int,
    window: int,
    k: int,
) -> Any:
    """Best entries and scores along one text; ``word`` numbers the vocabulary."""
    best, best_scores = np.full((len(word), k), -1, np.int64), np.zeros((len(word), k), np.float32)
    sums = np.zeros(n_entries, np.float64)  # of many additions and subtractions, so wider than what goes in
    recent, held = np.full(window, _UNKNOWN, np.int64), np.zeros(len(weights), np.int32)
    at = 0
    sums[blocked] = _BLOCKED
    for pos in range(len(word)):
        if opens[pos]:
            sums[:], held[:], recent[:] = 0, 0, _UNKNOWN
            sums[blocked] = _BLOCKED
        elif pos > 0 and word[pos] != _NO_WORD and not begins[pos]:  # it takes the place of what was there of it
            at = (at - 1) % window
            _drop(recent[at], held, sums, starts, entries, scores)
            recent[at] = _UNKNOWN
        if word[pos] != _NO_WORD:
            _drop(recent[at], held, sums, starts, entries, scores)
            recent[at] = word[pos]
            at = (at + 1) % window
            if word[pos] != _UNKNOWN:
                held[word[pos]] += 1
                if held[word[pos]] == 1:
                    for place in range(starts[word[pos]], starts[word[pos] + 1]):
                        sums[entries[place]] += scores[place]
        elif pos > 0 and not opens[pos]:
            best[pos], best_scores[pos] = best[pos - 1], best_scores[pos - 1]
            continue
        total = 0.0
        for place in range(window):
            if recent[place] != _UNKNOWN:
                total += weights[recent[place]] / held[recent[place]]
        if total > 0:
            _take_best(sums, total, best[pos], best_scores[pos])
    return best, best_scores


@njit(nogil=True, cache=True)
@no_type_check
def _drop(word: int, held: Any, sums: Any, starts: Any, entries: Any, scores: Any) -> None:
    """Take a word out of the query."""
    if word != _UNKNOWN:
        held[word] -= 1
        if held[word] == 0:
            for place in range(starts[word], starts[word + 1]):
                sums[entries[place]] -= scores[place]


@njit(nogil=True, cache=True)
@no_type_check
def _take_best(sums: Any, total: float, best: Any, best_scores: Any) -> None:
    """Fill one position: the largest sums as shares of ``total``, by insertion into a short sorted list."""
    n, k, least = 0, len(best), 1e-6
    for entry in range(len(sums)):
        if sums[entry] <= least:
            continue
        place = n if n < k else k - 1
        while place > 0 and best_scores[place - 1] < sums[entry]:
            best_scores[place], best[place] = best_scores[place - 1], best[place - 1]
            place -= 1
        best_scores[place], best[place] = sums[entry], entry
        n = min(n + 1, k)
        if n == k:
            least = best_scores[k - 1]
    for place in range(n):
        best_scores[place] /= total
