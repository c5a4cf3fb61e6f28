"""What a run may go on with, and what is wrong with a folder or file, said before torch is loaded."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from memscope.base.errors import InputError
from memscope.base.files import read_json
from memscope.base.runtime import pick_dtype
from memscope.config.load import Config, dump_config
from memscope.config.training import TrainConfig
from memscope.run.checkpoint import list_checkpoints, load_run
from memscope.run.folder import MAY_CHANGE, START, check_run_folder
from memscope.run.metrics_log import read_metrics
from memscope.train import setup
from memscope.train.loop import train
from tests.conftest import CliResult, tiny_config

pytestmark = pytest.mark.slow

Cli = Callable[..., CliResult]

FAST = pick_dtype("auto", torch.device("cpu"))
"""What this machine computes fast."""


def short(corpus_dir: Path, data: dict[str, object] | None = None, **settings: object) -> Config:
    model = {"max_seq_len": 32, "n_layers": 1}
    settings = {"steps": 2, "batch_size": 2, "eval_tokens": 64, "log_interval": 1, "dtype": "auto", **settings}
    memory = {key: settings.pop(key) for key in ("database_init_path", "num_selected") if key in settings}
    return tiny_config(corpus_dir, model=model, train=settings, data=data or {}, memory=memory)


@pytest.fixture(scope="module")
def started(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("going-on") / "run"
    train(short(corpus_dir), run, device="cpu")
    return run


@pytest.fixture
def run(started: Path, tmp_path: Path) -> Path:
    return shutil.copytree(started, tmp_path / "run")


@pytest.fixture
def moved(corpus_dir: Path, tmp_path: Path) -> Path:
    """The corpus and the sentences, of the same bytes, elsewhere."""
    (tmp_path / "moved").mkdir()
    for name in ("train.jsonl", "valid.jsonl", "sentences.json"):
        shutil.copyfile(corpus_dir / name, tmp_path / "moved" / name)
    return tmp_path / "moved"


def test_a_run_goes_on_with_more_steps_and_other_intervals(corpus_dir: Path, run: Path) -> None:
    config = short(corpus_dir, steps=5, log_interval=2, eval_interval=3, save_interval=4, keep_checkpoints=3)
    assert train(config, run, resume=True, device="cpu")["steps"] == 5
    lines = [(line["kind"], line["step"]) for line in read_metrics(run / "metrics.jsonl") if line["kind"] != "sample"]
    assert lines == [
        *[("eval", 0), ("train", 1), ("train", 2)],  # as it was started
        *[("eval", 3), ("train", 4), ("eval", 5)],  # as it goes on
    ]
    assert [folder.name for folder in list_checkpoints(run)] == [f"step-0000000{step}" for step in (2, 4, 5)]
    settings = config.train.model_dump() | {"dtype": FAST}
    assert load_run(run).config.model_dump() == config.model_dump() | {"train": settings}


def test_a_run_goes_on_in_the_type_that_it_took(corpus_dir: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"bfloat16": "float32", "float32": "bfloat16"}[FAST]
    assert load_run(run).config.train.dtype == FAST
    monkeypatch.setattr(setup, "pick_dtype", lambda *_: other)  # as on another machine
    train(short(corpus_dir, steps=3), run, resume=True, device="cpu")
    assert load_run(run).config.train.dtype == FAST
    with pytest.raises(InputError, match=rf"train\.dtype was '{FAST}', is '{other}'"):
        check_run_folder(short(corpus_dir, steps=3, dtype=other), run, resume=True)


def test_a_run_goes_on_with_moved_files_of_the_same_bytes(
    corpus_dir: Path, run: Path, moved: Path, tmp_path: Path
) -> None:
    data = {"train_path": str(moved / "train.jsonl"), "valid_path": str(moved / "valid.jsonl")}
    data["cache_dir"] = str(tmp_path / "cache")
    config = short(corpus_dir, data, steps=3, database_init_path=str(moved / "sentences.json"))
    train(config, run, resume=True, device="cpu")
    assert load_run(run).config.data.train_path == data["train_path"]


def test_sentences_are_not_missed_once_there_is_a_checkpoint(corpus_dir: Path, moved: Path, tmp_path: Path) -> None:
    gone, run = moved / "sentences.json", tmp_path / "run"
    train(short(corpus_dir, database_init_path=str(gone)), run, device="cpu")
    before = (run / "bank_init.parquet").read_bytes()
    gone.unlink()
    train(short(corpus_dir, database_init_path=str(gone), steps=3), run, resume=True, device="cpu")
    assert (run / "bank_init.parquet").read_bytes() == before


@pytest.mark.parametrize("known", [True, False], ids=["hashes noted", "of an earlier memscope"])
@pytest.mark.parametrize("name", ["train", "valid"])
def test_other_bytes_elsewhere_are_refused(corpus_dir: Path, run: Path, moved: Path, name: str, known: bool) -> None:
    other = moved / f"{name}.jsonl"
    other.write_text(other.read_text() + '{"text": "one more"}\n')
    if not known:
        (run / START).unlink()
    config = short(corpus_dir, {f"{name}_path": str(other)})
    with pytest.raises(InputError, match=rf"data\.{name}_path was '{corpus_dir}/{name}.jsonl', is '{other}'"):
        check_run_folder(config, run, resume=True)


def test_bytes_that_changed_where_they_lie_are_refused(corpus_dir: Path, moved: Path, tmp_path: Path) -> None:
    data, run = {"train_path": str(moved / "train.jsonl")}, tmp_path / "run"
    train(short(corpus_dir, data), run, device="cpu")
    with (moved / "train.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(InputError, match=r"data\.train_path is '.*', which holds other bytes than the run was started"):
        train(short(corpus_dir, data, steps=3), run, resume=True, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.5}, r"\(train\.learning_rate was 0\.003, is 0\.5\)"),
        ({"seed": 1}, r"\(train\.seed was 1337, is 1\)"),
        ({"num_selected": 2}, r"\(memory\.num_selected was 4, is 2\)"),
        ({"batch_size": 4}, r"\(train\.batch_size was 2, is 4\)"),
        ({"eval_tokens": 32, "seed": 1}, r"\(train\.seed was 1337, is 1; train\.eval_tokens was 64, is 32\)"),
        ({"database_init_path": None}, r"\(memory\.database_init_path was '.*', is None\)"),
    ],
)
def test_what_may_not_change_is_named_with_its_old_and_new_value(
    corpus_dir: Path, run: Path, change: dict[str, object], message: str
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=message):
        train(short(corpus_dir, **change), run, resume=True, device="cpu")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_fewer_steps_than_were_done_are_refused(corpus_dir: Path, run: Path) -> None:
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(InputError, match=r"has done 2 steps, and train\.steps or train\.epochs ask for 1"):
        train(short(corpus_dir, steps=1), run, resume=True, device="cpu")
    assert (run / "config.yaml").read_bytes() == before


def test_a_step_keeps_its_sequences_on_another_number_of_processes(
    corpus_dir: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_json(run / START)["sequences_per_step"] == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_run_folder(short(corpus_dir, batch_size=1), run, resume=True)
    with pytest.raises(InputError, match=r"a step had 2 sequences, and .* are 4 now; set train\.batch_size"):
        check_run_folder(short(corpus_dir), run, resume=True)


def test_the_docs_list_what_may_change() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "training.md").read_text()
    table = text[text.index("## Going on") : text.index("## What was tried")]
    assert all(f"`{key.partition('.')[2]}`" in table for key in MAY_CHANGE)
    listed = {key for key in TrainConfig.model_fields if f"`{key}`" in table and f"train.{key}" not in MAY_CHANGE}
    assert listed == {"batch_size", "accumulation_steps", "dtype"}


WITHOUT_TORCH = """
import contextlib, io, sys
sys.modules["torch"] = None  # to import it is an error
from memscope.cli.main import main
for words in sys.argv[1:]:
    said, sys.argv = io.StringIO(), ["memscope", *words.split("\\n")]
    try:
        with contextlib.redirect_stderr(said):
            main()
    except SystemExit as stop:
        print(stop.code, said.getvalue().strip(), file=sys.stderr)
"""


def test_missing_files_and_wrong_folders_are_named_before_torch_is_loaded(
    corpus_dir: Path, tiny_run_path: Path, tiny_recording_path: Path, ffn_run: object, tmp_path: Path
) -> None:
    run, rec, gone, valid = tiny_run_path, tiny_recording_path, tmp_path / "gone", corpus_dir / "valid.jsonl"
    config = tmp_path / "tiny.yaml"
    config.write_text(dump_config(tiny_config(corpus_dir)))
    words: list[tuple[list[object], str]] = [
        (["eval", gone, "--corpus", valid], f"{gone}: no such folder; train a run"),
        (["eval", run, "--corpus", gone], f"{gone}: no such corpus file"),
        (["eval", run, "--corpus", tmp_path], f"{tmp_path}: this is a folder, not a corpus file"),
        (["generate", rec, "text"], f"{rec}: this is a recording; give the run"),
        (["trace", valid, "text"], f"{valid}: this is a file; a run is a folder"),
        (["trace", tmp_path, "text"], f"{tmp_path}: not a run folder (no config.yaml)"),
        (["record", run, "--corpus", gone, "--out", tmp_path / "new"], f"{gone}: no such corpus file"),
        (["record", run, "--corpus", valid, "--out", run], f"{run}: this is a run; choose another --out"),
        (["record", ffn_run.path, "--corpus", valid, "--out", gone], "an FFN baseline has no memory"),  # type: ignore[attr-defined]
        (["map", run, run], f"{run}: a run; make a recording"),
        (["map", ffn_run.path, rec], "was recorded of another model"),  # type: ignore[attr-defined]
        (["ablate", run, rec, "--entries", "1", "--out", gone, "--corpus", gone], f"{gone}: no such corpus file"),
        (["facts", run, gone, "--recording", rec], f"{gone}: no such file of facts"),
        (["edit", gone, valid, "--out", tmp_path / "new"], f"{gone}: no such folder"),
        (["train", config, "--out", rec], f"{rec}: this is a recording; choose another --out for the run"),
        (["train", config, "--out", run], f"{run}: holds a run already; add --resume"),
        (
            ["train", config, "--out", tmp_path / "new", "--set", f"train_path={gone}"],
            f"{gone}: no such corpus file (data.train",
        ),
        (
            ["train", config, "--out", tmp_path / "new", "--set", f"tokenizer_path={gone}"],
            f"{gone}: no such file (data.tokenizer",
        ),
        (["app", gone], f"{gone}: no such folder"),
    ]
    command = [sys.executable, "-c", WITHOUT_TORCH, *("\n".join(map(str, one)) for one, _ in words)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    assert len(told) == len(words)
    for line, (one, message) in zip(told, words, strict=True):
        assert line.startswith("2 memscope: ") and message in line, (one, line)
    assert not gone.exists() and not (tmp_path / "new").exists()
