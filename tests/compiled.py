"""What is compiled at its first call is compiled once: of processes that call it at the same time, the first makes a
file and the others wait for it. A new checkout has none of these files.
"""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher

from memscope.model.ops import native
from tests.once import alone

_alone = False
"""Whether this process is the one that compiles; a loop that calls another one compiles that one too."""


def one_process_at_a_time(compile_: Callable[..., Any]) -> Callable[..., Any]:
    """``compile_``, which looks for the file first, in one process at a time."""

    @wraps(compile_)
    def call(*arguments: Any) -> Any:
        global _alone
        with global_compiler_lock:
            if _alone:
                return compile_(*arguments)
            with alone(Path(__file__)):
                _alone = True
                try:
                    return compile_(*arguments)
                finally:
                    _alone = False

    return call


Dispatcher.compile = one_process_at_a_time(Dispatcher.compile)
native._load = one_process_at_a_time(native._load)
