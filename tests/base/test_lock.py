"""A folder has one writer; a second one is told who writes there, and nobody removes what another one writes."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memscope.base.errors import InputError
from memscope.base.files import atomic_path
from memscope.base.lock import LOCK, has_writer, one_maker, one_writer
from memscope.config.load import dump_config
from memscope.record.loop import RecordOptions, record
from memscope.recording.info import read_info
from memscope.run.adapters.own import OwnRun
from memscope.text import corpus
from memscope.text.corpus import pack_corpus
from memscope.text.tokenizer import Tokenizer
from memscope.train.loop import train
from tests.conftest import CliResult, tiny_config
from tests.processes import Command

Cli = Callable[..., CliResult]
SOMEONE = "process 77 on elsewhere since 2026-01-02 03:04:05 UTC"


def hold(lock: Path) -> int:
    """Hold a lock as another process would; it ends with the file that is returned."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_EX)
    os.write(file, SOMEONE.encode())
    return file


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Path]:
    """A folder that another process writes."""
    folder = tmp_path / "busy"
    file = hold(folder / LOCK)
    hold_beside = hold(tmp_path / f".busy{LOCK}")
    yield folder
    os.close(file)
    os.close(hold_beside)


def test_the_lock_says_who_writes_and_goes_with_the_block(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with one_writer(folder):
        said = (folder / LOCK).read_text()
        assert said.startswith(f"process {os.getpid()} on {socket.gethostname()} since 20")
        with one_writer(folder):  # what it calls may ask again
            assert (folder / LOCK).read_text() == said
        assert (folder / LOCK).is_file()
        (folder / "file").touch()
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_folder_in_which_nothing_was_written_does_not_stay(tmp_path: Path) -> None:
    with pytest.raises(InputError), one_writer(tmp_path / "new"):
        raise InputError
    assert not (tmp_path / "new").exists()


def test_a_second_writer_is_told_who_writes_there(busy: Path) -> None:
    message = f"busy: {SOMEONE} writes there; wait until it is done, or choose another place"
    for lock in (one_writer, one_maker):
        with pytest.raises(InputError, match=message), lock(busy):
            raise AssertionError("it was let in")
    assert (busy / LOCK).read_text() == SOMEONE


def test_the_other_processes_of_a_job_write_under_the_lock_of_its_first(
    busy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with one_writer(busy):
        assert (busy / LOCK).read_text() == SOMEONE


def test_what_stands_in_a_lock_file_is_shown_as_plain_text(tmp_path: Path) -> None:
    file = hold(tmp_path / LOCK)
    os.write(file, b"\x1b[31m\xff\n" + b"x" * 1000)
    with pytest.raises(InputError) as caught, one_writer(tmp_path):
        pass
    os.close(file)
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


KILLED = """
import os, signal, sys
from pathlib import Path
from memscope.base.files import atomic_path
from memscope.base.lock import one_writer
with one_writer(Path(sys.argv[1])), atomic_path(Path(sys.argv[1], "tokens", "part")) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_folder_free_and_the_next_one_clears_it_up(tmp_path: Path) -> None:
    other = tmp_path / "tokens" / "deeper"
    with atomic_path(other / "file") as kept:  # of a writer of another folder
        kept.touch()
        killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert len(list((tmp_path / "tokens").glob(".part.*"))) == 1
        with one_writer(tmp_path):
            assert not list((tmp_path / "tokens").glob(".part.*"))
            with atomic_path(tmp_path / "file") as mine, one_writer(tmp_path):
                mine.touch()  # not removed by the block inside
    assert (other / "file").is_file() and (tmp_path / "file").is_file()


def test_two_writers_of_one_name_do_not_touch_each_others_temporary_file(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "file") as one, atomic_path(tmp_path / "file") as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "file").read_text() == "one"  # whose block ends last


@pytest.mark.parametrize(
    "words",
    [
        ["corpus", "--out", "BUSY"],
        ["train", "CONFIG", "--out", "BUSY"],
        ["train", "CONFIG", "--out", "BUSY", "--resume"],
        ["record", "RUN", "--corpus", "CORPUS", "--out", "BUSY"],
        ["record", "RUN", "--corpus", "CORPUS", "--out", "BUSY", "--checkpoints", "all"],
        ["report", "REC", "--out", "BUSY"],
        ["report", "REC", "--out", "BUSY", "--against", "REC"],
        ["report", "REC", "--static", "BUSY"],
        ["export", "REC", "--to", "delphi", "--out", "BUSY"],
        ["export", "REC", "--to", "neuronpedia", "--out", "BUSY"],
        ["ablate", "RUN", "REC", "--entries", "1", "--out", "BUSY"],
        ["facts", "RUN", "FACTS", "--out", "BUSY"],
        ["edit", "RUN", "FACTS", "--out", "BUSY"],
    ],
    ids=" ".join,
)
def test_every_command_that_writes_a_folder_says_who_writes_there(
    cli: Cli, words: list[str], busy: Path, tiny_run_path: Path, tiny_recording_path: Path, corpus_dir: Path
) -> None:
    facts, config = busy.parent / "facts.jsonl", busy.parent / "config.yaml"
    fact = '{"uuid": "u", "subject": "Ada", "predicate": "p", "object": "Aston", "template": "[X] is in [Y] ."}\n'
    facts.write_text(fact)
    config.write_text(dump_config(tiny_config(corpus_dir)))
    known = {"BUSY": busy, "RUN": tiny_run_path, "REC": tiny_recording_path, "CORPUS": corpus_dir / "valid.jsonl"}
    known |= {"FACTS": facts, "CONFIG": config}
    result = cli(*(known.get(word, word) for word in words))
    assert (result.code, result.out) == (2, "")
    assert result.err == f"memscope: {busy}: {SOMEONE} writes there; wait until it is done, or choose another place\n"
    assert [path.name for path in busy.iterdir()] == [LOCK]


@pytest.mark.parametrize("command", ["census", "map", "facts"])
def test_what_is_written_into_a_recording_waits_for_no_other_writer(
    cli: Cli, command: str, tiny_run_path: Path, tiny_recording_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "facts.jsonl").write_text(
        '{"uuid": "u", "subject": "A", "predicate": "p", "object": "B", "template": "[X] [Y]"}\n'
    )
    words = {
        "census": [tiny_recording_path],
        "map": [tiny_run_path, tiny_recording_path],
        "facts": [tiny_run_path, tmp_path / "facts.jsonl", "--recording", tiny_recording_path],
    }
    file = hold(tiny_recording_path / LOCK)
    try:
        result = cli(command, *words[command])
    finally:
        (tiny_recording_path / LOCK).unlink()
        os.close(file)
    assert result.code == 2 and SOMEONE in result.err


def test_python_callers_of_train_and_record_are_told_too(
    busy: Path, corpus_dir: Path, tiny_run: object, tiny_recording_path: Path
) -> None:
    with pytest.raises(InputError, match=SOMEONE):
        train(tiny_config(corpus_dir), busy, device="cpu")
    with pytest.raises(InputError, match=SOMEONE):
        record(OwnRun(tiny_run), corpus_dir / "valid.jsonl", busy, RecordOptions())  # type: ignore[arg-type]


@pytest.mark.slow
def test_of_two_records_into_one_folder_one_is_made_and_one_is_told(
    tiny_run_path: Path, corpus_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "recording"
    words = ["record", tiny_run_path, "--corpus", corpus_dir / "valid.jsonl", "--out", out, "--part-tokens", 64]
    first = Command(words, tmp_path / "first")
    while first.runs() and not (out / LOCK).exists():
        time.sleep(0.02)
    told = Command(words, tmp_path / "told").end()
    assert told.returncode == 2
    assert told.stderr.startswith(f"memscope: {out}: process {first.pid} on ") and told.stderr.count("\n") == 1
    assert first.end().returncode == 0
    assert read_info(out).complete
    assert list(out.rglob(".*")) == []


def test_two_trainings_share_the_packing_of_a_corpus(
    corpus_dir: Path,
    tiny_run_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer, path = Tokenizer.load(tiny_run_path / "tokenizer.json"), corpus_dir / "valid.jsonl"
    pack_corpus(path, tokenizer, tmp_path / "elsewhere")
    [made] = (tmp_path / "elsewhere").iterdir()
    cache = tmp_path / "cache"
    cache.mkdir()
    file = hold(cache / f".{made.name}{LOCK}")  # another process has begun to pack it
    (cache / f".{made.name}.12345678.unfinished").mkdir()
    packed: list[object] = []
    waiting = threading.Thread(target=lambda: packed.append(pack_corpus(path, tokenizer, cache)))
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_pack_into", None)  # it must not be packed twice
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive() and not packed
        (cache / f".{made.name}.12345678.unfinished").rmdir()
        made.rename(cache / made.name)
        (cache / f".{made.name}{LOCK}").unlink()
        os.close(file)
        waiting.join(30)
    assert packed
    assert f"waiting for {SOMEONE}, which makes it" in capsys.readouterr().err
    assert [one.name for one in cache.iterdir()] == [made.name]


def test_a_folder_tells_whether_it_has_a_writer(tmp_path: Path) -> None:
    assert not has_writer(tmp_path)
    with one_writer(tmp_path):
        assert has_writer(tmp_path)
    assert not has_writer(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = socket.gethostname()
    for text, alive in (
        (SOMEONE, True),  # on another machine
        (f"process {gone.pid} on {here} since 2026", False),  # killed
        (f"process 1 on {here} since 2026", True),  # of another user, perhaps
        ("", False),
    ):
        (tmp_path / LOCK).write_text(text)
        assert has_writer(tmp_path) == alive, text
