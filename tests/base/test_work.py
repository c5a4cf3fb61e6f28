"""Results of threads come in order, few at a time, and errors come out; bars count what was done."""

import io
import threading
import time
from collections.abc import Iterator

import pytest

from memscope.base.work import in_threads, watched


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
