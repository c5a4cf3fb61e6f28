"""The census over checkpoints: recordings of each, and what changed between them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from memscope.base.errors import InputError
from memscope.query.recording import Recording
from memscope.record.checkpoints import record_checkpoints
from memscope.record.loop import RecordOptions
from memscope.report.compare.history import write_history

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def history(tiny_run_path: Path, corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("history")
    recorded = record_checkpoints(tiny_run_path, corpus_dir / "valid.jsonl", out, RecordOptions(), "cpu")
    return write_history([Recording(path) for path in recorded], out)


def recordings(history: Path) -> list[Recording]:
    return [Recording(history.parent / f"step-{step:08d}") for step in (10, 20)]


def test_every_checkpoint_is_a_recording_of_its_own_model(history: Path) -> None:
    first, last = recordings(history)
    assert (first.info.step, last.info.step) == (10, 20)
    assert first.info.fingerprint != last.info.fingerprint
    assert first.info.corpus_sha256 == last.info.corpus_sha256


def test_changes_between_checkpoints_equal_sets_of_entries(history: Path) -> None:
    table = pd.read_parquet(history).set_index(["step", "layer"])
    first, last = recordings(history)
    for axis, layer in enumerate(first.info.layers):
        before, after = first.usage()[axis], last.usage()[axis]
        was, now = set(np.flatnonzero(before)), set(np.flatnonzero(after))
        row = table.loc[(20, layer)]
        assert (row["woke"], row["died"]) == (len(now - was), len(was - now))
        assert row["rank_correlation"] == pytest.approx(spearmanr(before, after).statistic)
        assert row["coverage"] == pytest.approx(len(now) / 64)
        assert row["drift_used"] == pytest.approx(np.median([last.drift()[entry] for entry in now]))
        start = table.loc[(10, layer)]
        assert (start["woke"], start["died"]) == (0, 0) and np.isnan(start["rank_correlation"])
    assert table.loc[20]["loss"].nunique() == 1
    assert table.loc[20]["loss"].iloc[0] == pytest.approx(last.census.loss)


def test_entries_say_when_they_woke_and_were_used_last(history: Path) -> None:
    table = pd.read_parquet(history.parent / "history_entries.parquet")
    opened = recordings(history)
    counts, layers = np.stack([recording.usage() for recording in opened]), opened[0].info.layers
    drifts = [recording.drift() for recording in opened]
    assert len(table) == int((counts.sum(0) > 0).sum())
    for row in table.itertuples():
        axis = layers.index(row.layer)
        own = counts[:, axis, row.entry].tolist()
        used = [step for step, count in zip((10, 20), own, strict=True) if count]
        assert (row.first_step, row.last_step) == (used[0], used[-1])
        assert row.count.tolist() == own and row.steps.tolist() == [10, 20]
        assert row.drift == pytest.approx([drift[row.entry] for drift in drifts])


def test_the_figure_and_the_table_are_written(history: Path) -> None:
    folder = history.parent
    assert (folder / "figures" / "history.svg").read_text().lstrip().startswith("<?xml")
    assert (folder / "figures" / "history.png").read_bytes().startswith(b"\x89PNG")
    assert len(pd.read_csv(folder / "history.csv")) == len(pd.read_parquet(history))


def test_bad_input_is_one_line(cli, tiny_run_path: Path, corpus_dir: Path, tmp_path: Path) -> None:
    corpus = corpus_dir / "valid.jsonl"
    wrong = cli("record", tiny_run_path, "--corpus", corpus, "--out", tmp_path, "--checkpoints", "some")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1) and "'some' is not one of 'newest', 'all'" in wrong.err
    with pytest.raises(InputError, match="keep_checkpoints"):
        record_checkpoints(tmp_path / "none", corpus, tmp_path / "out", RecordOptions(), "cpu")
