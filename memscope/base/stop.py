"""Ctrl-C and SIGTERM: one line, exit status 130 or 143, soon, whatever runs; nothing half-written is left.

A signal is a ``KeyboardInterrupt`` in the main thread, which tidies up as after an error. Long work in C (an import, a
compiled loop, a wait for other processes) does not see it. So a thread, woken by the part of the signal's handling that
is in C, ends the process if it is still there ``GRACE`` seconds later.
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
    """Have signals stop this process; call it first of all, in the main thread.

    Signals that the caller has this process ignore (``nohup``, background jobs of a script) stay ignored.
    """
    heard = {number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in heard:
        signal.signal(number, _stop)
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_watch, args=(reading, heard), name="memscope-stop", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def hold_signals() -> set[signal.Signals | int]:
    """Have signals wait, through the start of another program too, until ``stop_on_signals``; returns what waited."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def at_end(tidy: Callable[[], None]) -> Callable[[], None]:
    """Have a function called before this process is stopped: it removes what should not stay."""
    _at_end.append(tidy)
    return tidy


def tidy_up() -> None:
    """Call what ``at_end`` was given."""
    for tidy in _at_end:
        tidy()


def stopped() -> bool:
    """Whether a signal has come."""
    return _stopped is not None


def leave() -> NoReturn:
    """Say that a signal has stopped this process, under torchrun the first process for all, and end it.

    Python's own ending is left out: it joins threads that work on, and unloads libraries whose threads may then wait
    for one another for ever.
    """
    global _said
    assert _stopped is not None
    if not _said and os.environ.get("RANK", "0") == "0":
        _said = True
        name = "" if _stopped == signal.SIGINT else f" by {signal.Signals(_stopped).name}"
        after_progress = "\n" if sys.stderr is not None and sys.stderr.isatty() else ""
        os.write(2, f"{after_progress}memscope: stopped{name}\n".encode())  # no lock of print's, which may be held
    tidy_up()
    os._exit(128 + _stopped)


def _stop(number: int, frame: FrameType | None) -> None:
    global _stopped
    if _stopped is None:
        _stopped = number
        # What the interruption breaks off need not be told: threads, destructors.
        silent: Any = lambda _: None  # noqa: E731
        sys.unraisablehook = threading.excepthook = silent
        raise KeyboardInterrupt


def _watch(reading: int, heard: set[signal.Signals]) -> NoReturn:
    global _stopped
    while (number := os.read(reading, 1)[0]) not in heard:
        pass
    time.sleep(GRACE)
    _stopped = _stopped or number
    leave()


def _forget() -> None:
    """In a child that is a copy of this process: it is none of memscope's commands."""
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)
