"""The lift of labels: intervals over documents, permutation tests over entries, and what they must not find."""

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array
from scipy.stats import permutation_test

from memscope.census.labels import EntryLabels
from memscope.census.preference import PERMUTATIONS, adjust, layer_preferences
from memscope.stats import jackknife
from memscope.stats.jackknife import Jackknife


def make_labels(rows: dict[tuple[str, str], list[int]], n: int) -> EntryLabels:
    """Labels from ``{(attribute, label): entries}``."""
    members = np.zeros((len(rows), n), np.int64)
    for row, entries in enumerate(rows.values()):
        members[row, entries] = 1
    return EntryLabels([a for a, _ in rows], [label for _, label in rows], csr_array(members))


def random_labels(rng: np.random.Generator, n: int, sizes: tuple[int, ...]) -> EntryLabels:
    """Overlapping labels of one attribute that every entry has (by a last label that all bear)."""
    rows = {("a", str(i)): rng.choice(n, size, replace=False).tolist() for i, size in enumerate(sizes)}
    return make_labels(rows | {("a", "all"): list(range(n))}, n)


def tables_equal(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    return a.equals(b)


def test_lift_is_the_share_of_selections_over_the_share_of_entries() -> None:
    # 20 entries; x = entries 0-4 (a quarter), selected 30 + 18 of 96 times: a half. y = the others.
    counts = np.zeros((2, 20), np.int32)
    counts[0, 0], counts[1, 1] = 30, 18
    counts[:, 5:17] = 2
    labels = make_labels({("a", "x"): [0, 1, 2, 3, 4], ("a", "y"): list(range(5, 20))}, 20)
    table = layer_preferences(counts, labels, seed=1, permutations=99).set_index("label")
    x = table.loc["x"]
    assert (x.entries, x.used, x.selections) == (5, 2, 48)
    assert (x.bank_share, x.selection_share, x.lift) == (0.25, 0.5, 2.0)
    assert x.top_share == 30 / 48
    assert table.loc["y"].lift == pytest.approx(0.5 / 0.75)


def test_labels_on_few_entries_or_on_nearly_all_are_left_out() -> None:
    rows = {("a", "four"): list(range(4)), ("a", "five"): list(range(5)), ("a", "all but four"): list(range(4, 30))}
    table = layer_preferences(np.ones((2, 30), np.int32), make_labels(rows, 30), seed=0, permutations=9)
    assert table["label"].tolist() == ["five"]


def test_random_entries_say_nothing_about_relations() -> None:
    # Sentences (0-39) are selected ten times as often as random entries (40-99), relations x and y equally often.
    counts = np.ones((4, 100), np.int32)
    counts[:, :40] = 10
    rows = {
        ("predicate", "x"): list(range(20)),
        ("predicate", "y"): list(range(20, 40)),
        ("origin", "sentence"): list(range(40)),
        ("origin", "random"): list(range(40, 100)),
    }
    table = layer_preferences(counts, make_labels(rows, 100), seed=0, permutations=999).set_index("label")
    assert table.loc[["x", "y"], "lift"].tolist() == [1, 1]
    assert table.loc[["x", "y"], "p"].tolist() == [1, 1]
    assert table.loc["sentence"].lift == pytest.approx(400 / 460 / 0.4)
    assert table.loc["sentence"].p == 2 / 1000


@pytest.mark.parametrize("seed", range(4))
def test_p_agrees_with_all_combinations_and_with_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    total = rng.poisson(rng.lognormal(0, 2, 13))
    total[rng.choice(13, 4, replace=False)] = 0
    has = sorted(rng.choice(13, 5, replace=False).tolist())
    without = np.setdiff1d(np.arange(13), has)
    labels = make_labels({("a", "x"): has, ("a", "y"): without.tolist()}, 13)
    table = layer_preferences(total[None].astype(np.int32), labels, seed, permutations=200_000).set_index("label")
    sums = np.array([total[list(chosen)].sum() for chosen in combinations(range(13), 5)])
    observed = total[has].sum()
    exact = min(1.0, 2 * min((sums >= observed).mean(), (sums <= observed).mean()))
    assert table.loc["x"].p == pytest.approx(exact, abs=0.01)
    assert table.loc["y"].p == pytest.approx(exact, abs=0.01)
    scipys = permutation_test((total[has], total[without]), lambda a, b, axis: a.sum(axis), n_resamples=np.inf)
    assert table.loc["x"].p == pytest.approx(scipys.pvalue, abs=0.01)
    lifts, x = sums / total.sum() / (5 / 13), table.loc["x"]
    assert (lifts < x.chance_low - 1e-9).mean() <= 0.03
    assert (lifts > x.chance_high + 1e-9).mean() <= 0.03
    assert ((lifts <= x.chance_low + 1e-9).mean() >= 0.02) and ((lifts >= x.chance_high - 1e-9).mean() >= 0.02)


def test_p_of_overlapping_labels_agrees_with_shuffling_the_counts() -> None:
    rng = np.random.default_rng(5)
    total = rng.poisson(rng.lognormal(0, 2, 60))
    labels = random_labels(rng, 60, (6, 20, 20, 45))
    table = layer_preferences(total[None], labels, seed=3, permutations=50_000)
    ranks = pd.Series(total).rank().to_numpy()
    has = labels.members.toarray()[:4] > 0
    for column, values in (("p", total), ("rank_p", ranks)):
        shuffled = np.array([rng.permutation(values) for _ in range(20_000)])
        for row in range(4):
            sums, observed = shuffled[:, has[row]].sum(1), values[has[row]].sum()
            naive = min(1.0, 2 * min((sums >= observed).mean(), (sums <= observed).mean()))
            assert table[column][row] == pytest.approx(naive, abs=0.02)


def test_superiority_is_the_share_of_pairs_that_the_label_wins() -> None:
    rng = np.random.default_rng(2)
    total = rng.poisson(1.5, 50)
    labels = random_labels(rng, 50, (12,))
    has = labels.members.toarray()[0] > 0
    wins = np.sign(total[has][:, None] - total[~has]).mean() / 2 + 0.5
    assert layer_preferences(total[None], labels, 0, permutations=9)["superiority"][0] == pytest.approx(wins)


def test_the_interval_is_a_jackknife_over_folds() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.lognormal(0, 1, 40) * rng.gamma(2, 1, (7, 40)))
    labels = random_labels(rng, 40, (15,))
    has = labels.members.toarray()[0] > 0
    log_odds = []
    for fold in range(7):
        rest = np.delete(counts, fold, axis=0)
        log_odds.append(np.log(rest[:, has].sum() / rest[:, ~has].sum()))
    value = np.log(counts[:, has].sum() / counts[:, ~has].sum())
    odds = np.exp(Jackknife(counts.sum(1)).interval(value, np.array(log_odds)))
    row = layer_preferences(counts, labels, 0, permutations=9).iloc[0]
    assert [row.low, row.high] == pytest.approx((odds / (1 + odds) / (15 / 40)).tolist())


def test_empty_folds_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(5, (4, 40))
    labels = random_labels(rng, 40, (15,))
    padded = np.concatenate([counts, np.zeros((16, 40), np.int64)])
    assert tables_equal(layer_preferences(counts, labels, 0, 99), layer_preferences(padded, labels, 0, 99))


def test_there_is_no_interval_for_what_only_one_fold_shows() -> None:
    counts = np.ones((5, 30), np.int32)
    counts[1:, :10] = 0  # x: only in the first fold
    counts[:, 10:15] = 0  # y: nowhere
    rows = {("a", "x"): list(range(10)), ("a", "y"): list(range(10, 15)), ("a", "z"): list(range(15, 22))}
    rows[("a", "rest")] = list(range(22, 30))
    table = layer_preferences(counts, make_labels(rows, 30), 0, permutations=99).set_index("label")
    assert table.loc[["x", "y"], ["low", "high"]].isna().all(axis=None)
    assert table.loc["y"].lift == 0
    assert table.loc["z"].low <= table.loc["z"].lift <= table.loc["z"].high
    assert layer_preferences(counts[:1], make_labels(rows, 30), 0, permutations=99)["low"].isna().all()


def planted(rng: np.random.Generator, spread: float, factor: float) -> tuple[np.ndarray, EntryLabels, np.ndarray]:
    """Counts of 20 folds over 600 entries, the first of three labels selected ``factor`` times as often; true lifts."""
    labels = random_labels(rng, 600, (60, 60, 400))
    has = labels.members.toarray()[:3] > 0
    rate = rng.lognormal(0, spread, 600) * np.where(has[0], factor, 1)
    true = np.array([rate[h].sum() / rate.sum() / h.mean() for h in has])
    document = rng.gamma(8, 1 / 8, (20, 1)) * rng.gamma(2, 1 / 2, (20, 600))  # lengths and topics differ
    return rng.poisson(rate / rate.sum() * 1500 * document), labels, true


@pytest.mark.slow
def test_intervals_hold_the_true_lift_about_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jackknife, "_DRAWN", 400_000)  # 20,000 draws of 20 documents: widths within 1%
    inside = []
    for seed in range(300):
        counts, labels, true = planted(np.random.default_rng(seed), spread=1.0, factor=3)
        table = layer_preferences(counts, labels, seed, permutations=1)
        inside.append((table["low"] <= true) & (true <= table["high"]))
    jackknife._calibrate.cache_clear()
    assert 0.92 <= np.mean(inside) <= 0.975  # of 900, with a standard error of 0.7%


def test_planted_preferences_are_found_and_nothing_else() -> None:
    tables = {}
    for layer in range(4):
        counts, labels, _ = planted(np.random.default_rng(layer), spread=0.5, factor=3)
        tables[layer] = layer_preferences(counts, labels, layer)
    found = adjust(tables).set_index("label")
    assert found.loc["0", "significant"].all()
    assert found.loc["0", "rank_significant"].all()
    assert (found.loc["0", "low"] > 1).all()
    assert not found.loc[["1", "2"], ["significant", "rank_significant"]].any(axis=None)
    assert not found[["control_significant", "control_rank_significant"]].any(axis=None)


@pytest.mark.slow
def test_p_is_uniform_when_nothing_is_planted() -> None:
    """Under the null P(p <= 0.05) is 5%, heavy tails or not; and so is that of the control when something is."""
    p = {"p": [], "rank_p": [], "control_p": [], "control_rank_p": []}
    for seed in range(300):
        rng = np.random.default_rng(seed)
        counts, labels, _ = planted(rng, spread=2.0, factor=1)
        table = layer_preferences(counts.sum(0)[None], labels, seed, permutations=199)  # p is of all folds together
        p["p"].append(table["p"])
        p["rank_p"].append(table["rank_p"])
        counts, labels, _ = planted(rng, spread=0.5, factor=3)
        table = layer_preferences(counts.sum(0)[None], labels, seed, permutations=199)
        p["control_p"].append(table["control_p"])
        p["control_rank_p"].append(table["control_rank_p"])
    for column, values in p.items():  # 900 each: other seeds would leave this range in 0.6% of cases
        assert 0.03 <= np.mean(np.concatenate(values) <= 0.05) <= 0.07, column


def test_a_few_hot_entries_make_a_narrow_interval_and_no_discovery() -> None:
    """Ten entries of 2,000 hold nearly all selections, two of them under one label: lift 4, in every document."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.01, (20, 2000))
    hot = np.arange(0, 2000, 200)
    counts[:, hot] = rng.poisson(1000, (20, 10))
    rows = {("a", "x"): [*hot[:2].tolist(), *range(1001, 1099)], ("a", "all"): list(range(2000))}
    x = layer_preferences(counts, make_labels(rows, 2000), seed=0).iloc[0]
    assert 3.8 < x.low < x.lift < x.high < 4.2
    assert x.p > 0.05
    assert x.chance_high >= 3.8
    assert 0.4 < x.top_share < 0.6


def test_ranks_show_a_preference_of_ordinary_entries_that_hot_ones_drown() -> None:
    rng = np.random.default_rng(0)
    labels = random_labels(rng, 2000, (100,))
    has = labels.members.toarray()[0] > 0
    rate = rng.lognormal(0, 0.5, 2000) * np.where(has, 3, 1)
    rate[rng.choice(np.flatnonzero(~has), 10, replace=False)] = 2000
    row = layer_preferences(rng.poisson(rate / 20, (20, 2000)), labels, seed=0).iloc[0]
    assert row.p > 0.05
    assert row.rank_p < 1e-3
    assert row.superiority > 0.8


def test_q_values_are_benjamini_hochberg_over_all_layers_and_both_tests() -> None:
    one = pd.DataFrame(
        {"p": [0.001, 0.2], "rank_p": [0.02, 0.5], "control_p": [0.3, 0.4], "control_rank_p": [0.5, 0.6]}
    )
    two = pd.DataFrame({"p": [0.03], "rank_p": [0.9], "control_p": [0.7], "control_rank_p": [0.001]})
    joined = adjust({3: one, 5: two})
    # Sorted: 0.001 0.02 0.03 0.2 0.5 0.9, times 6 / rank: 0.006 0.06 0.06 0.3 0.6 0.9.
    assert joined["layer"].tolist() == [3, 3, 5]
    assert joined["q"].tolist() == pytest.approx([0.006, 0.3, 0.06])
    assert joined["rank_q"].tolist() == pytest.approx([0.06, 0.6, 0.9])
    assert joined["significant"].tolist() == [True, False, False]
    assert joined["control_rank_significant"].tolist() == [False, False, True]
    assert not joined["control_significant"].any()


def test_the_smallest_p_leaves_room_for_a_lone_discovery() -> None:
    assert 2 / (1 + PERMUTATIONS[1]) * 2000 < 0.05
    counts = np.ones((2, 300), np.int32)
    counts[:, :20] = 50
    rows = {("a", "x"): list(range(20)), ("a", "y"): list(range(20, 300))}
    assert layer_preferences(counts, make_labels(rows, 300), 0)["p"].tolist() == [2 / (1 + PERMUTATIONS[1])] * 2


def test_the_same_seed_gives_the_same_table_in_threads_too() -> None:
    counts, labels, _ = planted(np.random.default_rng(0), spread=1.0, factor=1)
    alone = [layer_preferences(counts, labels, seed, 999) for seed in range(6)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda seed: layer_preferences(counts, labels, seed, 999), range(6)))
    assert all(tables_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert not tables_equal(alone[0], alone[1])


def test_without_labels_or_selections_there_is_nothing_to_find(tmp_path: Path) -> None:
    counts, labels, _ = planted(np.random.default_rng(0), spread=1.0, factor=1)
    full = adjust({0: layer_preferences(counts, labels, 0, 9)})
    nothing = make_labels({}, 600)
    for empty in (EntryLabels([], [], csr_array((0, 600), dtype=np.int64)), nothing):
        table = adjust({0: layer_preferences(counts, empty, 0)})
        assert table.dtypes.equals(full.dtypes)
        assert table.empty
        table.to_parquet(tmp_path / "bias.parquet")
    silent = layer_preferences(np.zeros((3, 600), np.int32), labels, 0, 99)
    assert (silent["p"] == 1).all()
    assert silent["lift"].isna().all()


def test_labels_of_another_bank_are_refused() -> None:
    _, labels, _ = planted(np.random.default_rng(0), spread=1.0, factor=1)
    with pytest.raises(ValueError, match="labels of 600 entries for counts of 7"):
        layer_preferences(np.ones((2, 7), np.int32), labels, 0)
