"""What a person who is at a loss gets: completion, ``doctor``, and errors at once."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from memscope.model.ops.native import OFF
from tests.conftest import CliResult

Cli = Callable[..., CliResult]

MISTAKES = """
train|nowhere.yaml
train|demo|--set|knowlege_num=3
train|demo
eval|RUN|--corpus|nowhere
generate|RUN|word|--tokens|100000
record|RUN|--corpus|nowhere|--out|out
record|RUN|--corpus|CORPUS|--out|RUN
trace|REC|word
trace|RUN|
map|RUN|REC|--layer|99
map|REC|REC
census|RUN
report|nowhere|--out|out
report|REC|--against|nowhere|--out|out
export|nowhere|--to|delphi|--out|out
app|nowhere
ablate|RUN|REC|--entries|99999|--out|out
ablate|RUN|REC|--top-usage|200%|--out|out
ablate|RUN|REC|--top-usage|1%|--layers|9|--out|out
facts|RUN|nowhere|--out|out
edit|RUN|CORPUS|--out|out
bank|RUN|--replace|nowhere|--out|out
import|vllm|nowhere|--tokenizer|x|--out|out
"""
SCRIPT = """
import sys
from memscope.cli.main import main
for line in sys.argv.pop().split():
    sys.argv = ["memscope", *line.split("|")]
    try:
        main()
    except SystemExit as stop:
        print(stop.code, "torch" in sys.modules, line)
"""


def test_missing_files_and_wrong_arguments_are_answered_before_torch_is_loaded(
    tiny_run_path: Path, tiny_recording_path: Path, corpus_dir: Path, tmp_path: Path
) -> None:
    places = {"RUN": tiny_run_path, "REC": tiny_recording_path, "CORPUS": corpus_dir / "valid.jsonl"}
    text = MISTAKES
    for name, path in places.items():
        text = text.replace(name, str(path))
    command = [sys.executable, "-c", SCRIPT, text]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = text.split()
    assert done.stdout.splitlines() == [f"2 False {line}" for line in lines]
    assert sum(line.startswith("memscope: ") for line in done.stderr.splitlines()) == len(lines)
    assert list(tmp_path.iterdir()) == []


def test_a_recording_in_place_of_its_run_is_told_which_run(
    cli: Cli, tiny_run_path: Path, tiny_recording_path: Path
) -> None:
    assert f"give the run that it was made of, {tiny_run_path}\n" in cli("trace", tiny_recording_path, "word").err


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("memscope tra", ["train", "trace"]),
        ("memscope train memory_s", ["memory_small"]),
        ("memscope train demo --set knowledge_", ["knowledge_num=", "knowledge_length=", "knowledge_dim="]),
        ("memscope trace runs/d", ["runs/demo"]),
        ("memscope report rec", ["recordings/demo"]),
        ("memscope export recordings/demo --to n", ["neuronpedia"]),
    ],
)
def test_a_shell_completes_commands_names_and_folders(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, completed: list[str]
) -> None:
    for file in ("runs/demo/config.yaml", "runs/no_run/notes.txt", "recordings/demo/recording.json"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("_MEMSCOPE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert cli().out.split() == completed


def test_doctor_says_what_is_slow_and_why(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OFF, "1")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(512)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    done = cli("doctor", "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    found, _, notes = done.out.partition("Slow or missing here:")
    assert all(
        f"\n{name} " in f"\n{found}" for name in ("python", "packages", "device", "compiler", "threads", "fonts")
    )
    assert f"{OFF} is set: training runs without compiled loops" in notes
    assert "of 512 cores, as OMP_NUM_THREADS=1 says" in notes
    assert "figures show boxes for Chinese" in notes and "other processes" not in notes
    assert "not usable here" in cli("doctor", "--device", "gpu").err
