"""The reader's choice of a recording: in the sidebar, or in a table of all of them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import streamlit as st

from app import address, outside, state
from app.parts import training
from memscope.base.errors import InputError
from memscope.base.printable import printable
from memscope.base.words import first_upper
from memscope.query.catalog import DEPTH, recordings_table
from memscope.recording.info import INFO, RecordingInfo
from memscope.report.words import bias_name


class PageName(NamedTuple):
    """A page in the menu."""

    title: str
    help: str


def pages() -> dict[str, PageName]:
    """Titles and tooltips of all pages, by what the chosen recording holds; of a memory where it cannot be opened."""
    names = state.opening_order()
    info = None
    if names:
        with suppress(InputError, OSError):
            info = state.recording(address.choose(names)[0]).info
    if info is None or info.kind == "memory":
        return _PAGES
    return _PAGES | _pages_of(info)


_PAGES = {
    "overview": PageName("Overview", "The recording, its training and the health of the memory."),
    "prompts": PageName("Prompts", "Token by token: the entries that the gate selected and the attention read."),
    "entries": PageName("Entries", "The whole bank: search it, sort it, and open one entry."),
    "map": PageName("Map", "The bank in two dimensions, coloured by what entries are and do."),
    "gate_bias": PageName("Gate bias", "Evenness of selection, preferences, anomalies and the full report."),
    "reading": PageName("Reading", "How the attention weighs what the gate selected."),
    "routing": PageName("Routing", "Load, domains, tokens, pairs and paths of layers with few entries; their atlas."),
    "facts": PageName("Facts", "Does a question select, read and need the entries that started from its fact?"),
    "what_if": PageName("What if", "Ablate, force, swap or rewrite entries, and see what changes."),
    "compare": PageName("Compare", "Two recordings side by side, such as two checkpoints or seeds."),
}


def _pages_of(info: RecordingInfo) -> dict[str, PageName]:
    """Pages whose words are others than those of a memory."""
    many = info.word(2)
    weighed = f", and how the {info.reader} weighs them" if info.has("reads") else ""
    reading = "Nothing weighs what is selected apart from its scores."
    if info.has("reads"):
        reading = f"How the {info.reader} weighs what the {info.selector} selected."
    return {
        "overview": PageName("Overview", f"The recording, its model, and how its {many} are used."),
        "prompts": PageName("Prompts", f"Token by token: the {many} that are selected{weighed}."),
        "entries": PageName(first_upper(many), f"All {many}: search them, sort them, and open one."),
        "map": PageName("Map", f"All {many} in two dimensions, coloured by what they are and do."),
        "gate_bias": PageName(
            first_upper(bias_name(info)), "Evenness of selection, profiles, anomalies and the full report."
        ),
        "reading": PageName("Reading", reading),
        "routing": PageName(
            "Routing", f"Load, domains, tokens, pairs and paths of layers with few {many}; their atlas."
        ),
        "facts": PageName("Facts", "An audit of facts, for a memory whose entries started from sentences."),
        "what_if": PageName("What if", f"Ablate, force, swap or scale {many}, and see what changes."),
    }


def choose_recording() -> None:
    """Let the reader choose a recording in the sidebar and open it; stops the page where there is none."""
    recordings = state.find_recordings(state.root())
    if not recordings:
        st.title("No recording yet")
        if waiting := training.runs():
            training.follow(waiting)
            st.stop()
        st.write(
            "A recording holds the entries that a model's gate selected on a corpus. Make one, then reload this page:"
        )
        outside.code(state.RECORD, language="bash")
        st.stop()
    name, missing = address.choose(state.opening_order())
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


def place() -> list[str]:
    """What stands on every page: the product, the model and the corpus of the open recording."""
    with say_what_is_wrong():
        info = state.recording().info
    return ["memscope", f"model {info.run_name}", f"corpus {info.corpus_name}", f"{info.rows:,} tokens"]


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
