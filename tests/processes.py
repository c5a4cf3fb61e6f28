"""Processes of their own for tests: forked from one that has done the imports, so that each starts in no time.

A script that needs no process of its own runs in this one.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

import pytest

from memscope.__main__ import main
from memscope.base.work import Processes

T = TypeVar("T")

FRESH = multiprocessing.get_context("forkserver")
"""Starts a process without anything that a test did to this one."""
_IMPORTED = ["memscope.train.loop", "memscope.record.loop", "memscope.cli.main"]
_IMPORTED += ["torch._dynamo", "torch.distributed.fsdp", "tests.warm"]
FRESH.set_forkserver_preload(_IMPORTED)
TIMEOUT = 900


def run_group(
    words: list[str],
    folder: Path,
    processes: int,
    variables: Mapping[str, str],
    before: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command of memscope in processes that know of each other, as a launcher would start them.

    Args:
        words: The command's words.
        folder: Where the processes write what they say.
        processes: How many there are.
        variables: What the launcher says to all of them, beside who each of them is.
        before: What each of them calls first.

    Returns:
        The code of the first one that failed, or 0, and what all of them wrote.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, **variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    files = _empty_files(folder)
    started = []
    for rank in range(processes):
        numbered = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(FRESH.Process(target=_command, args=(words, numbered, *files, before)))
        started[-1].start()
    code = wait_for(started)
    return subprocess.CompletedProcess(words, code, *(file.read_text() for file in files))


class Command:
    """A command of memscope in a process of its own, which has what ``python -m memscope`` would have imported."""

    def __init__(self, words: list[object], folder: Path) -> None:
        """Start it; what it writes goes to files in ``folder``, which is made."""
        self.words = [str(word) for word in words]
        folder.mkdir()
        self._files = _empty_files(folder)
        self._process = FRESH.Process(target=_command, args=(self.words, dict(os.environ), *self._files, None))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.exitcode is None

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end: its code and what it wrote."""
        self._process.join(TIMEOUT)
        assert self._process.exitcode is not None, f"still running after {TIMEOUT} s"
        out, err = (file.read_text() for file in self._files)
        return subprocess.CompletedProcess(self.words, self._process.exitcode, out, err)


def run_here(script: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> subprocess.CompletedProcess[str]:
    """Run a script as Python's own command line does, but in this process, which has imported what it needs."""
    code: Any = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *words])
        patch.syspath_prepend(str(script.parent))
        capsys.readouterr()
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
    return subprocess.CompletedProcess(words, code, *capsys.readouterr())


def _empty_files(folder: Path) -> tuple[Path, Path]:
    files = folder / "stdout", folder / "stderr"
    for file in files:
        file.write_bytes(b"")
    return files


def _redirect(out: Path, err: Path) -> None:
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)


def _command(
    words: list[str], environment: dict[str, str], out: Path, err: Path, before: Callable[[], None] | None
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    _redirect(out, err)
    sys.argv = ["memscope", *words]
    if before is not None:
        before()
    main()


def wait_for(started: list[Any]) -> int:
    """The first code that is not 0; the others are killed then, for they would wait for the one that failed."""
    running = {process.sentinel: process for process in started}
    try:
        while running:
            ended = wait(running, TIMEOUT)
            assert ended, f"still running after {TIMEOUT} s"
            for sentinel in ended:
                process = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    return int(process.exitcode)
        return 0
    finally:
        for process in running.values():
            process.kill()
            process.join()


def threads_as_processes(count: int, work: Callable[[Processes], T]) -> list[T]:
    """Results of ``work`` in every process of a group, by rank; threads stand for the processes."""
    everyone, lists = threading.Barrier(count, timeout=60), [[] for _ in range(count)]

    def meet() -> None:
        everyone.wait()

    def process(rank: int) -> T:
        def gather(own: list[Any]) -> list[Any]:
            lists[rank] = own
            meet()
            found = [each for list_ in lists for each in list_] if rank == 0 else []
            meet()
            return found

        return work(Processes(rank, count, meet, gather))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(process, range(count)))
