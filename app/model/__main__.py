"""``python -m app.model PIPE``: what ``process.ModelProcess`` starts, with the number of its end of the pipe."""

import os
import signal
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from app import garbage
from app.model.process import OFF, STOP, Said
from memscope.base.errors import InputError

_FIRST = ("memscope.run.adapters.load", "memscope.record.continuation")
"""What takes long to import, and is needed by all that is asked."""
_LATER = ("memscope.causal.what_if.compare",)
"""What a change needs besides: imported when a model is loaded and nothing is asked."""
_QUIET = 0.5
"""Seconds without a question that count as quiet."""


class _NobodyWaitsError(Exception):
    """Nobody waits for the answer any more."""


def main(pipe: Connection) -> NoReturn:
    """Import, then do what is asked, until the server has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this process
    garbage.search_later()
    ahead = not os.environ.get(OFF)
    if ahead:
        _import(_FIRST)
    with suppress(EOFError, ConnectionError):
        _answer_next(pipe)  # which loads a model
        garbage.search_from_here()
        while True:
            if ahead and not pipe.poll(_QUIET):
                _import(_LATER)
                ahead = False
            _answer_next(pipe)
    os._exit(0)  # unloading torch while its threads wait sometimes aborts


def _import(names: tuple[str, ...]) -> None:
    with suppress(Exception):  # an error is said when something is asked
        for name in names:
            import_module(name)


def _answer_next(pipe: Connection) -> None:
    asked = pipe.recv()
    if asked is not STOP:  # it came after the answer
        pipe.send(_answer(pipe, *asked))


def _answer(pipe: Connection, work: Any, arguments: tuple[Any, ...], watched: bool) -> Said:
    def say(*far: Any) -> None:
        if pipe.poll():
            assert pipe.recv() is STOP, "one thing is asked at a time"
            raise _NobodyWaitsError
        pipe.send(("said", far))

    try:
        return "done", work(*arguments, **({"watch": say} if watched else {}))
    except InputError as error:
        return "refused", error
    except _NobodyWaitsError:
        return "done", None
    except Exception:
        return "failed", traceback.format_exc()


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
