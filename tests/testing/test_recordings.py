"""Recordings whose answer is known by construction: each planted effect is found, by every view, and nothing else.

The regression suite of everything that reads a recording; ``test_planted_models.py`` is that of what reads a model.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from memscope.census.preference import FALSE_DISCOVERY_RATE
from memscope.query.recording import Recording
from memscope.report.anomalies import DEAD_EXCESS, find_anomalies
from memscope.report.findings import find
from memscope.report.health import health
from memscope.testing.recordings import EFFECTS, FACTOR, PLANTED_LAYER, Effect, Planted, plant_recording

pytestmark = pytest.mark.slow

CLEAN_SEEDS = range(10)
ERROR_RATE = 0.05 / len(CLEAN_SEEDS)
"""Chance of a false alarm in a recording without any effect: 5% over all clean seeds together."""
Row = tuple[str, int, int, int, str]


def expected(truth: Planted) -> set[Row]:
    """The anomalies that were planted in a recording, as ``found`` gives them."""
    rows: set[Row] = {("token", PLANTED_LAYER, entry, -1, f" w{token}") for entry, token in truth.detectors.items()}
    rows |= {("unread", PLANTED_LAYER, entry, -1, "") for entry in truth.decoys}
    if truth.duplicates:
        rows.add(("duplicate", PLANTED_LAYER, min(truth.duplicates), max(truth.duplicates), ""))
    if truth.dead:
        rows.add(("dead", PLANTED_LAYER, -1, -1, ""))
    if truth.preferred:
        rows.add(("preference", PLANTED_LAYER, -1, -1, f"predicate: {truth.preferred}"))
    return rows


def found(recording: Recording, error_rate: float = ERROR_RATE) -> set[Row]:
    table = find_anomalies(recording, error_rate)
    return set(table[["kind", "layer", "entry", "other", "label"]].itertuples(index=False, name=None))


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """All effects at once."""
    return plant_recording(tmp_path_factory.mktemp("planted") / "all", seed=0)


@pytest.fixture(scope="module")
def recording(truth: Planted) -> Recording:
    return Recording(truth.path)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    """Recordings in which nothing is planted."""
    folder = tmp_path_factory.mktemp("clean")
    return [Recording(plant_recording(folder / str(seed), seed, effects=()).path) for seed in CLEAN_SEEDS]


def test_clean_recordings_raise_no_alarm(clean: list[Recording]) -> None:
    assert [found(recording) for recording in clean] == [set()] * len(CLEAN_SEEDS)


def test_clean_recordings_look_healthy(clean: list[Recording]) -> None:
    assert [flag for recording in clean for flag in health(recording) if flag.level != "good"] == []


def test_the_report_shows_no_bias_of_clean_recordings(clean: list[Recording]) -> None:
    answers = [{one.question: one.short for one in find(recording)} for recording in clean]
    assert all(answer["Is the gate biased?"].startswith("Not shown") for answer in answers)
    # Preferences are reported at a false discovery rate of 5% a recording, so one in twenty may err.
    wrong = sum(not answer["Toward what is it biased?"].startswith("Not shown") for answer in answers)
    assert wrong <= binom.ppf(0.999, len(CLEAN_SEEDS), FALSE_DISCOVERY_RATE)


@pytest.mark.parametrize("effect", EFFECTS)
def test_each_effect_alone_is_found_and_nothing_else(effect: Effect, tmp_path: Path) -> None:
    truth = plant_recording(tmp_path / effect, seed=101, effects=(effect,))
    assert found(Recording(truth.path)) == expected(truth)
    assert len(expected(truth)) == 1


@pytest.mark.parametrize("seed", [201, 202])
def test_all_effects_together_are_found(seed: int, tmp_path: Path) -> None:
    truth = plant_recording(tmp_path / "all", seed)
    assert found(Recording(truth.path)) == expected(truth)
    assert {row[0] for row in expected(truth)} == {"token", "unread", "duplicate", "dead", "preference"}


def test_a_smaller_error_rate_asks_for_stronger_evidence(recording: Recording) -> None:
    tables = [find_anomalies(recording, rate) for rate in (1.0, 0.05, 1e-5)]
    sizes = [len(table) for table in tables]
    assert sizes == sorted(sizes, reverse=True)
    assert "preference" in set(tables[1]["kind"]) - set(tables[2]["kind"])  # no permutation test can get that small


def test_a_detector_is_known_by_its_token_in_every_view(recording: Recording, truth: Planted) -> None:
    [(entry, token)] = truth.detectors.items()
    occurrences = int((recording.token_ids == token).sum())
    firing = recording.firing_of([entry]).set_index("layer").loc[PLANTED_LAYER]
    assert firing["fires_on"] == f"“␣w{token}” 100%"
    assert (firing["count"], firing["input_tokens"]) == (occurrences, [f" w{token}"])
    assert firing["input_lift"] == pytest.approx([recording.info.rows / occurrences])
    assert set(recording.contexts(entry, PLANTED_LAYER)["token"]) == {f" w{token}"}
    rows = recording.selections(entry, PLANTED_LAYER)["row"]
    assert np.array_equal(rows, np.flatnonzero(recording.token_ids == token))
    card = recording.entry(entry)
    assert card.title is not None and card.title.startswith(f"“␣w{token}” 100%")
    assert card.usage.set_index("layer")["count"][PLANTED_LAYER] == occurrences


def test_duplicates_are_each_others_nearest_neighbours(recording: Recording, truth: Planted) -> None:
    near = recording.neighbours_of(truth.duplicates)
    best = near[(near["layer"] == PLANTED_LAYER) & (near["rank"] == 0)].set_index("entry")
    counts = recording.usage()[PLANTED_LAYER]
    first, second = truth.duplicates
    assert counts[first] == counts[second]
    for one, other in ((first, second), (second, first)):
        assert (best["other"][one], best["npmi"][one]) == (other, 1.0)
        assert best["together"][one] == counts[one]
    everyone = recording.sql("SELECT max(npmi) AS npmi FROM neighbours WHERE NOT entry IN (?, ?)", [first, second])
    assert everyone["npmi"][0] < 0.5


def test_the_dead_are_missing_from_use_and_counted(recording: Recording, truth: Planted) -> None:
    usage = recording.usage()[PLANTED_LAYER]
    assert tuple(np.flatnonzero(usage == 0)) == truth.dead
    clean, planted = recording.layer_metrics().to_dict("records")
    assert (clean["dead"], planted["dead"]) == (0, len(truth.dead))
    assert planted["coverage"] == 1 - len(truth.dead) / recording.info.knowledge_num
    assert len(truth.dead) / recording.info.knowledge_num > DEAD_EXCESS
    assert not set(truth.dead) & set(
        recording.sql("SELECT entry FROM firing WHERE layer = ?", [PLANTED_LAYER])["entry"]
    )
    levels = {flag.text.split(" of ")[0]: flag.level for flag in health(recording)}
    assert levels[f"{len(truth.dead) / recording.info.knowledge_num:.0%}"] == "watch"


def test_a_decoy_is_selected_and_not_read(recording: Recording, truth: Planted) -> None:
    [decoy] = truth.decoys
    usage = recording.usage_table().set_index(["layer", "entry"])
    row = usage.loc[(PLANTED_LAYER, decoy)]
    others = usage.loc[PLANTED_LAYER].drop(decoy)
    assert row["read_sum"] / row["gate_sum"] < 0.01 * (others["read_sum"] / others["gate_sum"]).min()
    clean, planted = recording.reading_metrics().to_dict("records")
    assert clean["unread_share"] == 0
    assert planted["unread_share"] == row["count"] / recording.info.rows / recording.info.selected
    # Where one of four is not read, three are: the mean over tokens says how often.
    assert planted["effective_entries_read"] < clean["effective_entries_read"]
    contexts = recording.contexts(decoy, PLANTED_LAYER)
    assert (contexts["gate"] > 0.4).all() and (contexts["read"].abs() < 0.01).all()


def test_a_preference_is_found_at_its_size(recording: Recording, truth: Planted) -> None:
    counts = recording.usage()[PLANTED_LAYER].astype(float)
    liked = np.array(truth.predicates) == truth.preferred
    special = [*truth.detectors, *truth.duplicates, *truth.dead, *truth.decoys]
    ordinary = np.ones(len(counts), bool)
    ordinary[special] = False
    assert counts[liked & ordinary].mean() / counts[~liked & ordinary].mean() == pytest.approx(FACTOR, rel=0.05)
    table = recording.preferences()
    table = table[(table["attribute"] == "predicate") & (table["layer"] == PLANTED_LAYER)].set_index("label")
    row = table.loc[truth.preferred]
    assert row["lift"] == pytest.approx(counts[liked].sum() / counts.sum() / liked.mean())
    assert row["low"] < row["lift"] < row["high"]
    assert row["lift"] == table["lift"].max() and row["lift"] > row["chance_high"]
    assert row["superiority"] > 0.8
    answers = {finding.question: finding.short for finding in find(recording)}
    assert f"“{truth.preferred}” in layer {PLANTED_LAYER}" in answers["Toward what is it biased?"]


def test_the_clean_layer_of_a_planted_recording_stays_even(recording: Recording) -> None:
    clean, planted = recording.layer_metrics().to_dict("records")
    for name in ("coverage", "kl_to_uniform", "gini"):
        assert clean[name] == pytest.approx(clean[f"even_{name}"], rel=0.25), name
    assert planted["kl_to_uniform"] > 20 * planted["even_kl_to_uniform"]


def test_seeds_move_the_parts_and_one_seed_gives_one_recording(tmp_path: Path) -> None:
    first, again, other = (plant_recording(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first.detectors == again.detectors != other.detectors
    assert first.dead == again.dead != other.dead
    pd.testing.assert_frame_equal(Recording(first.path).usage_table(), Recording(again.path).usage_table())
