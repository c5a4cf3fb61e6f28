"""Do before a reader asks what takes long at first: import what pages need; ``live`` loads the model that they may ask.

The server starts it. Nothing here may fail for a reader: what goes wrong is said when it is asked for.
"""

import gc
import logging
import os
import sys
import threading
from contextlib import suppress
from importlib import import_module

OFF = "MEMSCOPE_NOT_AHEAD"
"""Environment variable under which nothing is done ahead."""
_FIRST = (
    "app.recordings",
    "app.parts.overview",
    "app.parts.tables",
    "app.parts.report.page",
    "memscope.report.findings",
    "memscope.report.health",
    "memscope.report.plots.usage",
)
"""Modules that the first page waits for."""
_SWITCH = 0.0005
"""Seconds for which a thread keeps Python to itself; by default a page waits ten times as long for each turn."""
_NO_SESSION = "streamlit.runtime.scriptrunner_utils.script_run_context"
_started = False


def start() -> None:
    """Import what pages need, in the background; once for each server."""
    global _started
    if os.environ.get(OFF) or _started:
        return
    _started = True
    sys.setswitchinterval(_SWITCH)
    logging.getLogger(_NO_SESSION).setLevel(logging.ERROR)  # caches are filled by threads without a reader, on purpose
    threading.Thread(target=_import, name="memscope-ahead", daemon=True).start()


def works() -> bool:
    """Whether this process serves the app, and does work ahead."""
    return _started


def settle() -> None:
    """Take all objects that live now out of Python's search for garbage.

    Streamlit has Python search after every run of a page, before the browser hears that the run is over: 0.08 s of CPU
    among the objects of imported modules, 0.23 s once torch is among them.
    """
    if _started:
        gc.collect()
        gc.freeze()


def _import() -> None:
    with suppress(Exception):
        for name in _FIRST:
            import_module(name)
    settle()
