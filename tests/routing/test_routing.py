"""Studies of routing find what was planted, agree with counts made by hand, and find nothing where there is nothing."""

from pathlib import Path

import numpy as np
import pytest

from memscope.base.errors import InputError
from memscope.query.recording import Recording
from memscope.routing.atlas import atlas
from memscope.routing.domains import FALSE_DISCOVERY_RATE, domain_divergence, domain_lift
from memscope.routing.load import load_matrix, load_table
from memscope.routing.pairs import coactivation
from memscope.routing.paths import frequent_paths, transitions
from memscope.routing.rows import count_pairs, routed_layers
from memscope.routing.saturation import saturation
from memscope.routing.vocabulary import vocabulary
from tests.routing.conftest import DOCUMENTS, LENGTH, VOCAB, K, N, Routed, write_routed


def plain(folder: Path, seed: int) -> Routed:
    """Two layers that select at random, whatever the token and the document."""
    chance = np.random.default_rng(seed)
    n = DOCUMENTS * LENGTH
    token = chance.integers(3, VOCAB, n)
    indices = np.argsort(chance.random((n, 2, N)), -1)[..., :K]
    groups = ["code", "prose"] * (DOCUMENTS // 2)
    return Routed(write_routed(folder, indices, token, groups), indices, token, groups)


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Routed:
    return plain(tmp_path_factory.mktemp("random") / "random", 3)


def test_load_is_counted_by_hand(routed: Routed) -> None:
    counts = np.stack([np.bincount(routed.indices[:, axis].ravel(), minlength=N) for axis in range(2)])
    np.testing.assert_allclose(load_matrix(routed.recording), counts / counts.mean(1, keepdims=True))
    table = load_table(routed.recording)
    np.testing.assert_allclose(table["max_violation"], counts.max(1) / counts.mean(1) - 1)
    assert (table["selections"] == DOCUMENTS * LENGTH * K).all()
    assert (table["max_violation_se"] > 0).all()


def test_even_selection_has_the_violation_of_even_selection(random: Routed) -> None:
    table = load_table(random.recording)
    difference = (table["max_violation"] - table["even_max_violation"]).abs()
    assert (difference < 0.05).all()
    assert (table["even_max_violation"] > 0.01).all()


def test_a_domain_that_prefers_an_expert_is_found_with_its_lift(routed: Routed) -> None:
    found = domain_lift(routed.recording, 0)
    own = found[(found["group"] == "code") & (found["entry"] == 0)].iloc[0]
    is_code = np.repeat([name == "code" for name in routed.groups], LENGTH)
    share, elsewhere = ((routed.indices[rows, 0] == 0).sum() / (K * rows.sum()) for rows in (is_code, ~is_code))
    assert own["lift"] == pytest.approx(share / elsewhere)
    assert own["low"] < own["lift"] < own["high"]
    assert own["q"] < 0.001
    assert not (found["control_q"] <= FALSE_DISCOVERY_RATE).any()
    divergence = domain_divergence(routed.recording, 0)
    assert (divergence["divergence"] > 3 * divergence["chance_high"]).all()
    assert (divergence["p"] < 0.01).all()


def test_no_domain_prefers_an_expert_where_selection_is_random(random: Routed) -> None:
    discoveries = [(domain_lift(random.recording, layer)["q"] <= FALSE_DISCOVERY_RATE).sum() for layer in (0, 2)]
    assert discoveries == [0, 0]
    for layer in (0, 2):
        divergence = domain_divergence(random.recording, layer)
        assert (divergence["p"] > 0.01).all()


def test_a_corpus_without_groups_has_no_domains(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    token = chance.integers(3, VOCAB, 400)
    indices = np.argsort(chance.random((400, 1, N)), -1)[..., :K]
    recording = write_routed(tmp_path / "one", indices, token, [""] * 4)
    assert domain_lift(recording, 0).empty
    assert domain_divergence(recording, 0).empty
    assert atlas(recording, 0)["group"].isna().all()


def test_a_layer_that_follows_the_token_is_explained_by_it(routed: Routed) -> None:
    table = vocabulary(routed.recording, 2).set_index("kind")
    own = table.loc["input"]
    # The first choice is the token's; of the second, drawn from the seven others, any rule gets one in seven.
    assert own["share"] == pytest.approx((1 + 1 / (N - 1)) / 2, abs=0.02)
    assert own["low"] < own["share"] < own["high"]
    assert own["shuffled"] == pytest.approx(own["load"], abs=0.03)
    assert table.loc["next", "explained"] == pytest.approx(0, abs=0.03)
    assert table.loc["predicted", "explained"] == pytest.approx(0, abs=0.03)  # the token before, which is random


def test_a_token_tells_nothing_of_random_selection(random: Routed) -> None:
    table = vocabulary(random.recording, 0)
    assert (table["explained"].abs() < 0.03).all()
    assert ((table["share"] - table["shuffled"]).abs() < 0.03).all()


def test_pairs_are_counted_by_hand_and_planted_ones_come_first(routed: Routed) -> None:
    found = coactivation(routed.recording, 0)
    chosen = np.zeros((len(routed.token), N), int)
    np.put_along_axis(chosen, routed.indices[:, 0], 1, axis=1)
    np.testing.assert_array_equal(found.together, chosen.T @ chosen)
    np.testing.assert_array_equal(
        found.ranks, found.together - np.diag(np.diag(found.together))
    )  # K = 2: one pair each
    np.testing.assert_allclose(np.triu(found.expected, 1).sum(), np.triu(found.together, 1).sum())
    np.testing.assert_allclose(found.given[0, 1], chosen[chosen[:, 0] == 1, 1].mean())
    above = found.pairs[found.pairs["lift"] > 1].sort_values("lift", ascending=False)
    assert {tuple(pair) for pair in above[["entry", "other"]].head(2).to_numpy()} == {(0, 1), (5, 6)}
    assert (above["q"].head(2) < 0.001).all()


def test_random_selection_has_no_pairs(random: Routed) -> None:
    for layer in (0, 2):
        assert not (coactivation(random.recording, layer).pairs["q"] <= FALSE_DISCOVERY_RATE).any()


def test_paths_through_layers_that_follow_one_token_go_together(tmp_path: Path, random: Routed) -> None:
    chance = np.random.default_rng(5)
    n = DOCUMENTS * LENGTH
    token, noise = chance.integers(3, VOCAB, n), chance.integers(0, N, n)
    first = np.where(chance.random(n) < 0.5, token % N, noise)
    second = np.where(chance.random(n) < 0.5, first, chance.integers(0, N, n))  # beyond what the token tells
    indices = np.stack([np.stack([one, (one + 1 + chance.integers(0, N - 1, n)) % N], 1) for one in (first, second)], 1)
    recording = write_routed(tmp_path / "paths", indices, token, ["a"] * DOCUMENTS)
    found = transitions(recording, 0, 2)
    np.testing.assert_array_equal(found.counts, count_pairs(first, second[:, None], N, N))
    assert found.information > found.by_token + 10 * found.information_se > found.shuffled
    assert np.diag(found.lift).min() > 2
    way = frequent_paths(recording, limit=N)
    assert all(a == b for a, b in way["path"])
    assert way["tokens"].iloc[0] == max(np.diag(found.counts))
    nothing = transitions(random.recording, 0, 2)
    assert nothing.information == pytest.approx(nothing.shuffled, abs=0.01)
    assert nothing.information == pytest.approx(nothing.by_token, abs=0.01)


def test_saturation_is_one_with_itself_and_known_with_a_half_changed_copy(
    routed: Routed, random: Routed, tmp_path: Path
) -> None:
    assert (saturation(routed.recording, routed.recording)[["overlap", "first"]] == 1).all(axis=None)
    half = routed.indices.copy()
    half[::2] = (half[::2] + 1) % N
    changed = write_routed(tmp_path / "half", half, routed.token, routed.groups)
    found = saturation(routed.recording, changed).set_index("layer")
    for axis, layer in enumerate((0, 2)):
        same = [len(set(a) & set(b)) for a, b in zip(routed.indices[:, axis], half[:, axis], strict=True)]
        assert found.loc[layer, "overlap"] == pytest.approx(np.mean(same) / K)
        assert found.loc[layer, "first"] == pytest.approx((routed.indices[:, axis, 0] == half[:, axis, 0]).mean())
        assert found.loc[layer, "low"] <= found.loc[layer, "overlap"] <= found.loc[layer, "high"]
    assert found.loc[2, "by_load"] == pytest.approx(K / N, abs=0.02)
    with pytest.raises(InputError, match="its tokens are not those of"):
        saturation(routed.recording, random.recording)


def test_the_atlas_names_the_domain_of_an_expert(routed: Routed) -> None:
    table = atlas(routed.recording, 0).set_index("number")
    assert sorted(table.index) == list(range(N))
    assert table.loc[0, "group"] == "code"
    assert (table["load"].diff().dropna() <= 0).all()
    assert all(isinstance(text, str) for text in table["fires_on"])


def test_layers_of_many_entries_are_left_out(routed: Routed, monkeypatch: pytest.MonkeyPatch) -> None:
    assert routed_layers(routed.recording) == (0, 2)
    monkeypatch.setattr("memscope.routing.rows.MOST_ENTRIES", N - 1)
    assert routed_layers(routed.recording) == ()
    assert load_table(routed.recording).empty
    with pytest.raises(InputError, match="at most 7"):
        coactivation(routed.recording, 0)


def test_what_pages_and_report_ask_alike_is_answered_once(routed: Routed, monkeypatch: pytest.MonkeyPatch) -> None:
    again = Recording(routed.recording.path)
    first = domain_lift(again, 0)
    monkeypatch.setattr("memscope.routing.domains.layer_rows", None)  # reading rows again would fail
    assert domain_lift(again, 0) is first
    with pytest.raises(TypeError):
        domain_lift(again, 2)  # another question
    with pytest.raises(TypeError):
        domain_lift(Recording(routed.recording.path), 0)  # another opening
