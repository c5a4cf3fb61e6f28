"""Labels that init sentences give to the entries of a bank."""

import numpy as np
import pandas as pd
import pytest

from memscope.base.errors import InputError
from memscope.base.files import read_json
from memscope.census.labels import SUBJECT_TYPES, EntryLabels, entry_labels
from tests.conftest import SHARED


def make_bank(token_ids: list[list[int] | None], predicates: list[list[str] | None]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "entry": np.arange(len(token_ids), dtype=np.uint32),
            "token_ids": pd.Series(
                [None if ids is None else np.array(ids, np.uint32) for ids in token_ids], dtype=object
            ),
            "predicate": pd.Series([None if p is None else np.array(p, object) for p in predicates], dtype=object),
        }
    )


def members(labels: EntryLabels, attribute: str) -> dict[str, list[int]]:
    """Entries by label of one attribute."""
    return {
        label: labels.members[[row]].indices.tolist()
        for row, label in enumerate(labels.label)
        if labels.attribute[row] == attribute
    }


EVEN = np.full(10, 7)


def test_an_entry_has_every_relation_of_its_triples_once() -> None:
    predicates = [["place of birth", "capital of"], ["place of birth", "place of birth"], ["likes"], [""], None]
    labels = entry_labels(make_bank([[1], [1], [1], [1], None], predicates), EVEN)
    assert members(labels, "predicate") == {"capital of": [0], "likes": [2], "place of birth": [0, 1]}
    assert members(labels, "subject type") == {"person": [0, 1], "place": [0], "unknown": [2]}
    assert members(labels, "origin") == {"random": [4], "sentence": [0, 1, 2, 3]}
    assert set(labels.members.data.tolist()) == {1}


def test_lengths_fall_into_fifths_named_by_the_values_they_hold() -> None:
    lengths = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    labels = entry_labels(make_bank([[0] * n for n in lengths], [None] * 10), EVEN)
    assert members(labels, "sentence length") == {
        "1 to 2 tokens": [0, 1],
        "3 to 4 tokens": [2, 3],
        "5 to 6 tokens": [4, 5],
        "7 to 8 tokens": [6, 7],
        "9 to 10 tokens": [8, 9],
    }
    assert members(labels, "origin") == {}


def test_equal_lengths_stay_together() -> None:
    lengths = [3, 3, 3, 3, 3, 3, 3, 3, 8, 9]
    labels = entry_labels(make_bank([[0] * n for n in lengths], [None] * 10), EVEN)
    assert members(labels, "sentence length") == {"3 tokens": list(range(8)), "8 to 9 tokens": [8, 9]}


def test_token_frequency_is_a_geometric_mean_per_million_with_one_added() -> None:
    # Counts + 1 are 1, 100 and 899: of 1,000, so 1,000, 100,000 and 899,000 in a million.
    ids: list[list[int] | None] = [[0], [0, 1], [1], [2], [2, 2, 2]]
    labels = entry_labels(make_bank(ids, [None] * 5), np.array([0, 99, 898]))
    assert members(labels, "token frequency") == {
        "1000 per million": [0],
        "10000 per million": [1],
        "100000 per million": [2],
        "899000 per million": [3, 4],
    }


def test_a_bank_without_sentences_has_no_labels() -> None:
    labels = entry_labels(make_bank([None] * 6, [None] * 6), EVEN)
    assert labels.label == []
    assert labels.members.shape == (0, 6)


def test_entries_are_taken_by_their_number() -> None:
    bank = make_bank([[0] * n for n in (1, 2, 3)], [["a"], ["b"], ["c"]]).iloc[::-1]
    assert members(entry_labels(bank, EVEN), "predicate") == {"a": [0], "b": [1], "c": [2]}


def test_a_gap_in_the_entries_and_an_unknown_token_are_named() -> None:
    with pytest.raises(InputError, match="not numbered 0 to 1"):
        entry_labels(make_bank([[0], [0], [0]], [None] * 3).drop(1), EVEN)
    with pytest.raises(InputError, match="token id 10, the vocabulary ends at 9"):
        entry_labels(make_bank([[0], [10]], [None] * 2), EVEN)


@pytest.mark.shared
def test_every_relation_of_the_t_rex_file_has_a_subject_type() -> None:
    items = read_json(SHARED / "trex" / "sentence_trex_data.json")
    found = {row["predicate"] for item in items for row in item["target"]}
    assert len(found) == 28
    assert found <= SUBJECT_TYPES.keys()
