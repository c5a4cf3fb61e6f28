"""Words of recorded text: which whole word every token belongs to, for titles that a person can read."""

from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import njit

from memscope.tokenizer import Tokenizer

LONGEST = 24
"""Tokens in a word at most; in longer runs, of a script without spaces say, every token counts as a word."""


class RowWords(NamedTuple):
    """The words of a recording."""

    of_row: np.ndarray
    """Number of the word that every token is in, int32 ``[token]``; -1 for punctuation and the like."""
    texts: list[str]
    """The words."""
    share: np.ndarray
    """Share of every word among the rows that are in one, float64."""


def words_of_rows(tokens: np.ndarray, first_rows: np.ndarray, tokenizer: Tokenizer) -> RowWords:
    """Group tokens to words: a word starts at white space, after punctuation, or at a document's start.

    Args:
        tokens: token ids of all rows, ``[token]``.
        first_rows: rows at which documents start.
        tokenizer: theirs.
    """
    texts = tokenizer.token_texts
    # " word", "." and "<s>" open a word; a lone byte of a longer character (shown as U+FFFD) goes on with one.
    opens = np.array([not (text[:1].isalnum() or text[:1] == "\ufffd") for text in texts])
    spaced = np.array([text[:1].isspace() for text in texts])
    closes = (opens & ~spaced) | np.array([text[:1].isalnum() and text[-1:].isspace() for text in texts])
    starts = opens[tokens]
    starts[1:] |= closes[tokens[:-1]]
    starts[first_rows] = starts[np.minimum(first_rows + 1, len(tokens) - 1)] = True  # the first token is bos
    begin = np.flatnonzero(starts)
    length = np.diff(np.append(begin, len(tokens)))
    starts |= np.repeat(length > LONGEST, length)
    begin = np.flatnonzero(starts)
    end = np.append(begin[1:], len(tokens))
    _, first, inverse = np.unique(_hash_groups(tokens, begin), return_index=True, return_inverse=True)
    spelled = [_clean(tokenizer.decode(tokens[begin[g] : end[g]].tolist())) for g in first]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(word for word in spelled if word))}
    number = np.array([vocabulary.get(word, -1) for word in spelled], np.int32)
    of_row = np.repeat(number[inverse], end - begin)
    of_row[np.isin(tokens, list(tokenizer.control))] = -1
    count = np.bincount(of_row[of_row >= 0], minlength=max(len(vocabulary), 1))
    return RowWords(of_row, list(vocabulary), count / max(count.sum(), 1))


def _clean(text: str) -> str:
    """The text without what surrounds its letters and digits; empty unless it has a letter and two characters."""
    letters = [place for place, character in enumerate(text) if character.isalnum()]
    word = text[letters[0] : letters[-1] + 1] if letters else ""
    return word if len(word) > 1 and any(character.isalpha() for character in word) else ""


@njit(nogil=True, cache=True)
@no_type_check
def _hash_groups(tokens: Any, begin: Any) -> Any:
    """64-bit FNV-1a of the token ids of every group."""
    hashes = np.empty(len(begin), np.uint64)
    for g in range(len(begin)):
        end = begin[g + 1] if g + 1 < len(begin) else len(tokens)
        value = np.uint64(14695981039346656037)
        for t in range(begin[g], end):
            value = (value ^ np.uint64(tokens[t])) * np.uint64(1099511628211)
        hashes[g] = value
    return hashes
