"""Standard errors and intervals of few and unequal documents: worked examples, and how often they hold."""

import numpy as np
import pytest

from memscope.stats.jackknife import Jackknife, ratio_interval
from memscope.stats.usage import jackknife_errors, usage_metrics

DEMO = np.array([9900, 17000, 2500, 8600, 7500, 17900, 1000, 5000, 2800, 1500, 1800, 800])
"""Lengths like those of the demo's 12 validation documents."""
DOMINATED = np.array([70_000] + [2_700] * 11)


def test_equal_documents_give_the_standard_error_of_a_mean_and_students_t() -> None:
    values = np.random.default_rng(0).normal(5, 2, 12)
    spread = Jackknife(np.full(12, 100))
    error = spread.errors(values.mean(), (values.sum() - values) / 11)
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(12) / 0.9776, rel=2e-3)  # c4 of 12: right on average
    assert spread.critical == pytest.approx(2.201 * 0.9776, rel=5e-3)  # t of 11 degrees of freedom
    assert spread.equal_documents == pytest.approx(12)


def test_folds_of_documents_know_how_long_those_are() -> None:
    documents = np.array([70.0] + [30 / 99] * 99)
    fold = np.arange(100) % 20
    spread = Jackknife(np.bincount(fold, documents), np.bincount(fold, documents**2))
    assert spread.equal_documents == pytest.approx(1 / (0.49 + 99 * (0.3 / 99) ** 2))


@pytest.mark.parametrize("lengths", [DEMO, DOMINATED], ids=["demo", "dominated"])
@pytest.mark.parametrize("within", [0.0, 30.0, 100.0])
def test_intervals_of_a_mean_hold_95_percent(lengths: np.ndarray, within: float) -> None:
    """Documents differ by 1, tokens by ``within``: whichever dominates, and however unequal documents are."""
    rng, spread = np.random.default_rng(1), Jackknife(lengths)
    shape = (len(lengths), 4000)
    means = rng.normal(0, 1, shape) + rng.normal(0, within, shape) / np.sqrt(lengths)[:, None]
    sums = means * lengths[:, None]
    low, high = spread.interval(sums.sum(0) / lengths.sum(), spread.without(sums) / spread.without(lengths)[:, None])
    assert 0.93 <= np.mean((low <= 0) & (high >= 0)) <= 0.97


def test_errors_of_kl_are_its_spread_and_few_documents_raise_it() -> None:
    rng = np.random.default_rng(0)
    source = 1 / np.arange(1, 513)
    source /= source.sum()
    spread, kl, errors, few = Jackknife(DEMO), [], [], []
    for _ in range(80):
        taste = rng.gamma(source * 1000, size=(len(DEMO), len(source)))
        folds = np.stack([rng.multinomial(n, p / p.sum()) for n, p in zip(DEMO, taste, strict=True)])
        found = jackknife_errors(folds, spread)
        kl.append(usage_metrics(folds.sum(0), int(folds.sum())).kl_to_uniform)
        errors.append(found["kl_to_uniform_se"])
        few.append(found["kl_to_uniform_few"])
    assert np.mean(errors) == pytest.approx(np.std(kl, ddof=1), rel=0.25)
    assert np.mean(np.abs(np.array(kl) - np.mean(kl)) <= spread.critical * np.array(errors)) >= 0.9
    true = np.log(512) + (source * np.log(source)).sum()
    assert 0.6 < np.mean(few) / (np.mean(kl) - true) < 1.1
    assert np.mean(few) > 4 * (511 / (2 * DEMO.sum()))  # independent selections would explain that much


def test_a_mean_over_many_documents_is_dealt_into_folds() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 20, 5000)
    mean, low, high = ratio_interval(rng.normal(2, 1, 5000) * counts, counts)
    assert low < 2 < high and high - low == pytest.approx(3.92 * np.sqrt((counts**2).sum()) / counts.sum(), rel=0.2)
    assert low < mean < high


def test_nothing_is_known_from_one_fold() -> None:
    spread = Jackknife(np.array([0, 5, 0]))
    assert not spread.known and np.isnan(spread.critical)
    assert np.isnan(spread.errors(np.zeros(3), np.empty((0, 3)))).all()
