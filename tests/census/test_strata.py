"""How tokens are told apart: groups, folds, positions and frequencies, against loops over tokens."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from memscope.census.strata import FOLDS, MAX_GROUPS, Strata, divide

FREQUENCY = np.array([5, 0, 10, 100, 5_000, 50_000, 944_885])  # of a million tokens; 10 and 100 are bounds


def make_documents(rows: list[int], groups: list[str] | None = None) -> pd.DataFrame:
    lengths = np.array(rows)
    return pd.DataFrame(
        {
            "doc": np.arange(len(rows)),
            "title": [f"No {number}" for number in range(len(rows))],
            "group": groups or [""] * len(rows),
            "first_row": np.cumsum(lengths) - lengths,
            "rows": lengths,
        }
    )


def make_strata(rows: list[int], groups: list[str] | None = None, window: int = 16) -> Strata:
    return divide(make_documents(rows, groups), FREQUENCY, window)


def test_documents_without_groups_are_one_nameless_group() -> None:
    strata = make_strata([10] * 30)
    assert (strata.groups, strata.folds, strata.unit) == ([""], FOLDS, "documents")
    assert strata.document_group.tolist() == [0] * 30


@pytest.mark.parametrize(("n_groups", "folds"), [(1, 20), (2, 20), (3, 20), (4, 16), (8, 8), (16, 4)])
def test_many_groups_get_fewer_folds_each(n_groups: int, folds: int) -> None:
    strata = make_strata([10] * 160, [f"g{number % n_groups}" for number in range(160)])
    assert (len(strata.groups), strata.folds, strata.cells) == (n_groups, folds, n_groups * folds)
    for group in range(n_groups):  # folds of a group are as equal as can be
        sizes = np.bincount(strata.document_fold[strata.document_group == group], minlength=folds)
        assert sizes.max() - sizes.min() <= 1
        assert sizes.min() > 0


def test_groups_stand_in_the_order_of_their_tokens() -> None:
    strata = make_strata([5, 9, 5, 30, 1, 1, 1, 1, 1, 1], ["a", "b", "a", "c"] + ["b"] * 6)
    assert strata.groups == ["c", "b", "a"]  # 30, 15 and 10 tokens
    assert strata.document_group.tolist() == [2, 1, 2, 0, 1, 1, 1, 1, 1, 1]


def test_small_groups_beyond_the_limit_are_counted_together() -> None:
    names = [f"g{number:02d}" for number in range(20)]
    strata = make_strata([100 - number for number in range(20)], names)
    assert strata.groups == [*names[: MAX_GROUPS - 1], "other"]
    assert strata.document_group.tolist() == [*range(15), *[15] * 5]


def test_as_many_groups_as_the_limit_keep_their_names() -> None:
    names = [f"g{number:02d}" for number in range(MAX_GROUPS)]
    assert make_strata([100 - number for number in range(MAX_GROUPS)], names).groups == names


def test_a_group_that_is_called_other_takes_the_small_ones_in() -> None:
    names = ["other", *(f"g{number:02d}" for number in range(20))]
    strata = make_strata([100 - number for number in range(21)], names)
    tokens = Counter[str]()
    for document, group in enumerate(strata.document_group):
        tokens[strata.groups[group]] += 100 - document
    assert sum(tokens.values()) == sum(range(80, 101))
    assert tokens["other"] == 100 + sum(range(80, 86))  # 14 more have names of their own


def test_with_few_documents_blocks_of_tokens_are_the_unit() -> None:
    strata = make_strata([3000, 2000, 1500], ["a", "b", "a"])
    assert (strata.unit, strata.folds) == ("blocks of 256 tokens", 20)
    doc = np.repeat([0, 1, 2], [3000, 2000, 1500])
    cell = strata.cell_of(doc, first_row=0)
    expected = [strata.groups.index("aba"[d]) * 20 + row // 256 % 20 for row, d in enumerate(doc)]
    assert cell.tolist() == expected
    for first, last in ((0, 100), (250, 1300), (6000, 6500)):  # rows are numbered through all parts
        np.testing.assert_array_equal(strata.cell_of(doc[first:last], first), cell[first:last])


def test_ten_documents_are_enough_to_be_the_unit() -> None:
    strata = make_strata([7] * 10)
    assert (strata.unit, strata.folds) == ("documents", 10)
    assert strata.cell_of(np.arange(10), 0).tolist() == list(range(10))
    assert make_strata([7] * 9).unit == "blocks of 256 tokens"


def tokens_of(rows: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    doc = np.repeat(np.arange(len(rows)), rows).astype(np.uint32)
    pos = np.concatenate([np.arange(n) for n in rows]).astype(np.uint32)
    return doc, pos, np.random.default_rng(seed).integers(0, len(FREQUENCY), len(doc)).astype(np.uint32)


@pytest.mark.parametrize("window", [1, 2, 16, 24, 64])
def test_every_token_has_one_cell_one_position_and_one_frequency_class(window: int) -> None:
    rows, groups = [30, 7, 50, 64, 3, 20, 20, 20, 20, 20, 20], list("abacbabcaab")
    strata = make_strata(rows, groups, window)
    doc, pos, token = tokens_of(rows)
    found = strata.sum_classes(doc, pos, token, first_row=0)
    assert found.dtype == np.int64
    assert found.max() < strata.cells + len(strata.positions) + len(strata.frequencies)
    for (cell, position, frequency), d, p, t in zip(found, doc, pos, token, strict=True):
        assert strata.groups[cell // strata.folds] == groups[d]
        at = strata.positions[position - strata.cells]
        assert at.low <= p % window <= at.high  # positions count from a window's start
        of = strata.frequencies[frequency - strata.cells - len(strata.positions)]
        assert of.low <= FREQUENCY[t] < of.high or (of.high == 1e6 and of.low <= FREQUENCY[t])
    assert [at.low for at in strata.positions][1:] == [at.high + 1 for at in strata.positions][:-1]  # no gap
    assert (strata.positions[0].low, strata.positions[-1].high) == (0, window - 1)


def test_classes_are_named_by_their_bounds() -> None:
    strata = make_strata([9] * 20)
    assert [one.label for one in strata.positions] == ["0", "1-2", "3-6", "7-14", "15"]
    assert [one.label for one in strata.frequencies] == [
        "under 10 per million",
        "10 to 100 per million",
        "100 to 1,000 per million",
        "1,000 to 10,000 per million",
        "over 10,000 per million",
    ]


def test_shuffled_classes_are_as_large_as_the_real_ones_and_tell_nothing() -> None:
    rows = [400] * 12
    strata = make_strata(rows)
    doc, pos, token = tokens_of(rows)
    real = strata.sum_classes(doc, pos, token, 0)
    found = strata.count_classes(real, seed=3)
    np.testing.assert_array_equal(found[:, :3], real)
    offset = len(strata.positions) + len(strata.frequencies)
    shuffled = found[:, 3:] - offset
    for column in (0, 1):
        np.testing.assert_array_equal(np.sort(shuffled[:, column]), np.sort(real[:, column + 1]))
        agreement = (shuffled[:, column] == real[:, column + 1]).mean()
        sizes = np.unique(real[:, column + 1], return_counts=True)[1] / len(doc)
        assert agreement == pytest.approx((sizes**2).sum(), abs=0.03)  # what two independent draws agree in
    assert set(map(tuple, shuffled)) <= set(map(tuple, real[:, 1:]))  # whole tokens move
    assert found.max() < strata.count_columns
    assert len(set(found[:, 1]) & set(found[:, 3])) == 0
    np.testing.assert_array_equal(found, strata.count_classes(real, seed=3))
    assert not np.array_equal(found, strata.count_classes(real, seed=4))
