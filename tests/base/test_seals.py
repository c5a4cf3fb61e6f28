"""No changed bit passes silently: 120 seeded flips over all files of a run and of its recording."""

import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memscope.base import seals
from memscope.base.errors import DamageError, InputError
from memscope.base.parquet import write_table
from memscope.base.seals import hashes, read_sealed, write_sealed
from memscope.config.load import dump_config
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.recording.info import read_info
from memscope.recording.part_reader import SelectionReader, read_part
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun, list_checkpoints, load_run, read_checkpoint
from memscope.run.metrics_log import read_metrics
from memscope.run.provenance import start_entries, start_table
from memscope.text.corpus import pack_corpus
from memscope.train.loop import train
from tests.conftest import tiny_config

FLIPS = 60
"""In each of the two folders."""
VIEWS = ("usage", "bias", "contexts", "firing", "neighbours", "titles", "decodings", "bank", "docs")


def read_all_of_run(path: Path) -> str:
    """Everything that commands take from a run, as one hash."""
    run = load_run(path)
    found: list[Any] = [run.fingerprint, dump_config(run.config), run.tokenizer.identity]
    found += [start_entries(run).tobytes(), start_table(run).to_pylist(), read_metrics(path / "metrics.jsonl")]
    found += [sorted(read_sealed(path / "run.json", "train again", required=False).items())[:20]]
    for checkpoint in list_checkpoints(path):
        seals.check_file(
            checkpoint / "optimizer.safetensors",
            read_sealed(checkpoint / "state.json", "")["files"]["optimizer.safetensors"],
            "",
        )
        step, state = read_checkpoint(checkpoint)
        found += [step, [tensor.numpy().tobytes() for tensor in state.values()], load_run(path, None, checkpoint).step]
    return digest(found)


def read_all_of_recording(path: Path) -> str:
    """Everything that commands take from a recording, as one hash."""
    recording = Recording(path)
    info = recording.info
    found: list[Any] = [info.model_dump(), recording.census, recording.run_summary, recording.config]
    found += [recording.training_curve().to_csv(), recording.map_info, recording.map(), recording.tokenizer.identity]
    found += [recording.sql(f"SELECT * FROM {view}").to_csv() for view in VIEWS]
    reader = SelectionReader(path, info)
    found += [column.tobytes() for layer in info.layers for column in reader.read(layer, 0, info.knowledge_num - 1)]
    found += [vars(read_part(path, part, info)) for part in info.parts]
    return digest(found)


def digest(found: list[Any]) -> str:
    with np.printoptions(threshold=10**9):
        return hashlib.sha256(repr(found).encode()).hexdigest()


def flip(path: Path, chance: random.Random) -> bytes:
    """Change one bit of a file; returns what it was."""
    content = path.read_bytes()
    changed = bytearray(content)
    changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(changed)
    return content


@pytest.fixture
def recording(tiny_recording_path: Path, tmp_path: Path) -> Path:
    """The tiny recording with a map."""
    path = shutil.copytree(tiny_recording_path, tmp_path / "recording")
    entry = np.arange(64, dtype=np.uint32)
    write_table(path / "map.parquet", {"entry": entry, "x": entry / 2, "y": entry * 1.5, "cluster": entry % 2})
    write_sealed(path / "map.json", {"clusters": [], "files": hashes(path, ["map.parquet"])})
    return path


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["run", "recording"])
def test_a_flipped_bit_is_an_error_or_changes_nothing(
    folder: str, tiny_run_path: Path, recording: Path, tmp_path: Path
) -> None:
    read: Callable[[Path], str]
    if folder == "run":
        path, read = shutil.copytree(tiny_run_path, tmp_path / "run"), read_all_of_run
    else:
        path, read = recording, read_all_of_recording
    files = sorted(file for file in path.rglob("*") if file.is_file())
    chance, expected, refused, silent = random.Random(19), read(path), 0, []
    for number in range(FLIPS):
        file = files[number % len(files)]
        before = flip(file, chance)
        seals._checked.clear()  # every command is a process of its own
        try:
            if read(path) != expected:
                silent.append((number, file.name))
        except InputError:  # the command line prints it as one line
            refused += 1
        finally:
            file.write_bytes(before)
    assert silent == []
    assert refused > FLIPS * 0.9  # a bit of a hash's own name, say, may change nothing
    seals._checked.clear()
    assert read(path) == expected


def test_a_flipped_bit_of_a_packed_corpus_is_packed_again(
    tiny_run: LoadedRun, corpus_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def pack() -> str:
        seals._checked.clear()
        corpus = pack_corpus(corpus_dir / "valid.jsonl", tiny_run.tokenizer, tmp_path)
        return digest([corpus.tokens.tobytes(), corpus.starts.tobytes(), corpus.titles, corpus.groups])

    expected, chance = pack(), random.Random(0)
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    assert {file.name for file in files} == {"meta.json", "documents.parquet", "tokens.bin"}
    for file in files * 4:
        flip(file, chance)
        assert pack() == expected
        assert file.is_file()
    assert capsys.readouterr().err.count("packing the corpus again") == 12


@pytest.mark.slow
def test_recording_again_makes_anew_what_is_damaged(
    tiny_run: LoadedRun, tiny_recording_path: Path, corpus_dir: Path, tmp_path: Path
) -> None:
    path, chance = shutil.copytree(tiny_recording_path, tmp_path / "recording"), random.Random(1)
    whole = {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != "recording.json"}

    def again() -> None:
        record(OwnRun(tiny_run), corpus_dir / "valid.jsonl", path, RecordOptions(part_tokens=500))
        read_all_of_recording(path)
        assert {file: file.read_bytes() for file in whole} == whole

    for file in whole:  # all at once
        flip(file, chance)
    again()
    files = read_info(path).files
    info = path / "recording.json"
    info.write_text(info.read_text().replace('"rows": ', '"rows": 1', 1))
    with pytest.raises(DamageError, match="record again"):
        read_info(path)
    again()
    assert read_info(path).files == files


@pytest.mark.slow
def test_training_goes_on_from_the_newest_whole_checkpoint(
    corpus_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    often = {"steps": 6, "save_interval": 2, "keep_checkpoints": 3, "eval_interval": 6, "eval_tokens": 64}
    config = tiny_config(corpus_dir, train=often)
    train(config, run, device="cpu")
    whole = load_run(run).fingerprint
    newest = list_checkpoints(run)[-1]
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        flip(newest / name, random.Random(3))
        seals._checked.clear()
        capsys.readouterr()
        train(config, run, resume=True, device="cpu")
        said = capsys.readouterr().err
        assert "step-00000006" in said and "going on from an older checkpoint" in said
        assert [folder.name for folder in list_checkpoints(run)] == ["step-00000002", "step-00000004", "step-00000006"]
        assert load_run(run).fingerprint == whole
    assert (run / "checkpoints" / "damaged-step-00000006").is_dir()
    for folder in list_checkpoints(run):
        flip(folder / "model.safetensors", random.Random(5))
    seals._checked.clear()
    with pytest.raises(InputError, match="no checkpoint is whole"):
        train(config, run, resume=True, device="cpu")


def test_runs_without_hashes_load(tiny_run_path: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run_path, tmp_path / "run")
    (run / "files.json").unlink()
    flip(run / "bank_init.safetensors", random.Random(2))  # nobody can know
    assert load_run(run).fingerprint == load_run(tiny_run_path).fingerprint
