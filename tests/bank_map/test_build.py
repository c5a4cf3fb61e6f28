"""Maps of a bank: planted groups come out as groups, equal seeds give equal maps, and every entry is on the map."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.metrics import adjusted_rand_score

from memscope.bank_map import build as project
from memscope.bank_map.build import BEST, FEATURES, write_map
from memscope.bank_map.layout import BankMap, MapSettings, _load_umap, make_map, place_apart, try_map, why_not_trusted
from memscope.bank_map.names import name_clusters, text_weights
from memscope.bank_map.spaces import (
    BEFORE,
    OF_USAGE,
    SPACES,
    Space,
    context_counts,
    coselection_profiles,
    entry_keys,
    entry_values,
    read_outputs,
    token_counts,
    usage_profiles,
)
from memscope.base.errors import InputError
from memscope.recording.info import RecordingInfo, read_info, write_info
from memscope.recording.part_reader import read_part
from memscope.run.checkpoint import LoadedRun

pytestmark = pytest.mark.slow


def blobs(n: int, groups: int, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around planted centres, ``[n, 32]``, and the group of each."""
    chance = np.random.default_rng(3)
    group = chance.integers(0, groups, n)
    return chance.standard_normal((groups, 32))[group] + noise * chance.standard_normal((n, 32)), group


@pytest.fixture(scope="module", autouse=True)
def _few_epochs() -> Iterator[None]:
    """Banks of some hundred entries are laid out in 100 epochs as well as in UMAP's 500."""
    umap = _load_umap()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(umap, "UMAP", partial(umap.UMAP, n_epochs=100))
        yield


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, np.ndarray, BankMap]:
    vectors, group = blobs(400, 5)
    return vectors, group, make_map(vectors, MapSettings(n_clusters=5))


@pytest.fixture
def recording(tiny_recording_path: Path, tmp_path: Path) -> Path:
    """The tiny recording as a copy that a test may write into."""
    return Path(shutil.copytree(tiny_recording_path, tmp_path / "recording"))


@pytest.fixture
def believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every map is trusted, so that clusters of a bank of 64 entries can be looked at."""
    monkeypatch.setattr(project, "why_not_trusted", lambda quality, trial: [])


def verdict(vectors: np.ndarray, seed: int = 0) -> list[str]:
    trial = try_map(vectors, MapSettings(seed=seed))
    return why_not_trusted(make_map(vectors, MapSettings(seed=seed), trial.rows).quality, trial)


def test_what_umap_compiles_is_kept_for_the_next_process(planted: tuple[np.ndarray, np.ndarray, BankMap]) -> None:
    loops = _load_umap().umap_
    for loop in (loops.smooth_knn_dist, loops.compute_membership_strengths):
        assert list(Path(loop.stats.cache_path).glob(f"*.{loop.__name__}-*.nbi"))


@pytest.mark.parametrize(("n", "groups"), [(300, 4), (500, 8)])
def test_a_map_of_entries_in_clear_groups_is_trusted(n: int, groups: int) -> None:
    assert verdict(blobs(n, groups)[0]) == []


@pytest.mark.parametrize(("n", "width"), [(300, 8), (400, 32)])
def test_a_map_of_random_entries_is_not_trusted_and_says_so(n: int, width: int) -> None:
    reasons = verdict(np.random.default_rng(n).standard_normal((n, width)))
    assert any(reason.startswith("Vectors without any structure map as well") for reason in reasons)


def test_directions_of_unequal_length_are_no_structure() -> None:
    assert verdict(np.random.default_rng(0).standard_normal((300, 16)) * 0.8 ** np.arange(16))


def test_quality_is_measured_on_other_entries_than_the_trial() -> None:
    vectors = blobs(540, 4)[0]
    trial = try_map(vectors, MapSettings())
    assert len(trial.rows) == 270
    assert make_map(vectors, MapSettings(), trial.rows).quality[:2] == (270, True)
    assert make_map(vectors, MapSettings()).quality[:2] == (540, False)


def plant_spaces(monkeypatch: pytest.MonkeyPatch, spaces: dict[str, np.ndarray]) -> None:
    """Have the bank be of 300 entries, which lie in each space where they are planted."""
    names = sparse.csr_matrix((300, 0), dtype=np.float32)
    monkeypatch.setattr(
        project, "make_space", lambda run, path, info, name, *_: Space(np.arange(300), spaces[name], names, [])
    )

    def read_larger(path: Path) -> RecordingInfo:
        info = read_info(path)
        return info.model_copy(update={"sites": tuple(s.model_copy(update={"entries": 300}) for s in info.sites)})

    monkeypatch.setattr(project, "read_info", read_larger)


def test_the_space_with_structure_is_chosen_and_all_are_told(
    tiny_run: LoadedRun, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = np.random.default_rng(5)
    random = {name: chance.standard_normal((300, 32)) for name in SPACES}
    plant_spaces(monkeypatch, random | {"contexts": blobs(300, 24)[0]})
    said = write_map(tiny_run, recording)
    assert (said["feature"], said["trusted"]) == ("contexts", True)
    assert [one["feature"] for one in said["chosen_among"]] == list(SPACES)
    assert max(said["chosen_among"], key=lambda one: one["gain"])["feature"] == "contexts"
    assert len(said["clusters"]) == 24


def test_a_map_that_is_not_trusted_has_no_clusters(
    tiny_run: LoadedRun, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_spaces(monkeypatch, {"values": np.random.default_rng(300).standard_normal((300, 8))})
    said = write_map(tiny_run, recording, "values")
    assert not said["trusted"] and said["why_not"] and said["clusters"] == []
    frame = pd.read_parquet(recording / "map.parquet")
    assert (frame["cluster"] == -1).all()


def test_planted_blobs_come_out_as_the_clusters(planted: tuple[np.ndarray, np.ndarray, BankMap]) -> None:
    _, group, found = planted
    assert adjusted_rand_score(group, found.cluster) > 0.98
    assert found.places.shape == (400, 2)
    assert found.fitted_on == 400


def test_planted_blobs_come_out_when_most_entries_are_placed_among_a_sample() -> None:
    vectors, group = blobs(400, 5)
    found = make_map(vectors, MapSettings(n_clusters=5, fit_on=100))
    assert adjusted_rand_score(group, found.cluster) > 0.98
    assert found.fitted_on == 100


def test_equal_seeds_give_equal_maps_and_others_do_not(planted: tuple[np.ndarray, np.ndarray, BankMap]) -> None:
    vectors, _, found = planted
    again = make_map(vectors, MapSettings(n_clusters=5))
    np.testing.assert_array_equal(again.places, found.places)
    np.testing.assert_array_equal(again.cluster, found.cluster)
    assert again.quality == found.quality
    assert not np.array_equal(make_map(vectors, MapSettings(seed=1)).places, found.places)


def test_equal_seeds_place_the_rest_of_a_bank_equally() -> None:
    vectors, _ = blobs(300, 5)
    first, second = (make_map(vectors, MapSettings(fit_on=100)) for _ in range(2))
    np.testing.assert_array_equal(first.places, second.places)


def test_quality_equals_a_loop_over_neighbours(planted: tuple[np.ndarray, np.ndarray, BankMap]) -> None:
    vectors, _, found = planted
    k = found.quality.k
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    true, near = unit @ unit.T, -np.linalg.norm(found.places[:, None] - found.places, axis=2)
    kept = penalty = 0
    for entry in range(400):
        by_cosine = [other for other in np.argsort(-true[entry]) if other != entry]
        on_map = [other for other in np.argsort(-near[entry]) if other != entry][:k]
        kept += len(set(by_cosine[:k]) & set(on_map))
        penalty += sum(max(0, by_cosine.index(other) + 1 - k) for other in on_map)  # Venna and Kaski 2001
    assert found.quality.sample == 400
    assert found.quality.neighbours_kept["map"] == pytest.approx(kept / 400 / k, abs=1e-3)
    assert found.quality.trustworthiness["map"] == pytest.approx(
        1 - penalty * 2 / (400 * k * (2 * 400 - 3 * k - 1)), abs=1e-3
    )


def test_a_map_of_planted_blobs_is_better_than_its_yardsticks(planted: tuple[np.ndarray, np.ndarray, BankMap]) -> None:
    trust, kept = planted[2].quality.trustworthiness, planted[2].quality.neighbours_kept
    assert trust["map"] > trust["pca"] > trust["random"] + 0.1
    assert trust["random"] == pytest.approx(0.5, abs=0.05)
    assert kept["map"] > kept["pca"] > kept["random"]
    assert kept["random"] == pytest.approx(15 / 399, abs=0.02)


def test_clusters_are_numbered_from_the_largest() -> None:
    vectors = np.concatenate([blobs(200, 1)[0], 10 - blobs(50, 1)[0]])
    assert np.bincount(make_map(vectors, MapSettings(n_clusters=2)).cluster).tolist() == [200, 50]


@pytest.mark.parametrize("width", [1, 8])
def test_entries_that_are_all_alike_are_placed(width: int) -> None:
    found = make_map(np.ones((30, width)), MapSettings())
    assert np.isfinite(found.places).all()


def test_a_map_of_ten_entries_is_made_and_one_of_nine_is_not() -> None:
    vectors = blobs(10, 2)[0]
    assert make_map(vectors, MapSettings()).places.shape == (10, 2)
    with pytest.raises(InputError, match="9 entries are too few"):
        make_map(vectors[:9], MapSettings())


def test_a_diverged_bank_is_refused() -> None:
    vectors = blobs(20, 2)[0]
    vectors[7, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        make_map(vectors, MapSettings())


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"n_neighbors": 1}, {"n_clusters": 0}, {"fit_on": 3}, {"min_dist": 2.0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, int | float]) -> None:
    with pytest.raises(InputError, match="choose"):
        MapSettings(**wrong)


def test_clusters_are_named_by_the_words_that_set_them_apart() -> None:
    texts = ["the town of Aston", "the town of Berrow", "a painter born in Aston", "a painter of Elham", "", ""]
    names = name_clusters(np.array([0, 0, 1, 1, 2, 2]), *text_weights(texts))
    assert names[0].split(", ")[0] == "town"
    assert names[1].split(", ")[0] == "painter"
    assert names[2] == "cluster 2"


def test_a_bank_without_sentences_has_numbered_clusters() -> None:
    assert name_clusters(np.array([0, 0, 1]), *text_weights(["", "", ""])) == ["cluster 0", "cluster 1"]


def test_names_hold_letters_and_nothing_that_could_be_interpreted() -> None:
    hostile = ["<script>alert(1)</script> $x^2$ =HYPERLINK(1) [a](javascript:b)", "an ordinary sentence"]
    for name in name_clusters(np.array([0, 1]), *text_weights(hostile)):
        assert name.replace(", ", "").isalpha()


def test_entries_without_the_feature_fill_a_disc_below_the_map() -> None:
    places = np.array([[0.0, 0.0], [10.0, 4.0]], np.float32)
    disc = place_apart(places, 1000)
    assert disc[:, 1].max() < 0
    distance = np.linalg.norm(disc - disc.mean(0), axis=1)
    assert distance.max() == pytest.approx(1, abs=0.02)
    assert np.mean(distance < 0.5) == pytest.approx(0.25, abs=0.02)  # evenly: a quarter of the area
    assert place_apart(places, 0).shape == (0, 2)


@pytest.mark.parametrize("feature", FEATURES)
def test_every_entry_of_the_bank_is_on_the_map(feature: str, tiny_run: LoadedRun, recording: Path) -> None:
    said = write_map(tiny_run, recording, feature, seed=5)
    assert (said["chosen_among"] != []) == (feature == BEST)
    feature = said["feature"]
    frame = pd.read_parquet(recording / "map.parquet")
    assert frame.columns.tolist() == ["entry", "x", "y", "cluster"]
    assert frame["entry"].tolist() == list(range(64))
    assert np.isfinite(frame[["x", "y"]].to_numpy()).all()
    assert json.loads((recording / "map.json").read_text()).items() >= said.items()
    assert (said["feature"], said["seed"], said["entries"], said["metric"]) == (feature, 5, 64, "cosine")
    sizes = frame["cluster"][frame["cluster"] >= 0].value_counts()
    assert (len(sizes) > 0) == said["trusted"]
    assert [(told["cluster"], told["size"]) for told in said["clusters"]] == list(enumerate(sizes.sort_index()))
    assert all(told["name"] for told in said["clusters"])
    used = pd.read_parquet(recording / "usage.parquet")["entry"].nunique()
    assert said["placed"] == (used if feature in OF_USAGE else 64)


@pytest.mark.usefixtures("believed")
def test_entries_never_selected_form_the_last_cluster_of_a_map_of_usage(tiny_run: LoadedRun, recording: Path) -> None:
    usage = pd.read_parquet(recording / "usage.parquet")
    layer = min((0, 1), key=lambda number: int((usage["layer"] == number).sum()))
    said = write_map(tiny_run, recording, "usage", layer=layer)
    frame = pd.read_parquet(recording / "map.parquet")
    never = set(range(64)) - set(usage["entry"][usage["layer"] == layer])
    assert never, "the tiny run uses all its entries: this test proves nothing"
    assert set(frame["entry"][frame["cluster"] == frame["cluster"].max()]) == never
    assert said["clusters"][-1] == {"cluster": frame["cluster"].max(), "size": len(never), "name": "never selected"}
    assert said["layers"] == [layer]


def test_equal_seeds_write_equal_maps(tiny_run: LoadedRun, recording: Path) -> None:
    written = []
    for _ in range(2):
        write_map(tiny_run, recording, "usage", seed=2)
        written.append((recording / "map.parquet").read_bytes() + (recording / "map.json").read_bytes())
    assert written[0] == written[1]


@pytest.mark.usefixtures("believed")
def test_settings_are_kept_and_the_seed_comes_from_the_call(tiny_run: LoadedRun, recording: Path) -> None:
    settings = MapSettings(seed=1, n_neighbors=5, min_dist=0.3, n_clusters=3, fit_on=40)
    said = write_map(tiny_run, recording, "values", seed=9, settings=settings)
    assert [said[name] for name in ("seed", "n_neighbors", "min_dist", "fitted_on")] == [9, 5, 0.3, 40]
    assert len(said["clusters"]) == 3


def test_values_are_means_over_slots(slot_run: LoadedRun) -> None:
    entries = slot_run.model.bank.entries.detach().numpy()
    np.testing.assert_allclose(entry_values(slot_run)[7], sum(entries[7]) / 32, atol=1e-6)


@pytest.mark.parametrize("layers", [[0], [1], [0, 1]])
@pytest.mark.parametrize("name", ["tiny_run", "slot_run"])
def test_read_outputs_have_the_inner_products_of_what_reading_adds(
    name: str, layers: list[int], request: pytest.FixtureRequest
) -> None:
    run: LoadedRun = request.getfixturevalue(name)
    added = []
    for layer in layers:
        read = run.model.blocks[layer].memory.read
        with torch.no_grad():
            added.append(read.o_proj(read.v_proj(run.model.bank.entries.mean(1))))
    wide = torch.cat(added, 1).numpy()
    narrow = read_outputs(run, layers)
    assert narrow.shape == (64, 16)
    np.testing.assert_allclose(narrow @ narrow.T, wide @ wide.T, rtol=1e-3, atol=1e-6)


def test_token_counts_equal_a_loop_over_recorded_tokens(tiny_run: LoadedRun, recording: Path) -> None:
    info = read_info(recording)
    assert len(info.parts) > 1
    expected = np.zeros((64, 320))
    for part in info.parts:
        rows = read_part(recording, part, info)
        for token, by_layer in zip(rows.token, rows.indices, strict=True):
            for entry in by_layer[1]:
                expected[entry, token] += 1
    np.testing.assert_array_equal(token_counts(recording, info, [1], 320).toarray(), expected)
    both = token_counts(recording, info, [0, 1], 320)
    assert both.sum() == info.rows * info.selected * 2


def test_context_counts_equal_a_loop_over_recorded_tokens(tiny_run: LoadedRun, recording: Path) -> None:
    info = read_info(recording)
    expected = np.zeros((64, 320))
    for part in info.parts:
        rows = read_part(recording, part, info)
        for row in range(len(rows.token)):
            for back in range(1, BEFORE + 1):
                if rows.pos[row] % info.window >= back and row >= back:
                    for entry in rows.indices[row, 1]:
                        expected[entry, rows.token[row - back]] += 1
    np.testing.assert_array_equal(context_counts(recording, info, [1], 320).toarray(), expected)


def test_entries_selected_together_lie_together(tiny_run: LoadedRun, recording: Path) -> None:
    info = read_info(recording)
    selects = np.zeros((64, info.rows))
    first = 0
    for part in info.parts:
        rows = read_part(recording, part, info)
        for entries in rows.indices[:, 0].T:
            selects[entries, first + np.arange(len(entries))] = 1
        first += len(rows.token)
    unit = selects / np.sqrt(np.maximum(selects.sum(1, keepdims=True), 1))
    found = coselection_profiles(recording, info, [0], seed=0)
    np.testing.assert_allclose(found @ found.T, unit @ unit.T, atol=0.02)  # 63 of 64 singular vectors


def test_keys_are_those_that_the_gate_scores(tiny_run: LoadedRun) -> None:
    gate, keys = tiny_run.model.blocks[1].memory.gate, entry_keys(tiny_run, [0, 1])
    half = keys.shape[1] // 2
    query = torch.randn(1, 1, gate.heads, tiny_run.config.memory.key_dim)
    scores = np.einsum("hq,nhq->nh", query[0, 0].numpy(), keys[:, half:].reshape(64, gate.heads, -1))
    with torch.no_grad():
        chosen = gate.select(query).indices[0, 0].reshape(gate.heads, -1).numpy()
    for head in range(gate.heads):
        assert set(chosen[head]) == set(np.argsort(-scores[:, head])[: chosen.shape[1]].tolist())


def test_entries_selected_on_the_same_tokens_have_like_profiles_however_often() -> None:
    chance = np.random.default_rng(0)
    counts = np.zeros((40, 30), np.float32)
    counts[:20, :15] = chance.poisson(20, (20, 15))
    counts[20:, 15:] = chance.poisson(20, (20, 15))
    counts[::4] *= 5
    weights, vectors = usage_profiles(sparse.csr_matrix(counts), seed=0)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    assert cosine[:20, :20].min() > cosine[:20, 20:].max() + 0.3
    total, entry, token = counts.sum(), 3, int(counts[3].argmax())
    expected = np.log(counts[entry, token] * total / counts[entry].sum() / counts[:, token].sum())
    assert weights[entry, token] == pytest.approx(expected, rel=1e-5)


def test_another_run_than_was_recorded_is_refused_before_anything_is_written(
    slot_run: LoadedRun, recording: Path
) -> None:
    with pytest.raises(InputError, match="recording of another model"):
        write_map(slot_run, recording, "values")
    assert not (recording / "map.parquet").exists()


def test_an_unfinished_recording_is_refused(tiny_run: LoadedRun, recording: Path) -> None:
    write_info(recording, read_info(recording).model_copy(update={"complete": False}))
    with pytest.raises(InputError, match="unfinished"):
        write_map(tiny_run, recording)


@pytest.mark.parametrize(
    ("feature", "layer", "message"),
    [
        (
            "meaning",
            None,
            f"unknown feature 'meaning'; known are best, {', '.join(SPACES)}",
        ),
        ("values", 1, "belong to no layer"),
        ("read", 7, "layer 7 selects nothing; layers that select are 0, 1"),
    ],
)
def test_unknown_features_and_layers_are_refused(
    feature: str, layer: int | None, message: str, tiny_run: LoadedRun, recording: Path
) -> None:
    with pytest.raises(InputError, match=message):
        write_map(tiny_run, recording, feature, layer=layer)


def test_a_map_of_usage_takes_ten_entries_in_use(tiny_run: LoadedRun, recording: Path) -> None:
    write_info(recording, read_info(recording).model_copy(update={"parts": ()}))
    with pytest.raises(InputError, match="only 0 entries were selected"):
        write_map(tiny_run, recording, "usage")


def test_a_bank_that_diverged_writes_nothing(tiny_run: LoadedRun, recording: Path) -> None:
    entries = tiny_run.model.bank.entries
    before = entries.detach().clone()
    with torch.no_grad():
        entries[0, 0, 0] = torch.inf
    try:
        with pytest.raises(InputError, match="not finite"):
            write_map(replace(tiny_run), recording, "values")
    finally:
        with torch.no_grad():
            entries.copy_(before)
    assert not (recording / "map.parquet").exists()
