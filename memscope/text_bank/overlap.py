"""Which sentences of a bank a text contains: those may be the very text that a model is asked to predict.

A sentence counts as contained if ``n`` whole words in a row stand in both (RETRO, arXiv 2112.04426, measures leakage
so). A sentence of fewer words than that cannot be told.
"""

import numpy as np

from memscope.text_bank.words import WordReader

_MIX = np.uint64(0x9E3779B97F4A7C15)


class Overlaps:
    """Finds the sentences that share n words in a row with a text.

    Args:
        ids: token ids of the sentences, ``[N, L]``.
        lengths: tokens of each.
        reader: reads words from ids.
        n: words in a row.
    """

    def __init__(self, ids: np.ndarray, lengths: np.ndarray, reader: WordReader, n: int):
        self._reader, self._n = reader, n
        grams = [self._grams(row[:length]) for row, length in zip(ids, lengths, strict=True)]
        owners = np.repeat(np.arange(len(grams)), [len(one) for one in grams])
        flat = np.concatenate(grams) if grams else np.empty(0, np.uint64)
        order = np.argsort(flat, kind="stable")
        self._sorted, self._owners = flat[order], owners[order]

    def find(self, tokens: np.ndarray) -> np.ndarray:
        """Entries that share n words in a row with a text ``[pos]``, rising."""
        grams = np.unique(self._grams(tokens))
        first, last = (np.searchsorted(self._sorted, grams, side) for side in ("left", "right"))
        found = [self._owners[start:stop] for start, stop in zip(first, last, strict=True) if stop > start]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

    def _grams(self, ids: np.ndarray) -> np.ndarray:
        """A hash for every n words in a row."""
        ends = self._reader.read(np.asarray(ids))
        words = ends.words[ends.whole]
        if len(words) < self._n:
            return np.empty(0, np.uint64)
        grams = np.zeros(len(words) - self._n + 1, np.uint64)
        for place in range(self._n):
            grams = (grams ^ words[place : place + len(grams)]) * _MIX
            grams ^= grams >> np.uint64(29)
        return grams
