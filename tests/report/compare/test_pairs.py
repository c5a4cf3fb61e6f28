"""Two recordings side by side: a recording against itself, and against one whose numbers were changed by hand."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from memscope.query.recording import Recording
from memscope.recording.census_file import read_census
from memscope.recording.info import read_info
from memscope.report.compare.pairs import changed_entries, likeness_by_layer, paired_metrics
from tests.synthetic import change_layer


@pytest.fixture
def moved(tiny_recording_path: Path, tmp_path: Path) -> Recording:
    """The tiny recording with all selections of entry 5 given to entry 6, and another coverage in layer 1."""
    path = shutil.copytree(tiny_recording_path, tmp_path / "moved")
    usage = pd.read_parquet(path / "usage.parquet")
    usage.loc[usage["entry"] == 5, "entry"] = 6
    usage.sort_values(["layer", "entry"]).to_parquet(path / "usage.parquet", index=False)
    coverage = read_census(path, read_info(path)).layers[1].by_count.coverage
    change_layer(path, 1, by_count={"coverage": coverage + 0.25})
    return Recording(path)


def test_a_recording_equals_itself(tiny_recording: Recording) -> None:
    assert (changed_entries(tiny_recording, tiny_recording, None)["change"] == 0).all()
    rows = list(likeness_by_layer(tiny_recording, tiny_recording))
    assert [row["layer"] for row in rows] == list(tiny_recording.info.layers)
    assert all(row["jensen_shannon"] == 0 and row["jaccard"] == 1 and row["died"] == row["woke"] == 0 for row in rows)


@pytest.mark.parametrize("layer", [None, 0, 1])
def test_entries_that_changed_most_come_first(layer: int | None, tiny_recording: Recording, moved: Recording) -> None:
    usage = tiny_recording.usage()
    counts = usage.sum(0) if layer is None else usage[tiny_recording.info.layers.index(layer)]
    table = changed_entries(tiny_recording, moved, layer, limit=3).set_index("entry")
    share = counts[5] / counts.sum()
    if counts[5]:
        assert set(table.index[:2]) == {5, 6}
        assert table["change"][5] == pytest.approx(-share) and table["change"][6] == pytest.approx(share)
        assert table["count_b"][5] == 0 and table["count_b"][6] == counts[5] + counts[6]
        assert table["sentence"][5] == tiny_recording.sentences([5])[5]
        assert table["drift_a"][5] == table["drift_b"][5] == pytest.approx(tiny_recording.drift()[5])
    assert len(table) == 3


def test_metrics_stand_beside_one_another_with_their_change(tiny_recording: Recording, moved: Recording) -> None:
    table = paired_metrics(tiny_recording, moved, ["coverage", "unread_share"])
    assert list(table) == [
        "layer",
        *(f"{metric}_{side}" for metric in ("coverage", "unread_share") for side in ("a", "b", "change")),
    ]
    assert table["coverage_change"].tolist() == pytest.approx([0, 0.25])
    assert (table["unread_share_change"] == 0).all()
    assert table["unread_share_a"].tolist() == tiny_recording.reading_metrics()["unread_share"].tolist()
