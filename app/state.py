"""What the pages share: the open recording, its model, cached answers and figures. The only file that caches."""

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
from matplotlib.figure import Figure

from memscope import plots
from memscope.checkpoint import LoadedRun, load_run
from memscope.errors import InputError
from memscope.files import csv_text
from memscope.query import Recording, Trace
from memscope.serve import RECORDINGS
from memscope.store import INFO
from memscope.trace import TextTrace, trace_text

_RECORD = "memscope record RUN --corpus FILE --out recordings/NAME"


def choose_recording() -> None:
    """Let the reader choose a recording in the sidebar and open it; stops the page where there is none."""
    found = find_recordings(Path(os.environ.get(RECORDINGS, "recordings")))
    if not found:
        st.title("No recording yet")
        st.write("A recording holds what a trained model's gate selected on a corpus. Make one, then reload this page:")
        st.code(_RECORD, language="bash")
        st.stop()
    asked = st.query_params.get("recording")
    if asked is not None and asked not in found:
        st.warning(f"The address asks for a recording that is not here; this is another one of {len(found)}.")
    # The widget's own default is no choice at all, so that every address names its recording.
    if st.session_state.get("recording") is None and asked not in found:
        st.session_state["recording"] = next(iter(found))
    with st.sidebar:
        name = st.selectbox("Recording", list(found), index=None, key="recording", bind="query-params")
    path = found[name or next(iter(found))]
    try:
        st.session_state["_open"] = _open(path, (path / INFO).stat().st_mtime_ns)
    except InputError as error:
        st.error("This recording cannot be opened.", icon=":material/error:")
        st.code(str(error), language=None, wrap_lines=True)
        st.stop()


def find_recordings(root: Path) -> dict[str, Path]:
    """Recordings by name: ``root`` itself, or those directly under it."""
    folders = [root] if (root / INFO).is_file() else sorted(path.parent for path in root.glob(f"*/{INFO}"))
    return {folder.name: folder for folder in folders}


def recording() -> Recording:
    """The recording that ``choose_recording`` opened."""
    opened: Recording = st.session_state["_open"]
    return opened


def link_params(**values: int | str) -> dict[str, str]:
    """Query parameters of a link to a view of the open recording."""
    return {"recording": recording().path.name, **{name: str(value) for name, value in values.items()}}


def warn_of_bad_number(name: str, count: int) -> None:
    """Say so when the address holds a ``name`` outside 0 to ``count`` - 1; call before the widget of that name."""
    asked = st.query_params.get(name)
    if asked is not None and not (asked.isdecimal() and int(asked) < count):
        st.warning(f"The address asks for a {name} that is not there; there are 0 to {count - 1:,}.")


def trace_document(doc: int, first: int, count: int) -> Trace:
    """``Recording.trace`` of the open recording, cached."""
    return _trace_document(*_stamp(), doc, first, count)


def trace_typed(text: str) -> TextTrace:
    """What the recorded model does on a text.

    Raises:
        InputError: the model is gone or is another one by now, or the text does not fit.
    """
    info = recording().info
    run = Path(info.run)
    if not (run / "model.safetensors").is_file():
        raise InputError(
            f"{run}: the run that was recorded is not there any more. Recorded documents can still be read; for typed "
            f"text put the run back, or train and record again: {_RECORD}"
        )
    loaded = _load_run(run, (run / "model.safetensors").stat().st_mtime_ns)
    if loaded.fingerprint != info.fingerprint:
        raise InputError(
            f"{run}: the run has been trained further since it was recorded, so its answers would not match this "
            f"recording. Record it again: memscope record {run} --corpus {info.corpus} --out recordings/NEW"
        )
    return _trace_typed(info.fingerprint, text, loaded)


def show_figure(draw: Callable[..., Figure], *arguments: Any, alt: str) -> None:
    """Draw one of ``memscope.plots`` for the reader's theme, as wide as its column.

    The cache goes by the name of the function and its arguments, which have to be tables, arrays or plain values.
    """
    dark = st.context.theme.type == "dark"
    st.image(_draw(draw.__name__, dark, *arguments), width="stretch", output_format="PNG", alt=alt)


def download(label: str, frame: pd.DataFrame, name: str) -> None:
    """A button that saves a table as CSV."""
    file = f"{recording().path.name}-{name}.csv"
    st.download_button(label, csv_text(frame), file, "text/csv", icon=":material/download:", on_click="ignore")


def _stamp() -> tuple[str, int]:
    """Name of the open recording for the caches, new when it is written anew."""
    path = recording().path
    return str(path), (path / INFO).stat().st_mtime_ns


@st.cache_resource(max_entries=4, show_spinner="Opening the recording ...")
def _open(path: Path, modified: int) -> Recording:
    return Recording(path)


@st.cache_resource(max_entries=1, show_spinner="Loading the model ...")
def _load_run(run: Path, modified: int) -> LoadedRun:
    return load_run(run)


@st.cache_resource
def _model_lock() -> threading.Lock:
    """Hooks sit on the one shared model: two readers must not run it at once."""
    return threading.Lock()


@st.cache_data(max_entries=64, show_spinner=False)
def _trace_document(path: str, modified: int, doc: int, first: int, count: int) -> Trace:
    return recording().trace(doc, first, count)


@st.cache_data(max_entries=32, show_spinner="Running the model ...")
def _trace_typed(fingerprint: str, text: str, _run: LoadedRun) -> TextTrace:
    with _model_lock():
        return trace_text(_run, text)


@st.cache_data(max_entries=64, show_spinner=False)
def _draw(name: str, dark: bool, *arguments: Any) -> bytes:
    buffer = io.BytesIO()
    getattr(plots, name)(*arguments, dark=dark).savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
