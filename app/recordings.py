"""The reader's choice of a recording: in the sidebar, or in a table of all of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from app import address, outside, state
from memscope.base.errors import InputError
from memscope.base.printable import printable
from memscope.query.catalog import DEPTH, recordings_table, runs_without_recording
from memscope.recording.info import INFO


def choose_recording() -> None:
    """Let the reader choose a recording in the sidebar and open it; stops the page where there is none."""
    recordings = state.find_recordings(state.root())
    if not recordings:
        st.title("No recording yet")
        st.write(
            "A recording holds the entries that a model's gate selected on a corpus. Make one, then reload this page:"
        )
        outside.code(state.RECORD, language="bash")
        st.stop()
    name, missing = address.choose(state.usable_first())
    if missing:
        st.warning("There is no such recording as the address names; this is another one.")
    st.session_state["_recording"] = st.session_state["chosen"] = name
    with st.sidebar:
        st.selectbox(
            "Recording",
            list(recordings),
            key="chosen",
            on_change=_choose,
            format_func=printable,
            help=f"There are {len(recordings):,} recordings in {state.root().name}/ and the folders in it.",
        )
    with say_what_is_wrong():
        state.open_by_name(name)


@contextmanager
def say_what_is_wrong() -> Iterator[None]:
    """Stop the page with a sentence, and with all recordings to choose from, where the open one cannot be read."""
    try:
        yield
    except (InputError, OSError) as error:
        st.error("This recording cannot be opened.", icon=":material/error:")
        outside.code(str(error), language=None, wrap_lines=True)
        all_recordings()
        st.stop()


def _choose() -> None:
    st.session_state["_recording"] = st.session_state["chosen"]
    st.session_state["_used"] = True


def all_recordings() -> None:
    """Every recording in the folder, and runs beside it that were not recorded."""
    recordings = state.find_recordings(state.root())
    table = recordings_table(recordings, state.root())
    st.session_state["_all"] = table["recording"].tolist()

    def open_row() -> None:
        chosen = st.session_state["all"].selection.rows
        if chosen:
            st.session_state["_recording"] = st.session_state["_all"][chosen[0]]
            st.session_state["_used"] = True

    outside.table(
        table,
        hide_index=True,
        height="content",
        key="all",
        on_select=open_row,
        selection_mode="single-row",
        column_config={
            name: st.column_config.NumberColumn(format="localized") for name in ("tokens", "selections", "entries")
        }
        | {"loss": st.column_config.NumberColumn("loss, nats", format="%.3f")},
        alt="Recordings in this folder",
    )
    st.caption(f"Every {INFO} in {state.root().name}/ and up to {DEPTH} folders below it. Select a row to open it.")
    waiting = runs_without_recording(state.root(), recordings)
    if waiting:
        st.subheader("Runs without a recording here")
        for path in waiting:
            outside.code(f"memscope record {path} --corpus FILE --out {state.root() / path.name}", language="bash")
