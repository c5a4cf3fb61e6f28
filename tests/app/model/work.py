"""What the process of the model is asked in tests, in place of ``asked``."""

import os
import time
from collections.abc import Callable

from memscope.base.errors import InputError


def refuse(what: str) -> None:
    raise InputError(f"{what}: this cannot be done")


def fail() -> None:
    raise LookupError("an error of our own")


def die() -> None:
    os._exit(7)


def count(most: int, watch: Callable[[int], None]) -> int:
    """Counts, slowly, and says every number."""
    for number in range(most):
        watch(number)
        time.sleep(0.01)
    return most
