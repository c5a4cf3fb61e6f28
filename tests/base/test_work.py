"""Results of threads come in order, few at a time, and errors come out; bars count what was done."""

import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from memscope.base.work import Processes, in_threads, watched
from tests.processes import threads_as_processes


@pytest.mark.parametrize("cores", [1, 3])
def test_results_stand_in_order_whoever_is_done_first(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)

    def slow_first(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number * number

    assert list(in_threads(slow_first, range(10))) == [number * number for number in range(10)]
    assert list(in_threads(slow_first, [])) == []


def test_no_more_are_begun_than_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    taken: list[int] = []
    running, most, lock = 0, 0, threading.Lock()

    def items() -> Iterator[int]:
        for number in range(8):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return number

    for done in in_threads(work, items()):
        assert len(taken) <= done + 3  # results that nobody took yet stay few
    assert most == 2


def test_an_error_in_a_thread_is_raised_where_its_result_would_be() -> None:
    def work(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    found = in_threads(work, range(5))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(found)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_a_terminal_alone_shows_how_far_work_is(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    batches = [[1, 2], [3], []]
    assert list(watched(batches, "asking", "questions", size=len)) == batches
    shown = stream.getvalue()
    assert ("asking" in shown, "3/3" in shown, "questions/s" in shown) == (stream.isatty(),) * 3


# --- neighbours -------------------------------------------------------------------------------------------------------

YIELDING = "import psutil; psutil.cpu_percent = lambda _: {percent}; from memscope.base.work import yield_to_neighbours"
YIELDING += "; print(yield_to_neighbours()); import torch; torch.ones(2)"


def spins(percent: float, **variables: str) -> tuple[float, str | None]:
    """What a fresh process is told, and how often the OpenMP of its torch says that it spins."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"OMP_DISPLAY_ENV": "verbose", **variables}
    command = [sys.executable, "-c", YIELDING.format(percent=percent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = re.search(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)
    return float(done.stdout), found and found[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="GCC's OpenMP")
def test_threads_spin_less_beside_a_neighbour_and_as_usual_alone() -> None:
    used, few = spins(60.0)
    assert used == pytest.approx(0.6 * (os.cpu_count() or 1)) and few == "1000"
    nobody, usual = spins(0.1)
    assert nobody == 0.0 and usual is not None and int(usual) > 1000
    assert spins(60.0, GOMP_SPINCOUNT="77") == (0.0, "77")
    assert spins(60.0, OMP_WAIT_POLICY="ACTIVE")[0] == 0.0


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("items", [0, 1, 5, 6])
def test_processes_share_work_and_the_first_one_joins_it_in_order(count: int, items: int) -> None:
    done: list[tuple[int, int]] = []

    def one(group: Processes) -> list[int] | None:
        def work(item: int) -> int:
            done.append((group.rank, item))
            return item * item

        return group.share(work, range(items), list)

    joined = threads_as_processes(count, one)
    assert joined == [[item * item for item in range(items)], *[None] * (count - 1)]
    assert sorted(done, key=lambda pair: pair[1]) == [(item % count, item) for item in range(items)]


def test_processes_go_on_once_what_the_first_one_joined_is_there() -> None:
    joined = []

    def one(group: Processes) -> int:
        group.share(str, range(4), lambda results: time.sleep(0.05) or joined.extend(results))
        return len(joined)

    assert threads_as_processes(3, one) == [4, 4, 4]


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    for processes, threads in ((1, 6), (2, 3), (4, 1), (9, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        taken: list[int] = []
        next(in_threads(lambda item: item, (taken.append(item) or item for item in range(20))))
        assert len(taken) == threads
