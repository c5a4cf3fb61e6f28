"""Long work: on all cores, shared out over processes, and with its progress shown."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
SPINS = "GOMP_SPINCOUNT"
"""Variable of GCC's OpenMP: how often a thread that waits looks again before it sleeps."""
_FEW_SPINS = "1000"
_BUSY = 0.5
"""Cores that others use from which on they are neighbours."""


def yield_to_neighbours() -> float:
    """Let threads that wait for one another sleep sooner, if other processes use the cores now (docs/log/busy.md).

    For processes that compute with several threads, before they import torch, which reads the variable then. Takes 0.2
    seconds. Variables that the user set stay as they are.

    Returns:
        The cores that others use, or 0 where nothing was changed.
    """
    import psutil

    if "torch" in sys.modules or os.environ.get("OMP_NUM_THREADS") == "1":
        return 0.0
    if SPINS in os.environ or "OMP_WAIT_POLICY" in os.environ:
        return 0.0
    used = psutil.cpu_percent(0.2) / 100 * (os.cpu_count() or 1)
    if used < _BUSY:
        return 0.0
    os.environ[SPINS] = _FEW_SPINS
    return used


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Results of ``work`` in the order of ``items``, as many at a time as there are cores, none far ahead.

    Processes that torchrun started on one machine share its cores.
    """
    threads = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Processes(NamedTuple):
    """The processes that ``torchrun`` started together, seen from one of them."""

    rank: int
    world_size: int
    wait: Callable[[], None]
    """Block until all processes have arrived."""
    gather: Callable[[list[Any]], list[Any]]
    """All processes' lists, one behind the other, in the first of them; an empty list in the others."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes for all."""
        return self.rank == 0

    def share(self, work: Callable[[S], T], items: Sequence[S], join: Callable[[Iterator[T]], R]) -> R | None:
        """What ``join`` makes of the results of ``work`` in the order of ``items``, in the main process; else none.

        Items are dealt out to the processes in turn, and each process does its own in threads. All processes call this
        with the same items, and go on once ``join`` has ended, so that files which it wrote are there.
        """
        results = self._results(work, items)
        joined = join(results) if self.is_main else None
        deque(results, maxlen=0)  # other processes work and send, and join nothing
        self.wait()
        return joined

    def _results(self, work: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
        own = in_threads(work, items[self.rank :: self.world_size])
        for _ in range(0, len(items), self.world_size):
            yield from self.gather(list(islice(own, 1)))


ALONE = Processes(0, 1, lambda: None, lambda own: own)
"""A process without others."""


def bar_options(what: str, unit: str, shown: bool = True) -> dict[str, Any]:
    """How a bar of tqdm looks: on standard error with speed and time left, on a terminal alone."""
    hidden = None if shown else True  # None asks whether standard error is a terminal
    return {"desc": what, "unit": f" {unit}", "file": sys.stderr, "disable": hidden}


def progress(what: str, total: int, unit: str, done: int = 0, shown: bool = True) -> "tqdm[None]":
    """A bar that counts by ``update(n)``; a context.

    Args:
        what: is being done, in a word or two.
        total: of it.
        unit: that is counted, in the plural: tokens, pages.
        done: of it before.
        shown: whether this process speaks, where several work together.
    """
    return tqdm(total=total, initial=done, unit_scale=total >= 1000, **bar_options(what, unit, shown))


def watched(
    items: Iterable[S], what: str, unit: str, total: int | None = None, size: Callable[[S], int] = lambda _: 1
) -> Iterator[S]:
    """The items one by one, with ``progress`` over them; ``total`` of their sizes, which by default is their number."""
    if total is None:
        items = list(items)
        total = sum(map(size, items))
    with progress(what, total, unit) as bar:
        for item in items:
            yield item
            bar.update(size(item))
