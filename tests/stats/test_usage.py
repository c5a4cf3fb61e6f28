"""Usage counts add up, and every metric equals its naive loop."""

import math

import numpy as np
import pytest
from scipy.stats import entropy

from memscope.stats.jackknife import Jackknife
from memscope.stats.usage import (
    HOT_FACTOR,
    JACKKNIFED,
    Bank,
    UsageCounts,
    even_selection,
    jackknife_errors,
    usage_metrics,
)


def naive_gini(usage: np.ndarray) -> float:
    """Mean absolute difference between all pairs, relative to twice the mean."""
    differences = [abs(a - b) for a in usage for b in usage]
    return sum(differences) / (2 * len(usage) ** 2 * usage.mean())


def naive_top(usage: np.ndarray, percent: int) -> int:
    """How many of the most used entries hold the share."""
    held, count = 0.0, 0
    for value in sorted(usage, reverse=True):
        if held * 100 >= usage.sum() * percent:
            break
        held, count = held + value, count + 1
    return count


def some_selections(seed: int, tokens: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    indices = chance.integers(0, 10, (tokens, 4))
    gate, read = chance.random((tokens, 4)).astype(np.float16), chance.standard_normal((tokens, 4)).astype(np.float16)
    return indices, gate, read


def test_counts_equal_a_loop_over_selections() -> None:
    counts = UsageCounts(2, 10)
    indices, gate, read = some_selections(0)
    counts.update(1, indices, gate, read)
    expected = np.zeros((3, 10))
    for i, g, r in zip(indices.flat, gate.flat, read.flat, strict=True):
        expected[:, i] += 1, g, abs(r)
    np.testing.assert_array_equal(counts.count, [np.zeros(10), expected[0]])
    np.testing.assert_array_equal(counts.gate[1], expected[1])
    np.testing.assert_array_equal(counts.read[1], expected[2])


def test_merged_counts_equal_one_pass_over_both_parts() -> None:
    one_pass, first, second = (UsageCounts(1, 10) for _ in range(3))
    for seed, part in ((1, first), (2, second)):
        part.update(0, *some_selections(seed))
        one_pass.update(0, *some_selections(seed))
    second.merge(first)  # in the other order
    for name in ("count", "gate", "read"):
        np.testing.assert_array_equal(getattr(second, name), getattr(one_pass, name))


def test_counts_of_another_shape_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match=r"\(1, 9\).*\(1, 10\)"):
        UsageCounts(1, 10).merge(UsageCounts(1, 9))


def test_metrics_of_a_hand_worked_example() -> None:
    # 10 selections over 5 entries: 4 3 2 1 0
    metrics = usage_metrics(np.array([0, 4, 2, 3, 1]), 10)
    assert (metrics.entries, metrics.selections, metrics.dead, metrics.hot) == (5, 10, 1, 0)
    assert metrics.coverage == 0.8
    assert metrics.even_coverage == pytest.approx(1 - 0.8**10)
    # sum z ln z = 0.4 ln 0.4 + 0.3 ln 0.3 + 0.2 ln 0.2 + 0.1 ln 0.1 = -1.2799
    assert metrics.kl_to_uniform == pytest.approx(math.log(5) - 1.27985, abs=1e-5)
    assert metrics.relative_perplexity == pytest.approx(math.exp(1.27985) / 5, abs=1e-5)
    assert metrics.gini == pytest.approx(0.4)  # cumsum of sorted z: 0 .1 .3 .6 1, mean .4; 1 - .8 + .2
    assert (metrics.top50, metrics.top90, metrics.top99) == (2, 3, 4)  # 4 + 3 hold 70%, with 2 exactly 90%
    assert metrics.max_violation == pytest.approx(1.0)  # the largest load 4 against a mean of 2


@pytest.mark.parametrize("seed", range(6))
def test_metrics_of_random_usage_equal_naive_loops(seed: int) -> None:
    chance = np.random.default_rng(seed)
    usage = chance.zipf(1.5, 60) * (chance.random(60) < 0.7)
    total = int(usage.sum())
    metrics = usage_metrics(usage, total)
    assert metrics.kl_to_uniform == pytest.approx(entropy(usage, np.ones(60)))
    assert metrics.relative_perplexity == pytest.approx(math.exp(entropy(usage)) / 60)
    assert metrics.gini == pytest.approx(naive_gini(usage))
    assert [metrics.top50, metrics.top90, metrics.top99] == [naive_top(usage, percent) for percent in (50, 90, 99)]
    assert metrics.max_violation == pytest.approx((usage.max() - usage.mean()) / usage.mean())
    assert metrics.dead == sum(value == 0 for value in usage)
    assert metrics.hot == sum(value > HOT_FACTOR * usage.mean() for value in usage)
    assert metrics.coverage == sum(value > 0 for value in usage) / 60


@pytest.mark.parametrize("n", [4, 10, 100, 1024])
def test_even_use_is_even(n: int) -> None:
    metrics = usage_metrics(np.full(n, 7), 7 * n)
    assert metrics.kl_to_uniform == pytest.approx(0, abs=1e-12)
    assert metrics.gini == pytest.approx(0, abs=1e-12)
    assert metrics.relative_perplexity == pytest.approx(1)
    assert metrics.max_violation == pytest.approx(0)
    assert (metrics.coverage, metrics.dead, metrics.hot) == (1, 0, 0)
    assert (metrics.top50, metrics.top90) == (math.ceil(0.5 * n), math.ceil(n * 9 / 10))


def test_one_entry_that_takes_all_is_as_uneven_as_it_gets() -> None:
    usage = np.zeros(1000)
    usage[17] = 5000
    metrics = usage_metrics(usage, 5000)
    assert metrics.kl_to_uniform == pytest.approx(math.log(1000))
    assert metrics.relative_perplexity == pytest.approx(1 / 1000)
    assert metrics.gini == pytest.approx(1 - 1 / 1000)
    assert (metrics.top50, metrics.top90, metrics.top99, metrics.hot, metrics.dead) == (1, 1, 1, 1, 999)
    assert metrics.max_violation == pytest.approx(999)


def test_weights_count_like_fractions_of_selections() -> None:
    counts = np.array([1, 2, 3, 4])
    by_count, by_weight = dict(usage_metrics(counts, 10)), dict(usage_metrics(counts * 0.125, 10))
    assert by_weight == pytest.approx(by_count)


def test_no_usage_gives_zeros_and_every_entry_dead() -> None:
    metrics = usage_metrics(np.zeros(8), 0)
    assert (metrics.coverage, metrics.kl_to_uniform, metrics.gini, metrics.top50, metrics.dead) == (0, 0, 0, 0, 8)
    assert even_selection((Bank(8, 0),)) == (0, 0, 0)


@pytest.mark.parametrize("selections", [500, 3000, 40_000, 1_000_000])
def test_even_baselines_agree_with_simulated_even_selection(selections: int) -> None:
    n = 2000
    chance = np.random.default_rng(0)
    simulated = [usage_metrics(chance.multinomial(selections, np.full(n, 1 / n)), selections) for _ in range(20)]
    expected = even_selection((Bank(n, selections),))
    assert expected.coverage == pytest.approx(np.mean([m.coverage for m in simulated]), rel=0.02)
    assert expected.kl == pytest.approx(np.mean([m.kl_to_uniform for m in simulated]), rel=0.02)
    assert expected.gini == pytest.approx(np.mean([m.gini for m in simulated]), rel=0.02)


@pytest.mark.parametrize(
    ("entries", "distinct", "draws", "groups"),
    [
        (64, 8, 50, 1),
        (64, 32, 200, 1),
        (64, 8, 4, 1),
        (64, 63, 30, 1),
        (128, 8, 50, 2),
        (128, 32, 5, 4),
        (96, 3, 40, 3),
    ],
)
def test_even_baselines_of_small_banks_are_those_of_distinct_entries(
    entries: int, distinct: int, draws: int, groups: int
) -> None:
    """Draws of k different entries of a group, simulated; a Poisson law would be up to twice too uneven."""
    chance, size = np.random.default_rng(0), entries // groups
    banks, simulated = [Bank(size, draws * distinct, distinct)] * groups, []
    for _ in range(200):
        drawn = (
            chance.random((groups, draws, size)).argsort(2)[..., :distinct] + np.arange(groups)[:, None, None] * size
        )
        counts = np.bincount(drawn.ravel(), minlength=entries)
        simulated.append(usage_metrics(counts, int(counts.sum()), banks=banks))
    expected = even_selection(tuple(banks))
    assert usage_metrics(counts, int(counts.sum()), banks=banks).even_gini == expected.gini
    for name, value in zip(("coverage", "kl_to_uniform", "gini"), expected, strict=True):
        found = np.array([getattr(metrics, name) for metrics in simulated])
        assert value == pytest.approx(found.mean(), abs=4 * found.std() / math.sqrt(200) + 1e-12), name


@pytest.mark.parametrize(
    "banks",
    [
        [Bank(64, 50 * 8, 8), Bank(32, 20 * 4, 4)],
        [Bank(8, 30 * 2, 2), Bank(128, 30 * 8, 8)],  # routers of few experts beside many neurons
        [Bank(40, 90), Bank(20, 60 * 5, 5), Bank(70, 3 * 7, 7)],
        [Bank(16, 5 * 16, 16), Bank(16, 40)],  # all of a bank, and independent selections of another
        [Bank(24, 12 * 4, 4), Bank(24, 0)],  # one that nothing selects
    ],
)
def test_even_baselines_of_unequal_banks_are_those_of_draws_in_each(banks: list[Bank]) -> None:
    """Draws of different entries in banks of different sizes, K and numbers of draws, simulated."""
    chance, simulated = np.random.default_rng(1), []
    for _ in range(300):
        counts = [
            np.bincount(
                chance.random((bank.selections // bank.distinct, bank.entries)).argsort(1)[:, : bank.distinct].ravel(),
                minlength=bank.entries,
            )
            for bank in banks
        ]
        usage = np.concatenate(counts)
        simulated.append(usage_metrics(usage, int(usage.sum()), banks=banks))
    expected = even_selection(tuple(banks))
    assert even_selection(tuple(banks[::-1])) == pytest.approx(expected)  # their order does not matter
    for name, value in zip(("coverage", "kl_to_uniform", "gini"), expected, strict=True):
        found = np.array([getattr(metrics, name) for metrics in simulated])
        assert value == pytest.approx(found.mean(), abs=4 * found.std() / math.sqrt(300) + 1e-12), name
    assert simulated[0].even_coverage == expected.coverage


def test_banks_that_are_used_unequally_are_uneven_by_their_sizes_alone() -> None:
    """8 and 24 entries of equally many selections each: 3 to 1 per entry, however many there are."""
    even = even_selection((Bank(8, 10**7), Bank(24, 10**7)))
    assert even.coverage == pytest.approx(1)
    assert even.kl == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-3)
    assert even.gini == pytest.approx(naive_gini(np.array([3.0] * 8 + [1.0] * 24)), rel=1e-2)


@pytest.mark.parametrize(("distinct", "ratio"), [(8, 64 / 56 * 63 / 64), (32, 2 * 63 / 64)])
def test_independent_selections_look_more_uneven_than_distinct_ones(distinct: int, ratio: float) -> None:
    """KL is a variance / (2 mean^2) where counts are large: that of k of N is smaller by (N - k) / N."""
    many = 1_000_000 * distinct
    assert even_selection((Bank(64, many),)).kl / even_selection((Bank(64, many, distinct),)).kl == pytest.approx(
        ratio, rel=1e-3
    )


def test_a_gate_that_selects_every_entry_is_perfectly_even() -> None:
    assert even_selection((Bank(16, 16 * 5, 16),)) == pytest.approx((1, 0, 0), abs=1e-12)


def naive_metrics(usage: np.ndarray) -> list[float]:
    """The metrics that have errors, by hand."""
    z = usage / usage.sum()
    kl, perplexity = math.log(len(z)) - entropy(z), math.exp(entropy(z)) / len(z)
    return [sum(usage > 0) / len(usage), kl, perplexity, naive_gini(usage), naive_top(usage, 50)]


@pytest.mark.parametrize("n_folds", [2, 3, 20])
def test_standard_errors_equal_a_loop_that_leaves_out_one_fold(n_folds: int) -> None:
    folds = np.random.default_rng(n_folds).poisson(1.5, (n_folds, 30)) * np.arange(30)
    spread = Jackknife(folds.sum(1))
    left = [naive_metrics(np.delete(folds, out, axis=0).sum(0)) for out in range(n_folds)]
    expected = spread.errors(np.array(naive_metrics(folds.sum(0))), np.array(left))
    found = jackknife_errors(folds, spread)
    assert [found[f"{name}_se"] for name in JACKKNIFED] == pytest.approx(expected.tolist())
    assert jackknife_errors(folds.astype(np.int32), spread) == found


def test_folds_that_are_empty_do_not_count() -> None:
    folds = np.random.default_rng(0).poisson(2, (5, 12))
    padded = np.concatenate([np.zeros((2, 12), int), folds, np.zeros((1, 12), int)])
    errors = [jackknife_errors(one, Jackknife(one.sum(1))) for one in (padded, folds)]
    assert errors[0] == errors[1]


@pytest.mark.parametrize("used_folds", [0, 1])
def test_one_fold_tells_nothing_about_the_error(used_folds: int) -> None:
    folds = np.zeros((4, 6), int)
    folds[:used_folds] = 3
    assert all(math.isnan(error) for error in jackknife_errors(folds, Jackknife(folds.sum(1))).values())


def test_equal_folds_have_no_error() -> None:
    errors = jackknife_errors(np.tile(np.arange(8), (6, 1)), Jackknife(np.ones(6)))
    assert all(error == pytest.approx(0, abs=1e-12) for error in errors.values())


def documents_of_a_kind(seed: int, entries: int) -> np.ndarray:
    """Selections per fold of 100 documents, each of which has its own taste, all from the same source."""
    chance = np.random.default_rng(seed)
    source = 1 / np.arange(1, entries + 1)
    folds = np.zeros((20, entries), np.int64)
    for document in range(100):
        taste = chance.dirichlet(source / source.sum() * entries * 0.05 + 1e-9)
        folds[document % 20] += chance.multinomial(80, taste)
    return folds


@pytest.mark.slow
@pytest.mark.parametrize("entries", [300, 1500])
def test_standard_errors_are_the_spread_between_corpora_of_the_same_kind(entries: int) -> None:
    # 150 corpora tell their standard deviation to about 6%. Sampling documents anew is what the error is about;
    # counting selections as if they were independent would give a fifth of it.
    corpora = [documents_of_a_kind(seed, entries) for seed in range(150)]
    metrics = [dict(usage_metrics(folds.sum(0), int(folds.sum()))) for folds in corpora]
    errors = [jackknife_errors(folds, Jackknife(folds.sum(1))) for folds in corpora]
    for name in JACKKNIFED:
        spread = np.std([one[name] for one in metrics], ddof=1)
        ratio = math.sqrt(np.mean([one[f"{name}_se"] ** 2 for one in errors])) / spread
        if name in ("kl_to_uniform", "relative_perplexity", "gini"):
            assert 0.8 < ratio < 1.25, name
        else:  # steps and ceilings: the jackknife errs on the large side
            assert 0.8 < ratio < 2, name
