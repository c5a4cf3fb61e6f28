"""A run or a recording that was killed at any moment ends exactly like one that was not."""

import importlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memscope.base.errors import InputError
from memscope.config.load import Config
from memscope.record.loop import RecordOptions, record
from memscope.recording.info import read_info
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import list_checkpoints, load_run
from memscope.run.metrics_log import read_metrics
from memscope.train.loop import train
from tests.conftest import tiny_config
from tests.processes import FRESH

pytestmark = pytest.mark.slow

STEPS = 12
CHANGING = {"tokens_per_second", "peak_rss_bytes"}  # and everything in seconds


def make_config(corpus_dir: Path) -> Config:
    often = {"save_interval": 3, "eval_interval": 5, "log_interval": 1, "eval_tokens": 256}
    return tiny_config(
        corpus_dir,
        model={"max_seq_len": 32},
        train={"steps": STEPS, "batch_size": 2, "accumulation_steps": 2, "warmup_iters": 4, **often},
    )


def start(config: Config, run: Path) -> Any:
    process = FRESH.Process(target=train, args=(config, run), kwargs={"resume": True, "device": "cpu"})
    process.start()
    return process


def finish(config: Config, run: Path) -> None:
    assert ended(start(config, run)) == 0


def ended(process: Any) -> int:
    """The exit code of a process, once it has ended."""
    process.join()
    return int(process.exitcode)


def killed(process: Any, wanted: Callable[[], bool], delay: float) -> bool:
    """Kill a process ``delay`` seconds after ``wanted`` came true; false if it had ended before."""
    while process.is_alive() and not wanted():
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    return ended(process) == -signal.SIGKILL


def die_in(module: str, function: str, call: int) -> None:
    """Have this process killed on entering a function for the ``call``-th time."""
    owner = importlib.import_module(module)
    original, calls = getattr(owner, function), 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, function, deadly)


def train_and_die(config: Config, run: Path, module: str, function: str, call: int) -> None:
    die_in(module, function, call)
    train(config, run, resume=True, device="cpu")


def kill_in(config: Config, run: Path, module: str, function: str, call: int) -> None:
    process = FRESH.Process(target=train_and_die, args=(config, run, module, function, call))
    process.start()
    assert ended(process) == -signal.SIGKILL


def results(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without clocks and memory."""
    return [
        {key: value for key, value in line.items() if key not in CHANGING and not key.endswith("_seconds")}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def assert_same_run(run: Path, reference: Path) -> None:
    assert results(run) == results(reference)
    assert (run / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
    assert [folder.name for folder in list_checkpoints(run)] == [f.name for f in list_checkpoints(reference)]
    assert json.loads((run / "run.json").read_text())["steps"] == STEPS


@pytest.fixture(scope="module")
def reference(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run."""
    run = tmp_path_factory.mktemp("resume") / "reference"
    finish(make_config(corpus_dir), run)
    return run


def test_the_reference_has_every_line_once(reference: Path) -> None:
    lines = results(reference)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [0, 5, 10, 12]
    assert [line["step"] for line in lines if line["kind"] == "sample"] == [5, 10, 12, 12, 12]


@pytest.mark.parametrize("seed", [0, 1])
def test_run_killed_at_random_moments_ends_like_an_uninterrupted_one(
    corpus_dir: Path, reference: Path, tmp_path: Path, seed: int
) -> None:
    config, run, chance = make_config(corpus_dir), tmp_path / "run", random.Random(seed)
    metrics, kills = run / "metrics.jsonl", 0
    for lines in sorted(chance.sample(range(2, 18), 4)):

        def logged(lines: int = lines) -> bool:
            return metrics.is_file() and metrics.read_bytes().count(b"\n") >= lines

        kills += killed(start(config, run), logged, chance.uniform(0, 0.05))
    finish(config, run)
    assert kills >= 2  # a run that was done before the signal came would prove nothing
    assert_same_run(run, reference)


@pytest.mark.parametrize(
    ("module", "function", "call"),
    [
        pytest.param("memscope.run.checkpoint", "save_file", 6, id="between the model and the optimiser of the third"),
        pytest.param("memscope.run.checkpoint", "write_sealed", 4, id="before a checkpoint holds its step number"),
        pytest.param("memscope.run.checkpoint", "write_sealed", 5, id="before a list of hashes names a new model"),
        pytest.param("os", "link", 2, id="before run/model.safetensors points at a new checkpoint"),
        pytest.param("os", "link", 4, id="before run/model.safetensors points at the last checkpoint"),
        pytest.param("memscope.train.prepare", "pack_corpus", 1, id="before the corpus is packed"),
        pytest.param("memscope.train.loop", "write_sealed", 1, id="before the summary"),
    ],
)
def test_run_killed_at_a_delicate_moment_ends_like_an_uninterrupted_one(
    corpus_dir: Path, reference: Path, tmp_path: Path, module: str, function: str, call: int
) -> None:
    config, run = make_config(corpus_dir), tmp_path / "run"
    kill_in(config, run, module, function, call)
    finish(config, run)
    assert_same_run(run, reference)


@pytest.fixture(scope="module")
def killed_run(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its third checkpoint, after step 9."""
    run = tmp_path_factory.mktemp("resume") / "killed"
    kill_in(make_config(corpus_dir), run, "memscope.run.checkpoint", "save_file", 6)
    return run


@pytest.fixture
def half_run(killed_run: Path, tmp_path: Path) -> Path:
    """A copy of the killed run, to be damaged further."""
    return shutil.copytree(killed_run, tmp_path / "half")


@pytest.mark.parametrize(
    "torn", [b'{"kind": "train", "step": 10, "lo', '{"kind": "sample", "step": 9, "text": "é'.encode()[:-1]]
)
def test_a_torn_last_line_and_a_stale_temporary_folder_do_no_harm(
    corpus_dir: Path, reference: Path, half_run: Path, torn: bytes
) -> None:
    with (half_run / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    stale = half_run / "checkpoints" / ".step-00000099.12345678.unfinished"
    stale.mkdir()
    (stale / "model.safetensors").write_bytes(b"half a file")
    finish(make_config(corpus_dir), half_run)
    assert_same_run(half_run, reference)


def test_metrics_with_any_characters_are_read_line_by_line(tmp_path: Path) -> None:
    lines = [{"kind": "sample", "step": 1, "text": f"a{mark}b"} for mark in ("\u2028", "\x85", "\n", "\r", "\x0c", "é")]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert read_metrics(path) == lines


def test_a_damaged_line_in_the_middle_of_metrics_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "eval", "step": 1}\n{"kind": \n{"kind": "eval", "step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: not JSON; the file was damaged"):
        read_metrics(path)


def test_a_killed_run_can_be_loaded_from_its_newest_checkpoint(half_run: Path) -> None:
    assert [folder.name for folder in list_checkpoints(half_run)] == ["step-00000003", "step-00000006"]
    newest = list_checkpoints(half_run)[-1] / "model.safetensors"
    assert load_run(half_run).path == half_run
    assert (half_run / "model.safetensors").read_bytes() == newest.read_bytes()


def test_resuming_a_finished_run_changes_nothing(corpus_dir: Path, reference: Path) -> None:
    before = results(reference), (reference / "model.safetensors").read_bytes()
    train(make_config(corpus_dir), reference, resume=True, device="cpu")
    assert (results(reference), (reference / "model.safetensors").read_bytes()) == before


@pytest.mark.parametrize("name", ["optimizer.safetensors", "state.json", "model.safetensors"])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    corpus_dir: Path, reference: Path, half_run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = list_checkpoints(half_run)[-1] / name
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    train(make_config(corpus_dir), half_run, resume=True, device="cpu")
    told = capsys.readouterr().err
    assert f"step-00000006/{name}" in told and "going on from an older checkpoint" in told
    assert_same_run(half_run, reference)
    assert (half_run / "checkpoints" / "damaged-step-00000006" / name).is_file()


# --- recordings -------------------------------------------------------------------------------------------------------


def record_here(run: Path, corpus: Path, recording: Path, *death: Any) -> None:
    """Record in parts of about 100 tokens; with ``death``, be killed there."""
    if death:
        die_in(*death)
    record(OwnRun(load_run(run)), corpus, recording, RecordOptions(part_tokens=100))


def start_recording(run: Path, corpus_dir: Path, recording: Path, *death: Any) -> Any:
    process = FRESH.Process(target=record_here, args=(run, corpus_dir / "valid.jsonl", recording, *death))
    process.start()
    return process


def finish_recording(run: Path, corpus_dir: Path, recording: Path) -> None:
    assert ended(start_recording(run, corpus_dir, recording)) == 0


def contents(recording: Path) -> dict[str, bytes]:
    """Every file, hidden ones too, but for recording.json, which has a clock in it."""
    files = [path for path in recording.rglob("*") if path.is_file() and path.name != "recording.json"]
    return {str(path.relative_to(recording)): path.read_bytes() for path in files}


def assert_same_recording(recording: Path, reference: Path) -> None:
    found, expected = contents(recording), contents(reference)
    assert sorted(found) == sorted(expected)  # nothing missing, and nothing left lying about
    assert [name for name in found if found[name] != expected[name]] == []
    assert read_info(recording).parts == read_info(reference).parts
    assert read_info(recording).complete


@pytest.fixture(scope="module")
def recorded(tiny_run_path: Path, corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted recording."""
    recording = tmp_path_factory.mktemp("resume") / "recorded"
    finish_recording(tiny_run_path, corpus_dir, recording)
    return recording


@pytest.mark.parametrize("seed", [0, 1])
def test_recording_killed_at_random_moments_ends_like_an_uninterrupted_one(
    tiny_run_path: Path, corpus_dir: Path, recorded: Path, tmp_path: Path, seed: int
) -> None:
    recording, chance, kills = tmp_path / "recording", random.Random(seed), 0
    for parts in [*sorted(chance.sample(range(14), 3)), 99, 99]:  # while recording, then while counting

        def recorded_parts(parts: int = parts) -> bool:
            return len(list(recording.glob("selections/part-*"))) >= min(parts, 14)

        process = start_recording(tiny_run_path, corpus_dir, recording)
        kills += killed(process, recorded_parts, chance.uniform(0, 0.01 if parts < 99 else 0.4))
    finish_recording(tiny_run_path, corpus_dir, recording)
    assert kills >= 2  # a recording that was done before the signal came would prove nothing
    assert_same_recording(recording, recorded)


@pytest.mark.parametrize(
    ("module", "function", "call"),
    [
        pytest.param("memscope.recording.parts", "sha256_file", 4, id="between the two files of the second part"),
        pytest.param("memscope.record.loop", "write_progress", 3, id="before the third part is listed"),
        pytest.param("os", "fsync", 5, id="inside the list of the fourth part"),
        pytest.param("memscope.record.loop", "drop_progress", 1, id="before the lists are forgotten"),
        pytest.param("memscope.census.aggregate", "write_firing", 1, id="before the contexts"),
        pytest.param("memscope.census.firing.firing", "describe_entries", 1, id="while contexts are written"),
        pytest.param("memscope.record.decode", "write_table", 1, id="before the decodings are there"),
        pytest.param("memscope.record.loop", "write_info", 3, id="before it is marked complete"),
    ],
)
def test_recording_killed_at_a_delicate_moment_ends_like_an_uninterrupted_one(
    tiny_run_path: Path, corpus_dir: Path, recorded: Path, tmp_path: Path, module: str, function: str, call: int
) -> None:
    recording = tmp_path / "recording"
    process = start_recording(tiny_run_path, corpus_dir, recording, module, function, call)
    assert ended(process) == -signal.SIGKILL
    finish_recording(tiny_run_path, corpus_dir, recording)
    assert_same_recording(recording, recorded)
