"""What the pages share: the open recording, its model, cached answers and figures. The only file that caches."""

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pandas as pd
import streamlit as st
from matplotlib.figure import Figure

from memscope import plots
from memscope.errors import InputError
from memscope.files import csv_text
from memscope.query import Recording
from memscope.serve import RECORDINGS
from memscope.store import INFO
from memscope.token_table import Trace

if TYPE_CHECKING:  # torch is loaded when a reader first types a text
    from memscope.checkpoint import LoadedRun
    from memscope.trace import TextTrace

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
    if asked in found:
        st.session_state["chosen"] = asked  # the address decides; the box below changes the address
    elif asked is not None:
        st.warning("There is no such recording as the address asks for; this is another one.")
    with st.sidebar:
        name = st.selectbox("Recording", list(found), key="chosen", on_change=_write_choice, persist_state="session")
    st.query_params["recording"] = name
    path = found[name]
    st.session_state["_open"] = path, (path / INFO).stat().st_mtime_ns
    try:
        recording()
    except InputError as error:
        st.error("This recording cannot be opened.", icon=":material/error:")
        st.code(str(error), language=None, wrap_lines=True)
        st.stop()


def _write_choice() -> None:
    st.query_params["recording"] = st.session_state["chosen"]


def find_recordings(root: Path) -> dict[str, Path]:
    """Recordings by name: ``root`` itself, or those directly under it."""
    folders = [root] if (root / INFO).is_file() else sorted(path.parent for path in root.glob(f"*/{INFO}"))
    return {folder.name: folder for folder in folders}


def recording() -> Recording:
    """The recording that ``choose_recording`` opened."""
    opened: Recording = _open(*st.session_state["_open"])
    return opened


def link_params(**values: int | str) -> dict[str, str]:
    """Query parameters of a link to a view of the open recording."""
    return {"recording": recording().path.name, **{name: str(value) for name, value in values.items()}}


def entry_address(entry: int) -> str:
    """Address of an entry's page, relative to the other pages."""
    return f"entries?{urlencode(link_params(entry=entry))}"


def number(label: str, name: str, count: int, place: Any) -> int:
    """A box for a number from 0 to ``count`` - 1 that is kept in the address."""
    check_number(name, count)
    value: int = place.number_input(label, 0, count - 1, key=name, bind="query-params")
    return value


def check_number(name: str, count: int) -> None:
    """Say so when the address holds a ``name`` outside 0 to ``count`` - 1; call before the widget of that name."""
    asked = st.query_params.get(name)
    kept = st.session_state.get(name)
    if kept is not None and kept >= count:
        st.session_state[name] = 0  # left from another recording or a longer text
    elif kept is None and asked and not (asked.isdecimal() and int(asked) < count):
        st.warning(f"There is no such {name} as the address asks for; they run from 0 to {count - 1:,}.")


def choose_document(place: Any, titles: int) -> int:
    """Let the reader choose one of the first ``titles`` documents, or keep the one in the address."""
    documents = recording().documents
    asked = st.query_params.get("doc")
    if asked is None:
        asked = str(min(st.session_state.get("_doc", 0), len(documents) - 1))
    valid = asked.isdecimal() and int(asked) < len(documents)
    if not valid:
        st.warning(f"There is no such doc as the address asks for; they run from 0 to {len(documents) - 1:,}.")
    st.session_state["document"] = int(asked) if valid else 0
    known = sorted({*range(min(titles, len(documents))), st.session_state["document"]})
    names = dict(zip(known, documents["title"].iloc[known], strict=True))
    chosen: int = place.selectbox(
        "Document",
        known,
        format_func=lambda doc: f"{doc}: {names[doc] or 'untitled'}",
        key="document",
        on_change=_write_document,
    )
    st.query_params["doc"] = str(chosen)
    st.session_state["_doc"] = chosen  # for when the reader comes back from another page
    return chosen


def _write_document() -> None:
    st.query_params["doc"] = str(st.session_state["document"])
    st.session_state["token"] = 0


def trace_document(doc: int, first: int, count: int) -> Trace:
    """``Recording.trace`` of the open recording, cached."""
    return _trace_document(*st.session_state["_open"], doc, first, count)


def trace_typed(text: str) -> "TextTrace":
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


def download(label: str, table: Callable[[], pd.DataFrame], name: str) -> None:
    """A button that saves a table as CSV; the table is asked for on the click."""
    file = f"{recording().path.name}-{name}.csv"
    st.download_button(
        label, lambda: csv_text(table()), file, "text/csv", icon=":material/download:", on_click="ignore"
    )


@st.cache_resource(max_entries=4, show_spinner="Opening the recording ...")
def _open(path: Path, modified: int) -> Recording:
    return Recording(path)


@st.cache_resource(max_entries=1, show_spinner="Loading the model ...")
def _load_run(run: Path, modified: int) -> "LoadedRun":
    from memscope.checkpoint import load_run

    return load_run(run)


@st.cache_resource
def _model_lock() -> threading.Lock:
    """Hooks sit on the one shared model: two readers must not run it at once."""
    return threading.Lock()


@st.cache_data(max_entries=64, show_spinner=False)
def _trace_document(path: Path, modified: int, doc: int, first: int, count: int) -> Trace:
    return _open(path, modified).trace(doc, first, count)


@st.cache_data(max_entries=32, show_spinner="Running the model ...")
def _trace_typed(fingerprint: str, text: str, _run: "LoadedRun") -> "TextTrace":
    from memscope.trace import trace_text

    with _model_lock():
        return trace_text(_run, text)


# Some tables hold lists, which pandas cannot hash.
@st.cache_data(max_entries=64, show_spinner=False, hash_funcs={pd.DataFrame: pd.DataFrame.to_json})
def _draw(name: str, dark: bool, *arguments: Any) -> bytes:
    buffer = io.BytesIO()
    getattr(plots, name)(*arguments, dark=dark).savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
