"""See inside a language model's memory.

    corpus, sentences -> train -> run/ -> record -> recording/ -> query -> report, app

The public names are imported on first use, so that ``import memscope`` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from memscope.query.recording import Recording as Recording
    from memscope.run.adapters.own import capture_memory as capture_memory
    from memscope.run.checkpoint import load_run as load_run

_HOMES = {"Recording": "query.recording", "capture_memory": "run.adapters.own", "load_run": "run.checkpoint"}

__all__ = ["Recording", "__version__", "capture_memory", "load_run"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("memscope")
    if name not in _HOMES:
        raise AttributeError(f"module 'memscope' has no attribute '{name}'")
    return getattr(import_module(f"memscope.{_HOMES[name]}"), name)
