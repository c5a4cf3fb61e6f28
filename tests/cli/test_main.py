"""The command line: results on standard output, one line and exit status 2 for bad input."""

import errno
import json
import os
import pkgutil
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer.main

from memscope.bank_map.build import FEATURES
from memscope.base.seals import read_sealed
from memscope.cli import main as command_line
from memscope.config.load import Config, dump_config
from memscope.recording.info import read_info
from memscope.recording.part_reader import read_part
from memscope.recording.parts import finished_parts
from memscope.run.checkpoint import LoadedRun
from memscope.train.evaluate import evaluate
from tests.conftest import CliResult, tiny_config

pytestmark = pytest.mark.slow

Cli = Callable[..., CliResult]
AGGREGATES = ("usage", "bias", "contexts", "firing", "titles", "neighbours", "anomalies")
COMMANDS = sorted(typer.main.get_command(command_line.app).commands)  # type: ignore[attr-defined]


def quick(corpus_dir: Path) -> Config:
    return tiny_config(corpus_dir, model={"max_seq_len": 32}, train={"steps": 2, "eval_tokens": 64})


@pytest.fixture
def config_path(corpus_dir: Path, tmp_path: Path) -> Path:
    path = tmp_path / "quick.yaml"
    path.write_text(dump_config(quick(corpus_dir)))
    return path


def assert_one_line(result: CliResult, message: str) -> None:
    assert result.code == 2
    assert result.out == ""
    lines = [line for line in result.err.splitlines() if line]
    assert lines[-1].startswith("memscope: ")
    assert message in lines[-1]
    assert sum(line.startswith("memscope: ") for line in lines) == 1
    assert "Traceback" not in result.err


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=lambda words: " ".join(words) or "all")
def test_help_of_every_command_says_what_it_does(cli: Cli, command: list[str]) -> None:
    result = cli(*command, "--help")
    assert result.code == 0
    assert "Usage" in result.out
    assert result.err == ""


def test_python_m_memscope_is_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "memscope", "--help"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("words", [["train"], ["record", "run"], ["no-such-command"], ["eval", "run", "--tokens", "0"]])
def test_wrong_usage_exits_with_2_and_no_traceback(cli: Cli, words: list[str]) -> None:
    result = cli(*words)
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err


def test_train_prints_the_summary_and_resumes(cli: Cli, config_path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = cli("train", config_path, "--out", run, "--device", "cpu", "--set", "steps=3", "--seed", 7)
    assert result.code == 0
    summary = json.loads(result.out)
    assert summary == read_sealed(run / "run.json", "train again")
    assert summary["steps"] == 3
    assert "seed: 7" in (run / "config.yaml").read_text()
    again = ["train", config_path, "--out", run, "--device", "cpu", "--set", "steps=3", "--set", "seed=7"]
    assert_one_line(cli(*again), "holds a run already; add --resume")
    assert json.loads(cli(*again, "--resume").out)["valid_loss"] == summary["valid_loss"]


def test_eval_prints_losses_and_the_generation_check_as_json(
    cli: Cli, tiny_run: LoadedRun, tiny_corpus: object, corpus_dir: Path
) -> None:
    words = ["eval", tiny_run.path, "--corpus", corpus_dir / "valid.jsonl", "--device", "cpu"]
    report = json.loads(cli(*words).out)
    expected, _ = evaluate(tiny_run.model, tiny_corpus, tiny_run.tokenizer, None, "float32")  # type: ignore[arg-type]
    assert report["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert report["generation"]["samples"] == len(report["samples"]) > 0
    short = json.loads(cli(*words, "--tokens", 100, "--no-generation").out)
    assert short["tokens"] <= 100
    assert "generation" not in short


def test_generate_continues_the_text_the_same_way_for_a_seed(cli: Cli, tiny_run_path: Path) -> None:
    words = ["generate", tiny_run_path, "Ada Holm was", "--tokens", 12, "--device", "cpu"]
    one, again, other = cli(*words, "--seed", 1), cli(*words, "--seed", 1), cli(*words, "--seed", 2)
    assert one.code == 0
    assert one.out.startswith("Ada Holm was")
    assert one == again
    assert one.out != other.out
    watched = cli(*words, "--temperature", 0, "--tokens", 2, "--watch", "--top", 1).out.splitlines()
    assert watched[0].startswith("Ada Holm was")
    assert [" next: " in line for line in watched[1:]] == [True, False, False] * 3  # the last given token and two new


def test_record_prints_a_summary_and_is_complete(
    cli: Cli, tiny_run_path: Path, corpus_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "recording"
    words = ["record", tiny_run_path, "--corpus", corpus_dir / "valid.jsonl", "--out", out, "--device", "cpu"]
    summary = json.loads(cli(*words, "--tokens", 200, "--part-tokens", 64).out)
    info = read_info(out)
    assert info.complete
    assert (summary["tokens"], summary["selections"]) == (200, 200 * 2 * 4)
    assert summary["tokens_per_second"] > 0
    assert_one_line(cli(*words), "holds a recording with another part_tokens, total_tokens")


def test_trace_prints_json_or_lines(cli: Cli, tiny_run_path: Path) -> None:
    rows = json.loads(cli("trace", tiny_run_path, "Ada Holm", "--json", "--device", "cpu").out)
    assert rows[0]["text"] == "<|im_start|>"
    assert "".join(row["text"] for row in rows[1:]) == "Ada Holm"
    text = cli("trace", tiny_run_path, "Ada Holm", "--top", 2, "--device", "cpu").out.splitlines()
    assert sum("layer 0" in line for line in text) == 2 * len(rows)
    assert "'<|im_start|>'" in text[0]


@pytest.mark.parametrize("command", ["train", "record"])
def test_a_folder_that_cannot_be_written_is_refused(
    cli: Cli, config_path: Path, tiny_run_path: Path, corpus_dir: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    words = [config_path] if command == "train" else [tiny_run_path, "--corpus", corpus_dir / "valid.jsonl"]
    assert_one_line(cli(command, *words, "--out", out, "--device", "cpu"), "cannot create this folder")


@pytest.mark.parametrize(
    ("function", "call"),
    [
        pytest.param("pyarrow.parquet.ParquetWriter.write_table", 1, id="in the first part"),
        pytest.param("pyarrow.parquet.ParquetWriter.write_table", 5, id="in a later part"),
        pytest.param("pyarrow.parquet.write_table", 1, id="at the documents"),
        pytest.param("pyarrow.parquet.write_table", 2, id="in the aggregates"),
        pytest.param("memscope.base.files.os.fsync", 1, id="at recording.json"),
        pytest.param("memscope.base.files.os.fsync", 4, id="at the list of parts"),
    ],
)
def test_a_full_disk_while_recording_is_one_line_and_can_be_resumed(
    cli: Cli,
    tiny_run_path: Path,
    corpus_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    call: int,
) -> None:
    owner, _, name = function.rpartition(".")
    original, calls = pkgutil.resolve_name(f"{owner}.{name}"), []

    def full(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments, **options)

    out = tmp_path / "recording"
    words = ["record", tiny_run_path, "--corpus", corpus_dir / "valid.jsonl", "--out", out, "--device", "cpu"]
    words += ["--tokens", 500, "--part-tokens", 150]
    with monkeypatch.context() as patch:
        patch.setattr(function, full)
        assert_one_line(cli(*words), "No space left on device")
    assert [path for path in out.rglob(".*")] == []  # nothing half-written
    if (out / "recording.json").is_file():
        for part in finished_parts(out).values():
            assert read_part(out, part, read_info(out)) is not None
    assert cli(*words).code == 0  # once there is room
    assert read_info(out).complete


def test_census_counts_a_recording_again(cli: Cli, tiny_recording_path: Path, tmp_path: Path) -> None:
    recording = shutil.copytree(tiny_recording_path, tmp_path / "recording")
    made = ["census.json", *(f"{name}.parquet" for name in AGGREGATES)]
    before = {name: (recording / name).read_bytes() for name in made}
    for name in made:
        (recording / name).unlink()
    result = cli("census", recording)
    assert (result.code, result.out.strip()) == (0, str(recording / "census.json"))
    assert {name: (recording / name).read_bytes() for name in made} == before


def test_record_takes_every_option(cli: Cli, tiny_run_path: Path, corpus_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "recording"
    words = ["record", tiny_run_path, "--corpus", corpus_dir / "valid.jsonl", "--out", out, "--device", "cpu"]
    assert cli(*words, "--tokens", 70, "--score-bits", 9, "--per-head", "--per-slot").code == 0
    info = read_info(out)
    assert (info.rows, info.score_bits, info.head_weights, info.slot_weights) == (70, 9, True, True)
    rows = read_part(out, info.parts[0], info)
    assert rows.head_read is not None and rows.slot_read is not None
    for odd in (["--score-bits", 0], ["--score-bits", 11], ["--part-tokens", 0]):
        assert cli(*words, *odd).code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("record", "run", "--corpus", "c", "--out", "o", "--checkpoints", "some"),
            "'some' is not one of 'newest', 'all'",
        ),
        (("map", "run", "rec", "--feature", "meaning"), "'meaning' is not one of 'best', 'values'"),
        (("ablate", "run", "rec", "--out", "o", "--mode", "off"), "'off' is not one of 'renormalise', 'zero'"),
        (("ablate", "run", "rec", "--out", "o", "--control", "no"), "'no' is not one of 'usage', 'random'"),
        (("edit", "run", "facts", "--out", "o", "--method", "magic"), "'magic' is not one of 'sentence', 'row'"),
        (("export", "rec", "--to", "pdf", "--out", "o"), "'pdf' is not one of 'delphi', 'neuronpedia'"),
        (("eval", "run", "--corpus", "c", "--tokens", "0"), "Invalid value for '--tokens'"),
    ],
)
def test_a_value_that_an_option_does_not_take_is_one_line(cli: Cli, words: tuple[str, ...], message: str) -> None:
    assert_one_line(cli(*words), message)


def test_every_space_of_the_map_can_be_chosen() -> None:
    [feature] = [p for p in command_line.app.registered_commands if p.name == "map"]
    choices = get_args(get_args(get_type_hints(feature.callback, include_extras=True)["feature"])[0])
    assert choices == FEATURES


def limit_files() -> None:
    """Every write past 64 KiB of a file fails in this process; a checkpoint's model has about 100."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))


def test_a_disk_that_fills_up_while_training_is_one_line_and_can_be_resumed(
    corpus_dir: Path, tmp_path: Path, group: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    full = group(quick(corpus_dir), run, processes=1, before=limit_files)
    assert_one_line(CliResult(full.returncode, full.stdout, full.stderr), "")
    assert not (run / "model.safetensors").exists()
    assert [path for path in run.rglob(".*")] == []
    done = group(quick(corpus_dir), run, "--resume", processes=1)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2


def test_an_unknown_device_is_refused(cli: Cli, tiny_run_path: Path) -> None:
    for device in ("gpu", "cuda:99"):
        result = cli("generate", tiny_run_path, "text", "--tokens", 4, "--device", device)
        assert_one_line(result, f"--device {device}: not usable here")


def test_interrupting_a_command_says_stopped(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("memscope.text.wiki.write_wiki", interrupted)
    result = cli("corpus")
    assert (result.code, result.out) == (130, "")
    assert "Traceback" not in result.err
