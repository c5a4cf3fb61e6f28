"""A recording holds what the model selected, also when it was interrupted on the way."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_config, untrained_run

from memscope import record as record_module
from memscope.capture import capture_memory
from memscope.checkpoint import LoadedRun
from memscope.corpus import PackedCorpus
from memscope.errors import InputError
from memscope.evaluate import evaluate
from memscope.files import read_json
from memscope.query import Recording
from memscope.record import record
from memscope.store import part_is_whole, read_info, read_part, write_info

AGGREGATES = ("usage.parquet", "contexts.parquet", "decodings.parquet", "documents.parquet", "census.json")


def contents(recording: Path) -> dict[str, bytes]:
    """Every file of a recording but recording.json, which has a clock in it."""
    files = [path for path in recording.rglob("*") if path.is_file() and path.name != "recording.json"]
    return {str(path.relative_to(recording)): path.read_bytes() for path in files}


def record_tiny(run: LoadedRun, corpus_dir: Path, recording: Path) -> None:
    record(run, corpus_dir / "valid.jsonl", recording, part_tokens=200)


@pytest.fixture(scope="module")
def whole(tiny_run: LoadedRun, corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted recording in small parts."""
    recording = tmp_path_factory.mktemp("record") / "whole"
    record_tiny(tiny_run, corpus_dir, recording)
    return recording


def test_every_token_of_the_corpus_is_recorded_once_and_in_order(whole: Path, tiny_corpus: PackedCorpus) -> None:
    info = read_info(whole)
    rows = [read_part(whole, part, info) for part in info.parts]
    assert len(rows) > 4
    np.testing.assert_array_equal(np.concatenate([part.token for part in rows]), tiny_corpus.tokens)
    lengths = np.diff(tiny_corpus.starts)
    np.testing.assert_array_equal(np.concatenate([part.doc for part in rows]), np.repeat(range(6), lengths))
    np.testing.assert_array_equal(np.concatenate([part.pos for part in rows]), np.concatenate([*map(range, lengths)]))
    losses = np.concatenate([part.loss for part in rows])
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(losses)), tiny_corpus.starts[1:] - 1)  # ends of documents


def test_recorded_selections_are_those_of_a_direct_capture(
    whole: Path, tiny_run: LoadedRun, tiny_corpus: PackedCorpus
) -> None:
    info = read_info(whole)
    first = read_part(whole, info.parts[0], info)
    tokens = torch.from_numpy(tiny_corpus.tokens[:64].astype(np.int64))[None]
    with capture_memory(tiny_run.model) as captured:
        tiny_run.model(tokens)
    for axis, layer in enumerate(info.layers):
        np.testing.assert_array_equal(first.indices[:64, axis], captured[layer].indices[0].numpy())
        np.testing.assert_allclose(first.gate[:64, axis], captured[layer].gate_scores[0].numpy(), atol=2e-3)
        np.testing.assert_allclose(first.read[:64, axis], captured[layer].read_weights[0].numpy(), atol=2e-3)


def test_recorded_loss_and_usage_are_those_of_evaluate(
    whole: Path, tiny_run: LoadedRun, tiny_corpus: PackedCorpus
) -> None:
    result, usage = evaluate(tiny_run.model, tiny_corpus, tiny_run.tokenizer, None, "float32")
    census = read_json(whole / "census.json")
    assert census["loss"] == pytest.approx(result.loss, rel=1e-6)
    assert census["tokens"] == len(tiny_corpus.tokens)
    np.testing.assert_array_equal(Recording(whole).usage(), usage.count)


@pytest.mark.parametrize("stop_after", [1, 4])
def test_an_interrupted_recording_is_completed_to_the_same_bytes(
    tiny_run: LoadedRun,
    corpus_dir: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: int,
) -> None:
    recording = tmp_path / "recording"
    write_part = record_module.write_part

    def failing(folder: Path, number: int, *rest: Any) -> Any:
        if number == stop_after:
            (folder / "tokens" / ".part-000099.parquet.1.tmp").write_bytes(b"half a part")
            raise KeyboardInterrupt
        return write_part(folder, number, *rest)

    monkeypatch.setattr(record_module, "write_part", failing)
    with pytest.raises(KeyboardInterrupt):
        record_tiny(tiny_run, corpus_dir, recording)
    assert len(read_info(recording).parts) == stop_after
    with pytest.raises(InputError, match="unfinished"):
        Recording(recording)

    made = []
    monkeypatch.setattr(record_module, "write_part", lambda *a: made.append(a[1]) or write_part(*a))
    record_tiny(tiny_run, corpus_dir, recording)
    assert made[0] == stop_after  # what was finished is not made again
    assert contents(recording) == contents(whole)
    assert read_info(recording).parts == read_info(whole).parts


def test_a_recording_interrupted_in_its_aggregates_is_completed(
    tiny_run: LoadedRun, corpus_dir: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(record_module, "write_decodings", failing)
        record_tiny(tiny_run, corpus_dir, tmp_path / "recording")
    assert not read_info(tmp_path / "recording").complete
    record_tiny(tiny_run, corpus_dir, tmp_path / "recording")
    assert contents(tmp_path / "recording") == contents(whole)


def test_an_interruption_while_catching_up_loses_no_finished_part(
    tiny_run: LoadedRun, corpus_dir: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = shutil.copytree(whole, tmp_path / "recording")
    info = read_info(recording)
    write_info(recording, info.model_copy(update={"complete": False, "parts": info.parts[:5]}))
    read_part, read = record_module.read_part, []

    def failing(*arguments: Any) -> Any:
        read.append(1)
        if len(read) == 3:
            raise KeyboardInterrupt
        return read_part(*arguments)

    monkeypatch.setattr(record_module, "read_part", failing)
    with pytest.raises(KeyboardInterrupt):
        record_tiny(tiny_run, corpus_dir, recording)
    assert len(read_info(recording).parts) == 5


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_part_is_made_again(
    tiny_run: LoadedRun, corpus_dir: Path, whole: Path, tmp_path: Path, damage: str
) -> None:
    recording = shutil.copytree(whole, tmp_path / "recording")
    part = recording / "tokens" / "part-000002.parquet"
    part.write_bytes(part.read_bytes()[:100]) if damage == "truncate" else part.unlink()
    record_tiny(tiny_run, corpus_dir, recording)
    assert all(part_is_whole(recording, part) for part in read_info(recording).parts)
    assert contents(recording) == contents(whole)


def test_a_complete_recording_is_returned_untouched(
    tiny_run: LoadedRun, corpus_dir: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    monkeypatch.setattr(record_module, "run_windows", None)  # calling it would fail
    info = record(tiny_run, corpus_dir / "valid.jsonl", whole, part_tokens=200)
    assert info == read_info(whole)
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_parts_recorded_in_other_sizes_give_the_same_census(
    tiny_recording_path: Path, whole: Path, tiny_recording: Recording
) -> None:
    assert len(tiny_recording.info.parts) < len(read_info(whole).parts)
    for name in ("usage.parquet", "contexts.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(whole / name), pd.read_parquet(tiny_recording_path / name))


def test_max_tokens_stops_a_recording(tiny_run: LoadedRun, corpus_dir: Path, tmp_path: Path) -> None:
    info = record(tiny_run, corpus_dir / "valid.jsonl", tmp_path / "short", max_tokens=100, part_tokens=50)
    assert info.rows == info.total_tokens == 100
    assert Recording(tmp_path / "short").documents["rows"].tolist() == [100]


def test_another_corpus_or_model_is_refused(
    tiny_run: LoadedRun, slot_run: LoadedRun, corpus_dir: Path, tmp_path: Path, whole: Path
) -> None:
    with pytest.raises(InputError, match="another corpus, total_tokens"):
        record(tiny_run, corpus_dir / "train.jsonl", whole, part_tokens=200)
    with pytest.raises(InputError, match=r"holds a recording with another model.* choose another --out"):
        record(slot_run, corpus_dir / "valid.jsonl", whole, part_tokens=200)


def test_a_baseline_has_nothing_to_record(ffn_run: LoadedRun, corpus_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="FFN baseline has no memory"):
        record(ffn_run, corpus_dir / "valid.jsonl", tmp_path / "recording")
    assert not (tmp_path / "recording").exists()


def test_a_recording_can_be_read_without_its_run(corpus_dir: Path, tmp_path: Path) -> None:
    run = untrained_run(tiny_config(corpus_dir), tmp_path / "run")
    record(run, corpus_dir / "valid.jsonl", tmp_path / "recording", max_tokens=64)
    shutil.rmtree(tmp_path / "run")
    moved = (tmp_path / "recording").rename(tmp_path / "elsewhere")
    recording = Recording(moved)
    assert recording.entry(0).sentence
    assert len(recording.trace(0).tokens) == 64


def test_a_planted_entry_is_found_in_the_recording(corpus_dir: Path, tmp_path: Path) -> None:
    # Layer 0 is wired so that one token, and no other, selects entry 9 with a high score: its embedding is the
    # gate's query, and key 9 points along it.
    config = tiny_config(corpus_dir, memory={"gate": "full", "knowledge_dim": 32, "score_fn": "sigmoid"})
    run = untrained_run(config, tmp_path / "run")
    token = run.tokenizer.encode(" born")[0]
    model = run.model
    with torch.no_grad():
        direction = torch.nn.functional.normalize(model.embed.weight[token], dim=0)
        model.embed.weight[token] = 5 * direction  # drowns what attention adds
        model.blocks[0].memory.gate.proj.weight.copy_(torch.eye(32))
        model.blocks[0].memory.gate.keys[0] *= 0.01
        model.blocks[0].memory.gate.keys[0, 9] = direction
    record(run, corpus_dir / "valid.jsonl", tmp_path / "recording")
    best = Recording(tmp_path / "recording").contexts(entry=9, layer=0)
    assert len(best) == 8
    assert best["token"].tolist() == [" born"] * 8
