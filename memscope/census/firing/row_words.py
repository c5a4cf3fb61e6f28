"""Words of recorded text: which whole word every token belongs to, for titles that a person can read."""

from itertools import pairwise
from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import njit

from memscope.recording.row_columns import PIECE, tally
from memscope.text.tokenizer import Tokenizer

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


def words_of_rows(
    tokens: np.ndarray, first_rows: np.ndarray, tokenizer: Tokenizer, out: np.ndarray | None = None
) -> RowWords:
    """Group tokens to words: a word starts at white space, after punctuation, or at a document's start.

    Args:
        tokens: token ids of all rows, ``[token]``.
        first_rows: rows at which documents start, rising.
        tokenizer: theirs.
        out: where ``of_row`` goes, int32 ``[token]``; default a new array.
    """
    of_row = np.empty(len(tokens), np.int32) if out is None else out
    vocabulary: dict[str, int] = {}
    by_hash: dict[int, int] = {}
    openings = _openings(tokenizer)
    control = list(tokenizer.control)
    for start, end in pairwise(_cuts(first_rows, len(tokens))):
        chunk = tokens[start:end]
        begin = _word_starts(chunk, first_rows[(first_rows >= start) & (first_rows < end)] - start, openings)
        stop = np.append(begin[1:], len(chunk))
        hashes, first, inverse = np.unique(_hash_groups(chunk, begin), return_index=True, return_inverse=True)
        for value, group in zip(hashes.tolist(), first.tolist(), strict=True):
            if value not in by_hash:
                word = _clean(tokenizer.decode(chunk[begin[group] : stop[group]].tolist(), partial="ignore"))
                by_hash[value] = vocabulary.setdefault(word, len(vocabulary)) if word else -1
        number = np.array([by_hash[value] for value in hashes.tolist()], np.int32)
        words = np.repeat(number[inverse], stop - begin)
        words[np.isin(chunk, control)] = -1
        of_row[start:end] = words
    count = tally(of_row, max(len(vocabulary), 1))
    return RowWords(of_row, list(vocabulary), count / max(count.sum(), 1))


def _openings(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens open a word, and behind which ones a word opens, bool ``[vocab]``."""
    texts = tokenizer.token_texts
    # " word", "." and "<s>" open a word; a token that begins inside a character goes on with one.
    inside = [number in tokenizer.partial and text[:1] == "\\" for number, text in enumerate(texts)]
    opens = np.array([not (text[:1].isalnum() or cut) for text, cut in zip(texts, inside, strict=True)])
    spaced = np.array([text[:1].isspace() for text in texts])
    closes = (opens & ~spaced) | np.array([text[:1].isalnum() and text[-1:].isspace() for text in texts])
    return opens, closes


def _cuts(first_rows: np.ndarray, n_rows: int) -> list[int]:
    """Rows that cut a recording at starts of documents into stretches of ``PIECE`` rows or so."""
    if not n_rows:
        return []
    wanted = np.arange(PIECE, n_rows, PIECE)
    at = np.searchsorted(first_rows, wanted)
    return [0, *np.unique(first_rows[at[at < len(first_rows)]]).tolist(), n_rows]


def _word_starts(tokens: np.ndarray, first_rows: np.ndarray, openings: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    opens, closes = openings
    starts = opens[tokens]
    starts[1:] |= closes[tokens[:-1]]
    starts[first_rows] = starts[np.minimum(first_rows + 1, len(tokens) - 1)] = True  # the first token is bos
    begin = np.flatnonzero(starts)
    length = np.diff(np.append(begin, len(tokens)))
    starts |= np.repeat(length > LONGEST, length)
    return np.flatnonzero(starts)


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
