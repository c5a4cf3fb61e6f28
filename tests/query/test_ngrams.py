"""Counts of n-grams against a slow count, and what is no n-gram."""

from collections import Counter

import numpy as np
import pytest

from memscope.base.errors import InputError
from memscope.query.recording import Recording


def slow(recording: Recording, order: int, rows: set[int] | None = None) -> Counter[tuple[int, ...]]:
    """N-grams within windows of documents that end at some rows, or anywhere."""
    found: Counter[tuple[int, ...]] = Counter()
    window, ids = recording.info.window, recording.token_ids.tolist()
    for first, length in recording.documents[["first_row", "rows"]].to_numpy().tolist():
        for start in range(first, first + length, window):
            for row in range(start + order - 1, min(start + window, first + length)):
                found[tuple(ids[row - order + 1 : row + 1])] += rows is None or row in rows
    return found


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ngrams_are_counted_as_by_hand(tiny_recording: Recording, order: int) -> None:
    used = tiny_recording.most_used(layer=1, limit=1)
    entry = int(used["entry"][0])
    rows = tiny_recording.selections(entry, 1)["row"]
    everywhere, own = slow(tiny_recording, order), slow(tiny_recording, order, set(rows))
    table = tiny_recording.ngrams(entry, 1, order, limit=10_000)
    tokens = tiny_recording.tokenizer.token_texts
    expected = {
        tuple(tokens[token] for token in ngram): (count, everywhere[ngram]) for ngram, count in own.items() if count
    }
    found = zip(table["tokens"], zip(table["count"], table["occurrences"], strict=True), strict=True)
    assert {tuple(texts): numbers for texts, numbers in found} == expected and len(table) == len(expected) > 5
    np.testing.assert_allclose(table["share"], table["count"] / len(rows))
    np.testing.assert_allclose(table["fires"], table["count"] / table["occurrences"])
    assert table["count"].is_monotonic_decreasing
    assert table["ngram"][0] == "".join(table["tokens"][0])
    few = tiny_recording.ngrams(entry, 1, order, limit=3)
    assert few.equals(table.head(3))


def test_an_entry_that_never_fires_has_none(tiny_recording: Recording) -> None:
    usage = tiny_recording.usage_table()
    used = set(usage.loc[(usage["layer"] == 0) & (usage["count"] > 0), "entry"])
    unused = next(entry for entry in range(tiny_recording.info.knowledge_num) if entry not in used)
    assert tiny_recording.ngrams(unused, 0).empty


def test_longer_ngrams_are_refused(tiny_recording: Recording) -> None:
    with pytest.raises(InputError, match="n-grams of order 4: 1 to 3 tokens"):
        tiny_recording.ngrams(0, 0, order=4)
