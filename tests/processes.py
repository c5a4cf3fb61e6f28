"""Processes of their own for tests: forked from one that has done the imports, so that each starts in no time."""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from memscope.__main__ import main

FRESH = multiprocessing.get_context("forkserver")
"""Starts a process without anything that a test did to this one."""
FRESH.set_forkserver_preload(
    ["memscope.train.loop", "memscope.record.loop", "memscope.cli.main", "torch._dynamo", "torch.distributed.fsdp"]
)
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


def run_script(script: Path, words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script as Python's own command line does; ``folder`` is where it writes what it says."""
    files = _empty_files(folder)
    process = FRESH.Process(target=_script, args=(script, words, *files))
    process.start()
    return subprocess.CompletedProcess(words, wait_for([process]), *(file.read_text() for file in files))


def _empty_files(folder: Path) -> tuple[Path, Path]:
    files = folder / "stdout", folder / "stderr"
    for file in files:
        file.write_bytes(b"")
    return files


def _redirect(out: Path, err: Path) -> None:
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)


def _script(script: Path, words: list[str], out: Path, err: Path) -> None:
    _redirect(out, err)
    sys.argv, sys.path[0] = [str(script), *words], str(script.parent)
    runpy.run_path(str(script), run_name="__main__")


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
