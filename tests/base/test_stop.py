"""Ctrl-C and SIGTERM end every command with one line, whatever it does, and leave nothing half-written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import memscope
from memscope.base.stop import GRACE
from memscope.config.load import dump_config
from memscope.run.checkpoint import load_run
from tests.conftest import tiny_config
from tests.processes import Command

pytestmark = pytest.mark.slow

DDP = Path(memscope.__file__).parent / "presets" / "accelerate" / "ddp.yaml"
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
LINE = {signal.SIGINT: "memscope: stopped", signal.SIGTERM: "memscope: stopped by SIGTERM"}
LINE[signal.SIGHUP] = "memscope: stopped by SIGHUP"
COMMAND = """
import os, sys, time
from pathlib import Path
from memscope.cli import main as cli
from memscope.__main__ import main
from memscope.base.files import atomic_path
from memscope.base.lock import one_writer

def work():
    with one_writer(Path(sys.argv[1])), atomic_path(Path(sys.argv[1], "file")) as temporary:
        temporary.write_text("half")
        print("ready", flush=True)
        WORK

cli.main = work
main()
"""
WORK = {
    "in Python": "time.sleep(60)",
    "in C that does not look for signals": "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
    "in code that goes on after every exception": """
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass""",
    "in another thread": "import threading; threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(60)",
    "with an error on the way out": """
        try:
            time.sleep(60)
        finally:
            raise RuntimeError('of the interruption')""",
}


def listen() -> None:
    """In a child: signals are heard, although pytest may have been started in the background."""
    for number in STATUS:
        signal.signal(number, signal.SIG_DFL)


def start(*words: object, **options: object) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": listen}
    return subprocess.Popen([sys.executable, *map(str, words)], **pipes | options)  # type: ignore[call-overload,no-any-return]


def assert_stopped(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert_told(process.returncode, errors, number)


def assert_command_stopped(command: Command, number: signal.Signals) -> None:
    assert command.runs()
    os.kill(command.pid, number)
    done = command.end()
    assert_told(done.returncode, done.stderr, number)


def assert_told(code: int | None, errors: str, number: signal.Signals) -> None:
    assert code == STATUS[number], errors
    assert errors.splitlines()[-1] == LINE[number]
    assert "Traceback" not in errors and errors.count("stopped") == 1


@pytest.mark.parametrize(
    ("where", "number"),
    [*((where, signal.SIGTERM) for where in WORK), ("in Python", signal.SIGINT), ("in Python", signal.SIGHUP)],
)
def test_a_signal_ends_a_command_with_one_line_and_nothing_half_written(
    where: str, number: signal.Signals, tmp_path: Path
) -> None:
    process = start("-c", COMMAND.replace("WORK", WORK[where]), tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert list(tmp_path.glob(".file.*"))
    assert_stopped(process, number)
    assert not list(tmp_path.glob(".file.*")) and not (tmp_path / "file").exists()


def test_a_command_can_be_stopped_while_it_loads_torch(tmp_path: Path) -> None:
    load = "import torch; time.sleep(60)"
    process = start("-X", "importtime", "-c", COMMAND.replace("WORK", load), tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if line.endswith(" torch.version\n") or " torch._utils" in line:
            break  # torch has begun to load
    assert_stopped(process, signal.SIGINT)


def test_a_signal_that_is_to_be_ignored_is_ignored(tmp_path: Path) -> None:
    nohup = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    process = start("-c", COMMAND.replace("WORK", "time.sleep(0.5); print('done', flush=True)"), tmp_path, **nohup)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=30)[0] == "done\n" and process.returncode == 0


def test_a_copy_of_the_process_is_stopped_alone(tmp_path: Path) -> None:
    fork = f"""
        child = os.fork()
        if not child:
            time.sleep(60)
        time.sleep(0.5)
        os.kill(child, 15)
        status = os.waitpid(child, 0)[1]
        time.sleep({GRACE} + 0.5)
        print(status, flush=True)"""
    process = start("-c", COMMAND.replace("WORK", fork), tmp_path)
    assert process.communicate(timeout=30)[0] == "ready\n15\n" and process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_stopped_can_be_resumed(corpus_dir: Path, tmp_path: Path, number: signal.Signals) -> None:
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(dump_config(tiny_config(corpus_dir, train={"steps": 2000, "save_interval": 2})))
    words = ["train", config, "--out", run, "--device", "cpu"]
    process = Command(words, tmp_path / "first")
    while process.runs() and not (run / "model.safetensors").is_file():  # the first checkpoint's
        time.sleep(0.05)
    assert_command_stopped(process, number)
    assert list(run.rglob(".*")) == []
    assert load_run(run).path == run
    before = (run / "config.yaml").read_bytes()
    again = ["--resume", "--set", "steps=2000", "--set", "eval_interval=2000"]
    resumed = Command([*words, *again], tmp_path / "resumed")
    while resumed.runs() and (run / "config.yaml").read_bytes() == before:
        time.sleep(0.05)
    assert_command_stopped(resumed, number)


def test_processes_of_a_launcher_say_it_once(corpus_dir: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(tiny_config(corpus_dir, train={"steps": 5000, "save_interval": 2})))
    launcher = ["-m", "accelerate.commands.launch", "--config_file", DDP, "--main_process_port", 0]  # starts torchrun
    train = ["-m", "memscope", "train", config, "--out", tmp_path / "run", "--device", "cpu"]
    job = start(*launcher, *train, start_new_session=True)
    while job.poll() is None and not list((tmp_path / "run" / "checkpoints").glob("step-*")):
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGINT)  # as the terminal does
    _, errors = job.communicate(timeout=60)
    assert errors.count("memscope: stopped\n") == 1
    assert str(Path(memscope.__file__).parent) not in errors  # no traceback of ours; torch's launcher has one
    assert list((tmp_path / "run").rglob(".*")) == []


def test_every_command_starts_where_signals_are_heard() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'memscope = "memscope.__main__:main"' in project
