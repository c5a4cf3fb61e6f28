"""Readability finds planted entries, agrees with scores made row by row, and is even where there is nothing to read."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from memscope.base.parquet import fixed_lists, read_parquet
from memscope.census import readability
from memscope.census.anomalies.looks import row_text
from memscope.census.readability import LEAST, RULES, layer_readability
from memscope.census.strata import divide_recording
from memscope.query.recording import Recording
from memscope.recording.info import Part, RecordingInfo
from memscope.recording.part_reader import read_columns, read_part
from memscope.testing.recordings import PLANTED_LAYER, plant_recording


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recording, int]:
    truth = plant_recording(tmp_path_factory.mktemp("planted") / "planted", seed=0)
    return Recording(truth.path), next(iter(truth.detectors))


def test_a_detector_is_read_off_its_token_and_others_are_not(planted: tuple[Recording, int]) -> None:
    recording, detector = planted
    table = recording.sql("SELECT * FROM readability").set_index(["layer", "entry"])
    own = table.loc[PLANTED_LAYER, detector]
    assert (own["readability"], own["balanced_accuracy"], own["purity"]) == (1, 1, 1)
    rest = table.drop((PLANTED_LAYER, detector))
    assert abs(rest["readability"].mean() - 0.5) < 0.02
    assert abs(table["control"].mean() - 0.5) < 0.02
    assert (table["tokens"] >= 2 * LEAST).all()


@pytest.mark.parametrize("layer", [0, PLANTED_LAYER])
def test_scores_are_those_of_rules_asked_row_by_row(planted: tuple[Recording, int], layer: int) -> None:
    recording, detector = planted
    info, strata = recording.info, divide_recording(recording.path, recording.info)
    text = row_text(recording.path, info)
    found = layer_readability(recording.path, info, layer, text, strata).set_index("entry")
    rows = [read_part(recording.path, part, info) for part in info.parts]
    chosen = np.concatenate([part.indices[:, info.layers.index(layer)] for part in rows])
    half = np.concatenate(
        [strata.cell_of(part.doc, first) for part, first in zip(rows, info.first_rows(), strict=True)]
    )
    half = half % strata.folds % 2
    entries = [*found.index[:4], *([detector] if layer == PLANTED_LAYER else [])]
    for entry in entries:
        fires = (chosen == entry).any(1)
        naive = [by_hand(fires, half == number, text.token, text.bigram) for number in (0, 1)]
        assert found.loc[entry, "readability"] == pytest.approx(np.mean([auroc for auroc, _ in naive]))
        assert found.loc[entry, "balanced_accuracy"] == pytest.approx(np.mean([accuracy for _, accuracy in naive]))


def by_hand(fires: np.ndarray, learned: np.ndarray, token: np.ndarray, pair: np.ndarray) -> tuple[float, float]:
    """AUROC and balanced accuracy of one entry's rule, row by row."""
    rules = {}
    for name, label in (("token", token), ("pair", pair)):
        fired, everywhere = (
            np.bincount(label[learned & mask], minlength=label.max() + 1) for mask in (fires, fires | True)
        )
        p = fired / max(fires[learned].sum(), 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.where(fired > 1, p * np.log(p * learned.sum() / everywhere), 0)
            value = fired / everywhere
        best = [one for one in np.argsort(-score, kind="stable")[:RULES] if score[one] > 0]
        rules[name] = {one: value[one] for one in best}
        if name == "token":
            share = value
    of_pair = dict(zip(pair.tolist(), token.tolist(), strict=True))
    rules["pair"] = {one: value for one, value in rules["pair"].items() if value > share[of_pair[one]]}
    asked = ~learned
    score = np.array(
        [
            rules["pair"].get(two, rules["token"].get(one, -1.0))
            for one, two in zip(token[asked].tolist(), pair[asked].tolist(), strict=True)
        ]
    )
    return roc_auc_score(fires[asked], score), balanced_accuracy_score(fires[asked], score >= 0)


def test_an_entry_of_a_pair_is_read_by_the_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant_recording(tmp_path / "clean", seed=1, effects=())
    recording = Recording(planted.path)
    info, strata = recording.info, divide_recording(recording.path, recording.info)
    text = row_text(recording.path, info)
    busiest = np.bincount(text.bigram).argmax()

    def with_a_pair(folder: Path, about: RecordingInfo, part: Part, columns: list[str]) -> pa.Table:
        table, first = read_columns(folder, about, part, columns), info.first_rows()[info.parts.index(part)]
        indices = np.stack(table["l0_indices"].to_pylist())
        at = np.arange(first, first + len(indices))
        indices[indices == 7] = 8
        indices[text.bigram[at] == busiest, 0] = 7
        return pa.table({columns[0]: fixed_lists(indices, table.schema.field(0).type.value_type)})

    monkeypatch.setattr(readability, "LEAST", 1)
    monkeypatch.setattr("memscope.census.readability.read_columns", with_a_pair)
    own = layer_readability(recording.path, info, 0, text, strata).set_index("entry").loc[7]
    assert own["readability"] > 0.9


def test_the_file_has_the_columns_that_are_promised(planted: tuple[Recording, int]) -> None:
    table = read_parquet(planted[0].path / "readability.parquet")
    assert table.column_names == list(readability.COLUMNS)
    assert table["entry"].null_count == 0
