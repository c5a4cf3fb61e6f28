"""Samples of gate and read, against the whole recording where it is small."""

from pathlib import Path

import numpy as np
import pytest

from memscope.query import read_sample as read_sample_module
from memscope.query.read_sample import head_shares, read_sample, unread_entries
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun
from memscope.stats.usage import UNREAD_SHARE
from tests.synthetic import make_rows


def test_a_small_recording_is_sampled_as_a_whole(tiny_recording: Recording) -> None:
    sample = read_sample(tiny_recording, 1)
    assert sample.tokens == tiny_recording.info.rows  # it is smaller than one row group
    assert np.allclose(sample.gate.sum(-1), 1, atol=1e-3)
    counts = np.bincount(sample.entries.ravel(), minlength=64)
    assert counts.tolist() == tiny_recording.usage()[tiny_recording.info.layers.index(1)].tolist()


def test_unread_entries_are_counted(tiny_recording: Recording) -> None:
    sample = read_sample(tiny_recording, 1)
    table = unread_entries(tiny_recording, sample, limit=64)
    share = tiny_recording.reading_metrics().set_index("layer")["unread_share"][1]
    assert (sample.read < UNREAD_SHARE).mean() == pytest.approx(share, abs=0.02)
    assert table["unread"].is_monotonic_decreasing
    assert table["unread"].sum() == (sample.read < UNREAD_SHARE).sum()
    assert (table["selections"] >= table["unread"]).all()


def test_an_entry_that_heads_read_with_both_signs_is_unread_but_not_by_norm(
    tiny_recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows([50], entries=64, beside=True)
    assert rows.read_norm is not None
    rows.read[:, 1, 2] = 0  # what the heads add they subtract
    rows.read_norm[:, 1, 2] = 1
    monkeypatch.setattr(read_sample_module, "read_rows", lambda *_: rows)
    sites = tuple(site.model_copy(update={"signed_reads": True}) for site in tiny_recording.info.sites)
    monkeypatch.setattr(tiny_recording, "info", tiny_recording.info.model_copy(update={"sites": sites}))
    sample = read_sample(tiny_recording, 1)
    np.testing.assert_allclose(sample.norm.sum(-1), 1, atol=1e-3)
    table = unread_entries(tiny_recording, sample, limit=64)
    assert table["unread"].sum() == (sample.read < UNREAD_SHARE).sum() >= 50
    assert table["unread_by_norm"].sum() <= (sample.norm < UNREAD_SHARE).sum() < table["unread"].sum()


def test_heads_are_counted_where_they_were_recorded(slot_run: LoadedRun, corpus_dir: Path, tmp_path: Path) -> None:
    options = RecordOptions(max_tokens=200, head_weights=True)
    record(OwnRun(slot_run), corpus_dir / "valid.jsonl", tmp_path / "heads", options)
    recording = Recording(tmp_path / "heads")
    heads = head_shares(recording, 0)
    assert heads.shape == (recording.info.sites[0].read_heads, 50)
    assert (heads.sum(1) == 200 * recording.info.selected).all()
