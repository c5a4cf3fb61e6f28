"""Ask a model that lives in a process of its own, beside a served app.

Python runs one thread of a process at a time. In the server's process, importing torch and running the model would hold
up every page; here they take another core. The process ends with the server, however that ends: it then reads the end
of its pipe.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Pipe
from typing import Any, Literal, TypeVar

from memscope.base.errors import InputError
from memscope.base.stop import at_end
from memscope.base.work import cores

OFF = "MEMSCOPE_NOT_AHEAD"
"""Environment variable under which nothing is done before a reader asks."""
Answer = TypeVar("Answer")
Said = tuple[Literal["said", "done", "refused", "failed"], Any]
"""What comes back: how far it is, any number of times; then the answer, an ``InputError`` or the report of an error."""
STOP = None
"""Sent in place of something to do: nobody waits for the answer any more."""
_ENDED = (EOFError, ConnectionError)


class ModelProcess:
    """One process, which does one thing at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        at_end(self.end)

    def begin(self) -> None:
        """Start the process, which imports what models need, unless it runs."""
        if self._child is not None and self._child.poll() is None:
            return
        self._pipe, other = Pipe()
        with other:
            command = [sys.executable, "-P", "-m", "app.model", str(other.fileno())]
            threads = {"OMP_NUM_THREADS": str(max(1, cores() - 1))}  # one core is left to the pages and the browser
            environment = threads | os.environ
            self._child = subprocess.Popen(
                command, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, env=environment
            )

    def ask(self, work: Callable[..., Answer], arguments: tuple[Any, ...], watch: Callable[..., None] | None) -> Answer:
        """See ``ask``."""
        with self._lock:
            self.begin()
            try:
                self._pipe.send((work, arguments, watch is not None))
                said, value = self._hear(watch or (lambda: None))
            except _ENDED as error:
                raise InputError(self._how_it_ended()) from error
        if said == "done":
            return value
        raise value if said == "refused" else RuntimeError(f"in the process of the model:\n{value}")

    def end(self) -> None:
        """End the process, whatever it does."""
        if self._child is not None:
            self._child.kill()

    def _hear(self, watch: Callable[..., None]) -> Said:
        """Pass on how far it is, until there is an answer. Whoever does not want it any more breaks ``watch`` off."""
        try:
            while (heard := self._pipe.recv())[0] == "said":
                watch(*heard[1])
        except _ENDED:
            raise
        except BaseException:
            self._pipe.send(STOP)
            while self._pipe.recv()[0] == "said":
                pass
            raise
        return heard

    def _how_it_ended(self) -> str:
        assert self._child is not None
        code = self._child.wait()
        memory = ", as a machine that is short of memory ends it" if code == -9 else ""
        return f"the process that runs the model ended with status {code}{memory}. Ask again, and it starts anew"


_apart: ModelProcess | None = None
_here = threading.Lock()


def serve_apart() -> ModelProcess:
    """Let models run in a process of their own from now on."""
    global _apart
    _apart = _apart or ModelProcess()
    return _apart


def ask(work: Callable[..., Answer], *arguments: Any, watch: Callable[..., None] | None = None) -> Answer:
    """Call a function of ``asked`` where the model is: in a process of its own, where ``serve_apart`` was called.

    One call runs at a time, since a model's hooks allow one reader.

    Args:
        work: the function.
        arguments: its arguments.
        watch: called with how far it is; the function is then given ``watch`` by name. An error that it raises ends the
            work, and is raised.

    Raises:
        InputError: as the function; or the process ended.
        RuntimeError: the function failed in its process, with the report of how.
    """
    if _apart is not None:
        return _apart.ask(work, arguments, watch)
    with _here:
        return work(*arguments, **({} if watch is None else {"watch": watch}))
