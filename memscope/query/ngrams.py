"""The n-grams on which an entry fires: the last tokens up to and with the one that selects it; no torch."""

import numpy as np
import pandas as pd

from memscope.base.errors import InputError
from memscope.query.tables import RecordingTables

MOST = 3
"""Longest n-gram: three tokens of any vocabulary fit a number."""
_NONE = -1


def ngrams(recording: RecordingTables, rows: np.ndarray, order: int, limit: int) -> pd.DataFrame:
    """The most frequent n-grams that end at some rows.

    Args:
        recording: the recording.
        rows: where an entry fires.
        order: tokens of an n-gram, 1 to 3.
        limit: n-grams at most.

    Returns:
        ``ngram tokens count share occurrences fires``, the most frequent first: its text and its tokens, how many of
        the rows end it and what share of the rows that is, how often it occurs in the corpus and in what share of
        that the entry fires. Rows whose n-gram begins before the window that the model saw end none.

    Raises:
        InputError: n-grams of another order.
    """
    if not 1 <= order <= MOST:
        raise InputError(f"n-grams of order {order}: 1 to {MOST} tokens")
    codes = _codes(recording, order)
    own = codes[rows]
    found, counts = np.unique(own[own != _NONE], return_counts=True)
    best = np.argsort(-counts, kind="stable")[:limit]
    chosen = np.sort(found[best])
    place = np.searchsorted(chosen, codes).clip(max=max(0, len(chosen) - 1))
    everywhere = np.bincount(place[chosen[place] == codes] if len(chosen) else [], minlength=len(chosen))
    occurrences = everywhere[np.searchsorted(chosen, found[best])]
    ids = [_tokens(recording, int(code), order) for code in found[best]]
    return pd.DataFrame(
        {
            "ngram": [recording.tokenizer.decode(tokens) for tokens in ids],
            "tokens": [[recording.tokenizer.token_texts[token] for token in tokens] for tokens in ids],
            "count": counts[best],
            "share": counts[best] / max(1, len(rows)),
            "occurrences": occurrences,
            "fires": counts[best] / np.maximum(1, occurrences),
        }
    )


def _codes(recording: RecordingTables, order: int) -> np.ndarray:
    """A number for the n-gram that ends at every row, int64; -1 where it begins before the window."""
    ids, documents = np.asarray(recording.token_ids, np.int64), recording.documents
    first, lengths = (documents[name].to_numpy(np.int64) for name in ("first_row", "rows"))
    place = (np.arange(len(ids)) - np.repeat(first, lengths)) % recording.info.window
    codes = ids.copy()
    for back in range(1, order):
        codes[back:] += ids[:-back] * recording.tokenizer.vocab_size**back
    return np.where(place < order - 1, _NONE, codes)


def _tokens(recording: RecordingTables, code: int, order: int) -> list[int]:
    return [code // recording.tokenizer.vocab_size**back % recording.tokenizer.vocab_size for back in range(order)][
        ::-1
    ]
