"""Run the recorded model on texts that a reader types; one model serves all readers.

torch is loaded when the first reader is about to type, in the background.
"""

import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from app.state import RECORD, recording
from memscope.base.errors import InputError

if TYPE_CHECKING:
    from memscope.causal.what_if import Change, Changed
    from memscope.record.trace import TextTrace
    from memscope.run.checkpoint import LoadedRun

_MODEL = "model.safetensors"


def recorded_run(name: str | None = None) -> "LoadedRun":
    """Load the run that was recorded, of the open recording or another one. Hold ``model_lock`` while it runs.

    Raises:
        InputError: the model is missing, or was trained further.
    """
    info = recording(name).info
    run = Path(info.run)
    if not (run / _MODEL).is_file():
        raise InputError(
            f"{run}: the recorded run is missing. Recorded documents can still be read. For typed text, restore the "
            f"run, or train and record again: {RECORD}"
        )
    with st.spinner("Loading the model ..."):
        loaded = _load_run(run, (run / _MODEL).stat().st_mtime_ns)
    if loaded.fingerprint != info.fingerprint:
        raise InputError(
            f"{run}: the run was trained further after it was recorded, so its answers would not match this recording. "
            f"Record it again: memscope record {run} --corpus {info.corpus} --out recordings/NEW"
        )
    return loaded


def trace_typed(text: str, name: str | None = None) -> "TextTrace":
    """Trace a text with the recorded model of the open recording or another one.

    Raises:
        InputError: see ``recorded_run``; or the text does not fit.
    """
    loaded = recorded_run(name)
    return _trace_typed(loaded.fingerprint, text, loaded)


def compare_typed(text: str, change: "Change") -> pd.DataFrame:
    """``what_if.compare_text`` of the recorded model: a text before and after a change.

    Raises:
        InputError: see ``recorded_run``; or the text does not fit, or the change cannot be made.
    """
    run = recorded_run()
    return _compare_typed(run.fingerprint, text, change, run)


def changed_contexts(change: "Change") -> "Changed":
    """``what_if.changed_contexts`` of the open recording: recorded text that a change alters most.

    Raises:
        InputError: see ``recorded_run``; or the change alters nothing that was recorded.
    """
    run = recorded_run()
    return _changed_contexts(str(recording().path), run.fingerprint, change, run)


def expect_text() -> None:
    """Load the model of the open recording in the background: it is there when the reader has typed a text."""
    run = Path(recording().info.run)
    if (run / _MODEL).is_file():
        _loading(run, (run / _MODEL).stat().st_mtime_ns)


@st.cache_resource(max_entries=2, show_spinner=False)
def _load_run(run: Path, modified: int) -> "LoadedRun":
    from memscope.run.checkpoint import load_run

    return load_run(run)


@st.cache_resource(max_entries=2, show_spinner=False)
def _loading(run: Path, modified: int) -> threading.Thread:
    def load() -> None:
        with suppress(InputError):  # the error is shown when a text is sent
            _load_run(run, modified)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    return thread


@st.cache_resource
def model_lock() -> threading.Lock:
    """A lock on the shared model, whose hooks allow one reader at a time."""
    return threading.Lock()


@st.cache_data(max_entries=32, show_spinner="Running the model ...")
def _trace_typed(fingerprint: str, text: str, _run: "LoadedRun") -> "TextTrace":
    from memscope.record.trace import trace_text
    from memscope.run.adapters.own import OwnRun

    with model_lock():
        return trace_text(OwnRun(_run), text)


@st.cache_data(max_entries=32, show_spinner="Running the model ...")
def _compare_typed(fingerprint: str, text: str, change: "Change", _run: "LoadedRun") -> pd.DataFrame:
    from memscope.causal.what_if import compare_text

    with model_lock():
        return compare_text(_run, text, change)


@st.cache_data(max_entries=16, show_spinner="Reading recorded text ...")
def _changed_contexts(path: str, fingerprint: str, change: "Change", _run: "LoadedRun") -> "Changed":
    from memscope.causal.what_if import changed_contexts

    with model_lock():
        return changed_contexts(_run, recording(), change)
