"""Whole words in token ids.

A word is a run of letters and digits, without regard to case, however many tokens spell it; every byte of a character
beyond ASCII counts as a letter. Words are known by a hash of their bytes (64-bit FNV-1a), so that any text, of the bank
or of a prompt, is read alike from its token ids alone.
"""

from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import njit

from memscope.text.tokenizer import Tokenizer

_BASIS, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


class WordEnds(NamedTuple):
    """The word that every position ends, or is inside of."""

    words: np.ndarray
    """Hash of the word up to and with this token, 0 where the token ends in no word, uint64 ``[pos]``."""
    begins: np.ndarray
    """Whether that word begins in this token, bool ``[pos]``; if not, it goes on with the word of the token before."""

    @property
    def whole(self) -> np.ndarray:
        """Whether the word is complete: no later token goes on with it, bool ``[pos]``."""
        goes_on = np.append((self.words[1:] != 0) & ~self.begins[1:], False)
        return (self.words != 0) & ~goes_on


class WordReader:
    """Reads words from token ids.

    Args:
        tokenizer: what the ids are of; its special tokens spell no words.
    """

    def __init__(self, tokenizer: Tokenizer):
        pieces = [b"" if token in tokenizer.control else piece for token, piece in enumerate(tokenizer.pieces)]
        self._ends = np.cumsum([0, *map(len, pieces)])
        self._bytes = np.frombuffer(b"".join(pieces), np.uint8)

    def read(self, ids: np.ndarray) -> WordEnds:
        """Words along the ids of one text, int ``[pos]``."""
        return WordEnds(*_read(ids.astype(np.int64), self._ends, self._bytes))


@njit(nogil=True, cache=True)
@no_type_check
def _read(ids: Any, ends: Any, spelled: Any) -> Any:
    words, begins = np.zeros(len(ids), np.uint64), np.zeros(len(ids), np.bool_)
    word, inside = np.uint64(0), False
    for pos, token in enumerate(ids):
        if ends[token] == ends[token + 1]:  # a special token ends a word
            inside = False
        for byte in spelled[ends[token] : ends[token + 1]]:
            if 65 <= byte <= 90:
                byte += 32
            if not (byte >= 128 or 97 <= byte <= 122 or 48 <= byte <= 57):
                inside = False
                continue
            if not inside:
                word, inside, begins[pos] = _BASIS, True, True
            word = (word ^ np.uint64(byte)) * _PRIME
        words[pos] = word if inside else 0
    return words, begins
