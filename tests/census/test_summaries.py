"""From counts to the numbers of the census, against scipy, scikit-learn, simulation and worked examples."""

import json
import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import spearmanr
from sklearn.metrics import mutual_info_score

from memscope.census.kernels import N_SUMS, Sum
from memscope.census.strata import TokenClass
from memscope.census.summaries import (
    evenness,
    layer_overlap,
    mutual_information,
    profile,
    reading_errors,
    reading_statistics,
)
from memscope.recording.census_file import plain
from memscope.recording.sites import HAS, Site
from memscope.stats.jackknife import Jackknife
from memscope.stats.usage import JACKKNIFED, Bank, jackknife_errors, usage_metrics


def test_evenness_is_that_of_counts_and_of_either_weight() -> None:
    chance = np.random.default_rng(0)
    folds, weights = chance.poisson(2, (5, 30)), chance.random((30, 2))
    folds[0, 0] += folds.sum() % 2
    spread = Jackknife(folds.sum(1))
    counts = folds.sum(0)
    total = int(counts.sum())
    found = evenness(folds, weights, spread, [Bank(30, total, 2)], HAS)
    expected = dict(usage_metrics(counts, total, 2)) | jackknife_errors(folds, spread)
    assert dict(found.by_count) == expected
    for weighting, weight in ((found.by_gate_score, weights[:, 0]), (found.by_read_weight, weights[:, 1])):
        assert weighting.model_dump(exclude_unset=True) == dict(usage_metrics(weight, total, 2))
        assert weighting.gini_se is None


def test_evenness_without_an_error_says_none_and_not_nan() -> None:
    found = evenness(np.ones((1, 4), int), np.ones((4, 2)), Jackknife(np.array([4])), [Bank(4, 4)], HAS)
    assert all(getattr(found.by_count, f"{name}_se") is None for name in JACKKNIFED)
    json.dumps(plain(found), allow_nan=False)
    nothing = evenness(np.zeros((3, 4), int), np.zeros((4, 2)), Jackknife(np.zeros(3)), [Bank(4, 0)], HAS)
    json.dumps(plain(nothing), allow_nan=False)


def make_sums(**values: float) -> np.ndarray:
    """One class's sums; what is not given is zero."""
    sums = np.zeros((1, N_SUMS))
    for name, value in values.items():
        sums[0, Sum[name.upper()]] = value
    return sums


def test_reading_statistics_of_a_worked_example() -> None:
    # 10 tokens of 4 selections, 8 of which read anything.
    one = make_sums(
        tokens=6,
        selections=24,
        readers=5,
        unread=9,
        gate_entropy=4.0,
        read_top_share=3.0,
        margin=2.5,
        margins=5,
        by_score=6,
    )
    two = make_sums(
        tokens=4,
        selections=16,
        readers=3,
        unread=1,
        gate_entropy=2.4,
        read_top_share=2.6,
        loss=7.0,
        losses=2,
        by_score=2,
    )
    one[0, Sum.SCORE_MARGIN], two[0, Sum.UNREAD_BY_NORM] = -1.25, 3
    found = reading_statistics(np.concatenate([one, two]), HAS)
    assert found.gate_entropy == pytest.approx(6.4 / 8)
    assert found.read_top_share == pytest.approx(5.6 / 8)
    assert found.unread_share == 10 / 40
    assert found.silent_tokens == pytest.approx(0.2)
    assert (found.margin, found.loss) == (0.5, 3.5)
    assert (found.score_margin, found.by_score_share, found.unread_share_by_norm) == (-0.25, 8 / 40, 3 / 40)
    assert found.read_entropy == 0


def test_reading_statistics_of_nothing_are_zeros_or_unknown() -> None:
    found = reading_statistics(make_sums(), HAS)
    assert (found.margin, found.loss, found.gate_entropy, found.unread_share) == (None, None, 0, 0)
    json.dumps(plain(found), allow_nan=False)


def some_cells(n_folds: int, seed: int = 0) -> np.ndarray:
    chance = np.random.default_rng(seed)
    cells = chance.random((n_folds, N_SUMS)) * 100
    cells[:, Sum.TOKENS] = chance.integers(50, 90, n_folds)
    cells[:, Sum.READERS] = cells[:, Sum.TOKENS] - chance.integers(0, 20, n_folds)
    return cells


@pytest.mark.parametrize("n_folds", [2, 7])
def test_errors_of_reading_equal_a_loop_that_leaves_out_one_fold(n_folds: int) -> None:
    cells = some_cells(n_folds)
    spread = Jackknife(np.append(cells[:, Sum.TOKENS], 0))  # an empty fold changes nothing
    found = reading_errors(np.concatenate([cells, make_sums()]), HAS, spread)
    whole = dict(reading_statistics(cells, HAS))
    left = [dict(reading_statistics(cells[[f for f in range(n_folds) if f != out]], HAS)) for out in range(n_folds)]
    assert set(found) == {f"{name}_se" for name in left[0]}
    for name in left[0]:
        expected = spread.errors(whole[name], np.array([one[name] for one in left]))
        assert found[f"{name}_se"] == pytest.approx(expected), name


def test_errors_of_reading_are_unknown_where_the_number_is() -> None:
    cells = some_cells(4)
    cells[:, Sum.MARGINS] = 0
    found = reading_errors(cells, HAS, Jackknife(cells[:, Sum.TOKENS]))
    assert found["margin_se"] is None
    assert found["loss_se"] is not None
    assert reading_errors(cells[:1], HAS, Jackknife(cells[:1, Sum.TOKENS])) == {}
    json.dumps(plain(found), allow_nan=False)


CLASSES = [TokenClass("first", 0.0, 0.0), TokenClass("middle", 1.0, 2.0), TokenClass("none", 3.0, 6.0)]


def test_profile_of_a_worked_example() -> None:
    counts = np.array([[6, 0, 0], [2, 4, 0], [0, 4, 0], [0, 0, 0]], np.int32)  # [entry, class]
    shuffled = np.array([[3, 3, 0], [3, 3, 0], [2, 2, 0], [0, 0, 0]], np.int32)
    tokens = np.concatenate([make_sums(tokens=4, readers=4), make_sums(tokens=4, readers=4), make_sums()])
    first, middle = profile(CLASSES, counts, shuffled, tokens, HAS)  # the empty class has no row
    assert (first.label, first.low, first.high, first.tokens) == ("first", 0, 0, 4)
    assert (first.coverage, middle.coverage) == (0.5, 0.5)  # 2 of 4 entries
    # first: 6/8 on entry 0 which has 6/16 of all, 2/8 on entry 1 which has 6/16
    assert first.divergence == pytest.approx(0.75 * math.log(2) + 0.25 * math.log(2 / 3))
    assert middle.divergence == pytest.approx(0.5 * math.log(4 / 3) + 0.5 * math.log(2))
    assert first.even_divergence == pytest.approx(0, abs=1e-12)


def test_divergence_of_a_random_class_is_that_of_its_shuffled_twin() -> None:
    chance = np.random.default_rng(0)
    entry = (chance.random(6000) ** 2 * 200).astype(int)
    classes = [chance.choice(3, 6000, p=[0.05, 0.25, 0.7]) for _ in range(2)]
    counts, shuffled = (np.zeros((200, 3), np.int32) for _ in range(2))
    for table, labels in zip((counts, shuffled), classes, strict=True):
        np.add.at(table, (entry, labels), 1)
    sums = np.concatenate([make_sums(tokens=10)] * 3)
    rows = profile(CLASSES, counts, shuffled, sums, HAS)
    for row in rows:
        assert row.divergence == pytest.approx(row.even_divergence, rel=0.25)
    assert rows[0].divergence > 5 * rows[2].divergence  # small classes look different by chance


@pytest.mark.parametrize("seed", range(4))
def test_mutual_information_is_that_of_scikit_learn(seed: int) -> None:
    chance = np.random.default_rng(seed)
    entry = (chance.random(900) ** 2 * 30).astype(int)
    label = np.where(chance.random(900) < 0.5, entry % 4, chance.integers(0, 6, 900))
    counts = np.zeros((40, 7), np.int32)
    np.add.at(counts, (entry, label), 1)
    assert mutual_information(counts) == pytest.approx(mutual_info_score(entry, label))
    assert mutual_information(np.zeros((4, 3), np.int32)) == 0
    assert mutual_information(np.array([[3, 6], [2, 4]])) == pytest.approx(0, abs=1e-12)  # independent
    assert mutual_information(np.eye(4, dtype=int) * 5) == pytest.approx(math.log(4))


def sites_of(usage: np.ndarray) -> list[Site]:
    """Layers that share one bank."""
    n = usage.shape[1]
    return [Site(layer=layer, module="", kind="memory", entries=n, selected=1, has=HAS) for layer in range(len(usage))]


def some_usage(seed: int, layers: int = 4, entries: int = 50) -> np.ndarray:
    chance = np.random.default_rng(seed)
    return chance.zipf(1.6, (layers, entries)) * (chance.random((layers, entries)) < 0.6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layers", [1, 4])
def test_overlap_of_layers_is_that_of_scipy_and_sets(seed: int, layers: int) -> None:
    usage = some_usage(seed, layers)
    found = {name: np.array(values) for name, values in layer_overlap(list(usage), sites_of(usage))}
    assert all(values.shape == (layers, layers) for values in found.values())
    for a in range(layers):
        for b in range(layers):
            one, other = (set(np.flatnonzero(usage[layer])) for layer in (a, b))
            assert found["jaccard"][a, b] == pytest.approx(len(one & other) / len(one | other))
            assert found["rank_correlation"][a, b] == pytest.approx(spearmanr(usage[a], usage[b]).statistic)
            assert found["jensen_shannon"][a, b] == pytest.approx(jensenshannon(usage[a], usage[b]) ** 2, abs=1e-9)


@pytest.mark.parametrize(("size_a", "size_b"), [(300, 500), (40, 900), (1000, 400), (20, 30)])
def test_jaccard_by_chance_is_that_of_random_sets(size_a: int, size_b: int) -> None:
    usage = np.zeros((2, 1000), int)
    usage[0, :size_a] = usage[1, :size_b] = 1
    expected = layer_overlap(list(usage), sites_of(usage)).even_jaccard[0][1]
    chance, simulated = np.random.default_rng(0), []
    for _ in range(400):
        one, other = (set(chance.choice(1000, size, replace=False).tolist()) for size in (size_a, size_b))
        simulated.append(len(one & other) / len(one | other))
    error = np.std(simulated) / math.sqrt(400)
    assert expected == pytest.approx(np.mean(simulated), abs=4 * error + 0.02 * expected)


def test_layers_that_share_nothing_or_everything() -> None:
    usage = np.array([[1, 2, 3, 0, 0], [0, 0, 0, 4, 5], [1, 2, 3, 0, 0], [0, 0, 0, 0, 0]])
    found = layer_overlap(list(usage), sites_of(usage))
    assert found.jaccard[0][1:3] == (0, 1)
    assert found.jensen_shannon[0][1] == pytest.approx(math.log(2))
    assert found.jensen_shannon[0][2] == found.jensen_shannon[0][0] == 0
    assert found.rank_correlation[0][2] == pytest.approx(1)
    assert found.jaccard[3] == (0, 0, 0, 0)  # a layer without any usage
    json.dumps(plain(found), allow_nan=False)
