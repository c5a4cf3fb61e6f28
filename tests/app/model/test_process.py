"""A process that answers for a served app: it says how far it is, is broken off, and ends with the server."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from app.model import process
from app.model.process import OFF, ModelProcess, ask, serve_apart
from memscope.base.errors import InputError
from tests.app.model import work

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No recording: what is asked here needs none."""
    return tmp_path_factory.mktemp("none")


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelProcess]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(OFF, "1")
    monkeypatch.setattr(process, "_apart", None)
    monkeypatch.setattr(process, "at_end", lambda tidy: tidy)
    apart = serve_apart()
    yield apart
    apart.end()


def test_without_a_server_all_is_done_here() -> None:
    said: list[int] = []
    assert ask(os.getpid) == os.getpid()
    assert ask(work.count, 3, watch=said.append) == 3
    assert said == [0, 1, 2]


def test_a_served_app_asks_one_other_process(apart: ModelProcess) -> None:
    said: list[int] = []
    there = ask(os.getpid)
    assert there != os.getpid()
    assert serve_apart() is apart and ask(os.getpid) == there
    assert ask(work.count, 3, watch=said.append) == 3
    assert said == [0, 1, 2]
    with pytest.raises(InputError, match=r"^a word: this cannot be done$"):
        ask(work.refuse, "a word")
    with pytest.raises(RuntimeError, match=r"(?s)work\.py.*LookupError: an error of our own"):
        ask(work.fail)
    assert ask(os.getpid) == there


def test_questions_of_several_readers_wait_for_one_another(apart: ModelProcess) -> None:
    with ThreadPoolExecutor(4) as readers:
        answers = [readers.submit(ask, work.count, most, watch=lambda number: None) for most in (5, 2, 4, 3)]
        assert [answer.result() for answer in answers] == [5, 2, 4, 3]


@pytest.mark.parametrize("number", [0, 49], ids=["soon", "when it is done"])
def test_what_nobody_waits_for_any_more_is_broken_off(apart: ModelProcess, number: int) -> None:
    class LeftError(BaseException):
        """As Streamlit leaves a page."""

    said: list[int] = []

    def leave(told: int) -> None:
        said.append(told)
        if told == number:
            raise LeftError

    with pytest.raises(LeftError):
        ask(work.count, 50, watch=leave)
    assert said == [*range(number + 1)]
    assert ask(work.count, 2, watch=said.append) == 2
    assert said == [*range(number + 1), 0, 1]


def test_a_process_that_ended_is_said_and_starts_anew(apart: ModelProcess) -> None:
    first = ask(os.getpid)
    with pytest.raises(InputError, match=r"ended with status 7\. Ask again, and it starts anew"):
        ask(work.die)
    second = ask(os.getpid)
    os.kill(second, signal.SIGKILL)
    psutil.Process(second).wait(20)
    assert len({first, second, ask(os.getpid)}) == 3  # ended while nothing was asked: nobody is told
    with pytest.raises(InputError, match="status -9, as a machine that is short of memory ends it"):
        ask(work.count, 5000, watch=lambda number: apart.end())


def test_it_ends_with_a_server_that_is_killed() -> None:
    lines = "import os, time\nfrom app.model.process import ask, serve_apart\nserve_apart()\n"
    lines += "print(ask(os.getpid), flush=True)\ntime.sleep(60)"
    server = subprocess.Popen(
        [sys.executable, "-c", lines], cwd=ROOT, env=os.environ | {OFF: "1"}, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    there = psutil.Process(int(server.stdout.readline()))
    server.kill()
    server.communicate()
    assert psutil.wait_procs([there], 20)[1] == []
