"""Information between entries and labels: nothing where there is none, planted values, never more than there is."""

import numpy as np
import pytest

from memscope.census.information import HeldOut
from memscope.stats.jackknife import Jackknife


def measure(label: np.ndarray, entry: np.ndarray, fold: np.ndarray, folds: int = 12) -> tuple[float, float]:
    """Of entries ``[token, K]``, handed over in two blocks."""
    found = HeldOut(label, fold, folds)
    order = np.argsort(entry.ravel(), kind="stable")
    entries, rows = entry.ravel()[order].astype(np.int64), order // entry.shape[1]
    cut = int(np.searchsorted(entries, np.median(entries)))
    for block in (slice(cut), slice(cut, None)):
        found.add(entries[block], rows[block])
    nats, error = found.information(Jackknife(np.bincount(fold, minlength=folds)))
    assert nats is not None and error is not None
    return nats, error


def folds_of(tokens: int) -> np.ndarray:
    """12 documents, some much longer than others."""
    lengths = np.array([13, 23, 3, 11, 10, 24, 2, 7, 4, 2, 3, 2], float)
    return np.searchsorted(np.cumsum(lengths / lengths.sum()), np.arange(tokens) / tokens, side="right").clip(max=11)


@pytest.mark.parametrize(("own", "count", "least"), [(0.0, 4, 1), (0.5, 4, 0.85), (0.9, 8, 0.9), (1.0, 4, 0.95)])
def test_planted_information_is_met_from_below(own: float, count: int, least: float) -> None:
    """Tokens of 400 types by Zipf's law select their own entries with a chance of ``own``, any of 1,024 else."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, 401)
    frequency /= frequency.sum()
    mine = rng.integers(0, 1024, (400, count))
    token = rng.choice(400, 12_000, p=frequency)
    entry = mine[token[:, None], rng.integers(0, count, (12_000, 8))]
    any_entry = rng.random(entry.shape) >= own
    entry[any_entry] = rng.integers(0, 1024, any_entry.sum())
    table = np.full((400, 1024), (1 - own) / 1024)
    np.add.at(table, (np.repeat(np.arange(400), count), mine.ravel()), own / count)
    overall, used = frequency @ table, table > 0
    true = float((frequency[:, None] * table)[used] @ np.log(table[used] / np.tile(overall, (400, 1))[used]))
    nats, error = measure(token, entry, folds_of(12_000))
    assert least * true - 0.01 <= nats <= true + 3 * error + 0.01
    assert error < 0.05


def test_what_a_document_alone_repeats_is_not_foretold() -> None:
    """Entries that only the document chooses: a word that stands in one document tells of them, but of no other's."""
    rng = np.random.default_rng(0)
    fold = folds_of(6000)
    label = np.where(rng.random(6000) < 0.5, 100 + fold, rng.integers(0, 50, 6000))
    entry = fold[:, None] * 20 + rng.integers(0, 20, (6000, 4))
    nats, _ = measure(label, entry, fold)
    assert nats < 0.05


def test_labels_that_are_missing_do_not_count() -> None:
    rng = np.random.default_rng(0)
    fold, label = folds_of(4000), rng.integers(0, 8, 4000)
    entry = np.where(rng.random((4000, 2)) < 0.9, label[:, None], rng.integers(0, 16, (4000, 2)))
    known = rng.random(4000) < 0.7
    hidden = measure(np.where(known, label, -1), entry, fold)
    assert hidden == pytest.approx(measure(label[known], entry[known], fold[known]), rel=0.02)


def test_one_fold_foretells_nothing() -> None:
    found = HeldOut(np.zeros(10, int), np.zeros(10, int), 1)
    found.add(np.zeros(10, np.int64), np.arange(10))
    assert found.information(Jackknife(np.array([10]))) == (None, None)
