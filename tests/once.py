"""What one process makes for all that run tests: the others wait for it, then read it."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """A block in which one process is at a time, of those that name this file."""
    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A path for all processes, which the first one that asks for it makes; no test changes what is there."""
    own = factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    path, made = root / "once" / name, root / "once" / f"{name}.made"
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone(path.with_name(f"{path.name}.lock")):
        if not made.exists():
            make(path)
            made.touch()
    return path
