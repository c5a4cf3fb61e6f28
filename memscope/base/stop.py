"""Stop at Ctrl-C and SIGTERM: soon, with one line and exit status 130 or 143, and without half-written files.

A signal becomes a ``KeyboardInterrupt`` in the main thread, which tidies up as after an error. Long work in C (an
import, a compiled loop, a wait for other processes) does not see it. Therefore a thread, which the C part of signal
handling wakes, ends the process if it still runs ``GRACE`` seconds later.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

GRACE = 1.5
"""Seconds for tidying up."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_at_end: list[Callable[[], None]] = []
_stopped: int | None = None
_said = False


def stop_on_signals() -> None:
    """Let signals stop this process; call it before anything else, in the main thread.

    Signals that this process was started to ignore (``nohup``, background jobs of a script) stay ignored.
    """
    watched = {number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in watched:
        signal.signal(number, _stop)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_watch, args=(reading, watched), name="memscope-stop", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def hold_signals() -> set[signal.Signals | int]:
    """Block signals until ``stop_on_signals``, also over the start of another program; returns those blocked before."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def at_end(tidy: Callable[[], None]) -> Callable[[], None]:
    """Call ``tidy`` before a signal ends this process, to remove files that should not stay."""
    _at_end.append(tidy)
    return tidy


def tidy_up() -> None:
    """Call the functions that ``at_end`` was given."""
    for tidy in _at_end:
        tidy()


def stopped() -> bool:
    """Whether a signal has come."""
    return _stopped is not None


def leave() -> NoReturn:
    """End this process and say that a signal has stopped it; under torchrun the first process says so for all.

    Python's regular exit is left out: it joins threads that still work, and unloads libraries whose threads may then
    wait for one another for ever.
    """
    global _said
    assert _stopped is not None
    if not _said and os.environ.get("RANK", "0") == "0":
        _said = True
        name = "" if _stopped == signal.SIGINT else f" by {signal.Signals(_stopped).name}"
        after_progress = "\n" if sys.stderr is not None and sys.stderr.isatty() else ""
        os.write(2, f"{after_progress}memscope: stopped{name}\n".encode())  # not print: its lock may be held
    tidy_up()
    os._exit(128 + _stopped)


def _stop(number: int, frame: FrameType | None) -> None:
    global _stopped
    if _stopped is None:
        _stopped = number
        # Threads and destructors that the interruption breaks off need no message.
        silent: Any = lambda _: None  # noqa: E731
        sys.unraisablehook = threading.excepthook = silent
        raise KeyboardInterrupt


def _watch(reading: int, watched: set[signal.Signals]) -> NoReturn:
    global _stopped
    while (number := os.read(reading, 1)[0]) not in watched:
        pass
    time.sleep(GRACE)
    _stopped = _stopped or number
    leave()


def _forget() -> None:
    """In a forked child: let signals act as usual, because it is not a command of memscope."""
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)
