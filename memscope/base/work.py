"""Long work: on all cores, and with its progress shown."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm

S = TypeVar("S")
T = TypeVar("T")


def in_threads(work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Results of ``work`` in the order of ``items``, as many at a time as there are cores, none far ahead."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(cores) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


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
