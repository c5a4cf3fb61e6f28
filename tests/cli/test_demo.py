"""The demo, the presets, and what a wheel of the package brings along."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

from memscope.cli import demo
from memscope.cli.demo import STAGES
from memscope.cli.main import app
from memscope.config import presets
from memscope.config.load import dump_config, load_config
from memscope.query.recording import Recording
from tests.conftest import CliResult, tiny_config

Cli = Callable[..., CliResult]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str, int]]:
    """What the app would have been opened with."""
    calls: list[tuple[Path, str, int]] = []
    monkeypatch.setattr("memscope.cli.serve.serve_app", lambda *words: calls.append(words))
    return calls


@pytest.mark.slow
def test_the_demo_does_what_is_missing_and_opens_the_app(
    cli: Cli,
    corpus_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    served: list[tuple[Path, str, int]],
) -> None:
    (tmp_path / "presets").mkdir()
    steps = {"steps": 2, "eval_interval": 2, "save_interval": 2, "eval_tokens": 64}
    (tmp_path / "presets" / "demo.yaml").write_text(dump_config(tiny_config(corpus_dir, train=steps)))
    monkeypatch.setattr(presets, "FOLDER", tmp_path / "presets")
    shutil.copytree(corpus_dir, tmp_path / "data" / "wiki")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "STAGES", STAGES[:4])  # facts need a text layer; report and map take as long as the rest
    done = cli("demo", "--port", 8765)
    assert done.code == 0, done.err
    assert [line for line in done.err.splitlines() if line.startswith("$")] == [
        f"$ memscope {stage.command}" for stage in STAGES[1:4]
    ]
    assert len(Recording("recordings/demo").entries(limit=3)) == 3
    assert Recording("recordings/demo-steps/step-00000002").info.step == 2
    again = cli("demo")
    assert (again.code, again.err) == (0, "report: reports/demo/gate_bias.html\n")
    assert served == [(Path("recordings"), "127.0.0.1", port) for port in (8765, 8501)]


def test_a_demo_that_is_stopped_begins_no_further_stage(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("memscope.text.wiki.write_wiki", interrupted)
    done = cli("demo")
    assert (done.code, done.out, done.err) == (130, "", f"$ memscope {STAGES[0].command}\n")


def test_what_the_demo_calls_are_commands_as_they_are() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for stage in STAGES:
        name, *words = stage.command.split()
        commands[name].make_context(name, words)  # an option that there is not would raise


def test_the_demo_keeps_checkpoints_to_compare() -> None:
    train = load_config("demo").train
    assert train.steps % train.save_interval == 0 and train.steps // train.save_interval >= train.keep_checkpoints > 2


def test_a_preset_is_found_by_name_unless_a_file_has_it(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = cli("presets").out
    assert all(f"\n{name} " in f"\n{listed}" for name in presets.preset_names())
    Path("mine.yaml").write_text(cli("presets", "memory_small").out)
    assert load_config("mine.yaml") == load_config("memory_small")
    Path("memory_small").mkdir()  # a folder is no config
    assert load_config("memory_small").train.steps == 600
    Path("demo").write_text("train: {steps: 7}")
    assert load_config("demo").train.steps == 7
    for words in (["train", "configs/memroy_small.yaml"], ["presets", "memroy_small"]):
        assert "did you mean 'memory_small'?" in cli(*words).err
    refused = cli("train", "memory_small")
    assert refused.code == 2 and "'memscope corpus' writes the default one" in refused.err


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that was built of it."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "dist"))
    for folder in ("memscope", "app"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", "--outdir", out, source]
    done = subprocess.run(list(map(str, build)), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    [sdist], [wheel] = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_sdist_and_wheel_hold_every_file_of_the_packages(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    with tarfile.open(sdist) as tar, zipfile.ZipFile(wheel) as archive:
        in_sdist = {name.partition("/")[2] for name in tar.getnames()}
        in_wheel = set(archive.namelist())
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in ("memscope", "app")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(files) > 250
    assert (files - in_sdist, files - in_wheel) == (set(), set())
    assert {name.partition("/")[0] for name in in_wheel} <= {"memscope", "app", "memscope-0.1.0.dist-info"}


@pytest.mark.slow
def test_what_a_wheel_installs_trains_a_preset_in_an_empty_folder(
    built: tuple[Path, Path], corpus_dir: Path, tmp_path: Path
) -> None:
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--quiet"]
    subprocess.run([*install, "--target", tmp_path / "site", built[1]], check=True, timeout=300)
    here = tmp_path / "here"
    shutil.copytree(corpus_dir, here / "data" / "wiki")
    small = ["vocab_size=320", "n_layers=1", "knowledge_num=64", "steps=1", "batch_size=1", "eval_tokens=256"]
    words = ["train", "memory_small", "--device", "cpu", *(word for value in small for word in ("--set", value))]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "MEMSCOPE_NO_NATIVE": "1"}
    command = [str(tmp_path / "site" / "bin" / "memscope"), *words]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 1
    assert (here / "runs" / "memory_small" / "model.safetensors").is_file()
