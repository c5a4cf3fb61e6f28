"""Do before a reader asks what takes long at first: import what pages and models need; ``live`` loads the model.

The server starts it. Nothing here may fail for a reader: what goes wrong is said when it is asked for.
"""

import logging
import os
import sys
import threading
from contextlib import suppress
from importlib import import_module

from app.garbage import search_from_here
from app.model.process import OFF, serve_apart

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


def begin_model() -> None:
    """Have models run in a process of their own, which begins at once with what it imports."""
    apart = serve_apart()
    if not os.environ.get(OFF):
        apart.begin()


def start() -> None:
    """Import what pages need, in the background; once for each server."""
    global _started
    if os.environ.get(OFF):
        search_from_here()
        return
    if _started:
        return
    _started = True
    sys.setswitchinterval(_SWITCH)
    logging.getLogger(_NO_SESSION).setLevel(logging.ERROR)  # caches are filled by threads without a reader, on purpose
    threading.Thread(target=_import, name="memscope-ahead", daemon=True).start()


def works() -> bool:
    """Whether this process serves the app, and does work ahead."""
    return _started


def _import() -> None:
    with suppress(Exception):
        for name in _FIRST:
            import_module(name)
    search_from_here()
