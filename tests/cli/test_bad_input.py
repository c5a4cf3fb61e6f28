"""Every unusable input, at every command: one line that names the cause and the way out."""

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from memscope.base.errors import InputError
from memscope.base.seals import write_sealed
from memscope.config.load import dump_config
from memscope.query.recording import Recording
from memscope.record.loop import RecordOptions, record
from memscope.recording.info import FORMAT_VERSION, INFO, read_info, write_info
from memscope.run.adapters.own import OwnRun
from memscope.run.checkpoint import LoadedRun
from tests.conftest import CliResult, tiny_config

Cli = Callable[..., CliResult]


def assert_refused(result: CliResult, *parts: str) -> None:
    """Exit status 2, nothing on stdout, and one line on stderr with all ``parts``."""
    assert result.code == 2
    assert result.out == ""
    line = result.err.strip().splitlines()[-1]
    assert line.startswith("memscope: ")
    assert result.err.count("memscope: ") == 1
    for part in parts:
        assert part in line
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["train", "nowhere.yaml"], ["nowhere.yaml", "no such"]),
        (["eval", "nowhere", "--corpus", "c.jsonl"], ["nowhere: no such folder", "memscope train"]),
        (["generate", "nowhere", "text"], ["nowhere: no such folder", "memscope train"]),
        (["trace", "nowhere", "text"], ["nowhere: no such folder", "memscope train"]),
        (["record", "nowhere", "--corpus", "c", "--out", "o"], ["nowhere: no such folder", "memscope train"]),
        (["census", "nowhere"], ["nowhere: not a recording", "memscope record"]),
        (["report", "nowhere", "--out", "report"], ["nowhere: not a recording", "memscope record"]),
        (["app", "nowhere"], ["nowhere", "memscope record"]),
    ],
)
def test_a_missing_input_is_named_with_the_command_that_makes_it(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(cli(*words), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["eval", "record"])
@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["no such corpus file"]),
        (b"", ["no document with text"]),
        (b'{"text": "fine"}\n{"title": "no text"}\n', [":2: ", '"text"']),
        (b"\xff\xfe\x00\x01", ["this is UTF-16 text, not UTF-8"]),
        (b"id,text\n1,words\n", ["comma- or tab-separated", "write it as JSON lines"]),
    ],
)
def test_an_unusable_corpus_is_refused(
    cli: Cli, tiny_run_path: Path, tmp_path: Path, command: str, content: bytes | None, parts: list[str]
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    if content is not None:
        corpus.write_bytes(content)
    out = ["--out", tmp_path / "recording"] if command == "record" else []
    result = cli(command, tiny_run_path, "--corpus", corpus, *out, "--device", "cpu")
    assert_refused(result, str(corpus), *parts)
    assert not (tmp_path / "recording").exists()


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("train.jsonl", b'{"text": "cut of', ["train.jsonl:1: not a JSON object", "truncated"]),
        ("train.jsonl", b'{"text": "too short"}\n', ["too small for a vocabulary", "lower vocab_size"]),
        ("valid.jsonl", b"\n", ["valid.jsonl: no document with text"]),
        ("sentences.json", b"[]", ["sentences.json: no sentences"]),
        ("sentences.json", b'[{"rows": 1}]', ["sentences.json: item 0: expected"]),
        ("sentences.json", b"\x00\xff", ["sentences.json: a binary file"]),
    ],
)
def test_an_unusable_file_of_a_training_is_refused(
    cli: Cli, corpus_dir: Path, tmp_path: Path, name: str, content: bytes, parts: list[str]
) -> None:
    data = shutil.copytree(corpus_dir, tmp_path / "data")
    (data / name).write_bytes(content)
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(tiny_config(data)))
    assert_refused(cli("train", config, "--out", tmp_path / "run", "--device", "cpu"), *parts)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("knowlege_num=64", ["did you mean 'knowledge_num'?"]),
        ("knowledge_num=65", ["product gate needs a square", "64"]),
        ("num_selected=65", ["num_selected=65 exceeds knowledge_num=64", "lower num_selected"]),
        ("dtype=float16", ["train.dtype", "'auto', 'bfloat16' or 'float32'"]),
        ("vocab_size=9999", ["too small for a vocabulary of 9999", "lower vocab_size"]),
    ],
)
def test_an_unusable_setting_is_refused_before_anything_is_written(
    cli: Cli, corpus_dir: Path, tmp_path: Path, override: str, parts: list[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(tiny_config(corpus_dir)))
    result = cli("train", config, "--set", override, "--out", tmp_path / "run", "--device", "cpu")
    assert_refused(result, *parts)
    assert not (tmp_path / "run" / "config.yaml").exists()


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    match how:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "noise":
            path.write_bytes(b"\xff\x00" * (len(content) // 2))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *product(["model.safetensors", "tokenizer.json"], ["missing", "empty", "cut", "noise"]),
        *product(["config.yaml"], ["missing", "empty", "noise"]),  # half of a config can be a config
    ],
)
def test_a_damaged_run_is_refused(cli: Cli, tiny_run_path: Path, tmp_path: Path, name: str, how: str) -> None:
    run = shutil.copytree(tiny_run_path, tmp_path / "run")
    damage(run / name, how)
    assert_refused(cli("generate", run, "text", "--tokens", 4, "--device", "cpu"), str(run))


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "noise"])
@pytest.mark.parametrize("name", ["bank_init.safetensors", "bank_init.parquet"])
def test_a_damaged_bank_origin_is_refused_when_recording(
    cli: Cli, tiny_run_path: Path, corpus_dir: Path, tmp_path: Path, name: str, how: str
) -> None:
    run = shutil.copytree(tiny_run_path, tmp_path / "run")
    damage(run / name, how)
    words = ["--corpus", corpus_dir / "valid.jsonl", "--out", tmp_path / "rec", "--tokens", 64, "--device", "cpu"]
    assert_refused(cli("record", run, *words), name)


def test_weights_of_another_config_are_refused(cli: Cli, tiny_run_path: Path, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run_path, tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("knowledge_num: 64", "knowledge_num: 100"))
    assert_refused(cli("trace", run, "text", "--device", "cpu"), "model.safetensors", "bank.entries", "(64, 1, 16)")


def test_a_baseline_cannot_be_recorded_or_traced(cli: Cli, ffn_run: object, corpus_dir: Path, tmp_path: Path) -> None:
    run = ffn_run.path  # type: ignore[attr-defined]
    out = ["--corpus", corpus_dir / "valid.jsonl", "--out", tmp_path / "rec"]
    assert_refused(cli("record", run, *out, "--device", "cpu"), "an FFN baseline has no memory to record")
    assert_refused(cli("trace", run, "text", "--device", "cpu"), "an FFN baseline has no memory to record")


@pytest.mark.parametrize(("text", "tokens", "part"), [("word " * 70, 1, "max_seq_len=64"), ("word", 64, "max_seq_len")])
def test_a_text_too_long_for_the_model_is_refused(
    cli: Cli, tiny_run_path: Path, text: str, tokens: int, part: str
) -> None:
    result = cli("generate", tiny_run_path, text, "--tokens", tokens, "--device", "cpu")
    assert_refused(result, part, "ask for fewer")


def use_everything(recording: Recording) -> None:
    """Ask for what reads each file of a recording."""
    recording.census, recording.training_curve(), recording.run_summary
    entry = int(recording.entries(limit=1)["entry"][0])
    recording.entry(entry)
    recording.contexts(entry)
    recording.firing_of([entry])
    recording.neighbours_of([entry])
    recording.selections(entry, 0)
    recording.preferences()
    recording.usage_folds()
    recording.trace(0)


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "noise"])
@pytest.mark.parametrize(
    "name",
    [
        INFO,
        "usage.parquet",
        "contexts.parquet",
        "firing.parquet",
        "neighbours.parquet",
        "titles.parquet",
        "bias.parquet",
        "decodings.parquet",
        "documents.parquet",
        "bank_init.parquet",
        "census.json",
        "tokenizer.json",
        "tokens/part-000000.parquet",
        "selections/part-000000.parquet",
    ],
)
def test_a_damaged_recording_is_refused(tiny_recording_path: Path, tmp_path: Path, name: str, how: str) -> None:
    recording = shutil.copytree(tiny_recording_path, tmp_path / "recording")
    damage(recording / name, how)
    with pytest.raises(InputError, match=r"recording"):
        use_everything(Recording(recording))


def test_the_whole_recording_can_be_used(tiny_recording_path: Path) -> None:
    use_everything(Recording(tiny_recording_path))  # so that the refusals above come from the damage


def test_a_recording_without_parts_has_no_census(cli: Cli, tiny_recording_path: Path, tmp_path: Path) -> None:
    recording = shutil.copytree(tiny_recording_path, tmp_path / "recording")
    write_info(recording, read_info(recording).model_copy(update={"parts": (), "complete": False}))
    assert_refused(cli("census", recording), "recording: holds no finished part", "record first")


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "noise"])
@pytest.mark.parametrize("name", ["tokens/part-000001.parquet", "selections/part-000001.parquet", "documents.parquet"])
def test_a_census_of_damaged_parts_is_refused(
    cli: Cli, tiny_recording_path: Path, tmp_path: Path, name: str, how: str
) -> None:
    recording = shutil.copytree(tiny_recording_path, tmp_path / "recording")
    before = (recording / "census.json").read_bytes()
    damage(recording / name, how)
    assert_refused(cli("census", recording), name)
    assert (recording / "census.json").read_bytes() == before


def test_what_recording_again_is_advised_for_is_mended_by_it(
    tiny_run: LoadedRun, tiny_recording_path: Path, corpus_dir: Path, tmp_path: Path
) -> None:
    recording = shutil.copytree(tiny_recording_path, tmp_path / "recording")
    (recording / "firing.parquet").unlink()
    with pytest.raises(InputError, match="record again"):
        Recording(recording)
    record(OwnRun(tiny_run), corpus_dir / "valid.jsonl", recording, RecordOptions(part_tokens=500))
    use_everything(Recording(recording))


def test_an_unfinished_recording_says_how_to_finish_it(cli: Cli, tiny_recording_path: Path, tmp_path: Path) -> None:
    recording = shutil.copytree(tiny_recording_path, tmp_path / "recording")
    write_info(recording, read_info(recording).model_copy(update={"complete": False}))
    parts = ["this recording is unfinished", "run the same 'memscope record' command again"]
    assert_refused(cli("report", recording, "--out", tmp_path / "report"), *parts)
    assert_refused(cli("app", recording), "unfinished")
    assert not (tmp_path / "report").exists()


def test_a_recording_of_another_format_version_is_refused(cli: Cli, tiny_recording_path: Path, tmp_path: Path) -> None:
    recording = shutil.copytree(tiny_recording_path, tmp_path / "recording")
    raw = json.loads((recording / INFO).read_text())
    del raw["sha256"]
    write_sealed(recording / INFO, raw | {"format_version": 99})
    expected = f"format version 99, this memscope reads {FORMAT_VERSION}"
    assert_refused(cli("report", recording, "--out", tmp_path / "report"), expected)
