"""Run the recorded model on texts that a reader types; one model serves all readers.

The model is loaded before a reader has typed. ``model/`` says where it runs.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pandas as pd
import streamlit as st

from app import ahead
from app.model import asked
from app.model.process import ask
from app.state import RECORD, recording
from memscope.base.errors import InputError
from memscope.base.words import command_line
from memscope.recording.info import RecordingInfo

if TYPE_CHECKING:
    from memscope.causal.what_if.change import Change, Changed
    from memscope.record.traced import Continued, Sampling, TextTrace

SMALL = 500_000_000
"""Most bytes of weights that are loaded before a reader asks."""
_REMEMBERED = 16
"""Answers of ``_remembered`` that a session keeps."""
Answer = TypeVar("Answer")
_TYPED = {"memory", "text", "experts", "neurons"}
"""Kinds of layers whose models a folder gives back; others were recorded from Python or imported."""


def can_type(info: RecordingInfo) -> bool:
    """Whether the model of a recording can be opened again and run on typed text."""
    return info.predictions and {site.kind for site in info.sites} <= _TYPED


def record_again(info: RecordingInfo, out: str) -> str:
    """The command that records the same model in the same way; empty where no command does."""
    if not can_type(info):
        return ""
    neurons = ["--neurons", info.selected] if info.kind == "neurons" else []
    own_window = (Path(info.run) / "config.yaml").is_file() or info.kind == "memory"
    window = [] if own_window else ["--window", info.window]
    return command_line("memscope", "record", info.run, "--corpus", info.corpus, "--out", out, *neurons, *window)


class Model(NamedTuple):
    """A recorded model that can be asked: where it is, and the hash of its weights."""

    where: asked.Where
    fingerprint: str


def recorded_model(name: str | None = None) -> Model:
    """The model that was recorded, of the open recording or another one, loaded.

    Raises:
        InputError: the model is missing, was trained further, or its folder gives other layers than were recorded.
    """
    info = recording(name).info
    if not (where := _where(info)):
        raise InputError(
            f"{info.run}: the recorded model is missing. Recorded documents can still be read. To run it, restore the "
            f"model, or record again: {record_again(info, 'recordings/NAME') or RECORD}"
        )
    loaded = _opened(where)
    if loaded.fingerprint != info.fingerprint:
        raise InputError(
            f"{info.run}: the model was trained further after it was recorded, so its answers would not match this "
            f"recording. Record it again: {record_again(info, 'recordings/NEW')}"
        )
    if loaded.sites != info.sites:
        raise InputError(
            f"{info.run}: other layers of the model were recorded than its folder gives, from Python. The page can "
            "only run what memscope record records"
        )
    return Model(where, loaded.fingerprint)


def trace_typed(text: str, name: str | None = None) -> "TextTrace":
    """Trace a text with the recorded model of the open recording or another one.

    Raises:
        InputError: see ``recorded_model``; or the text does not fit.
    """
    return _trace_typed(recorded_model(name), text)


def compare_typed(text: str, change: "Change") -> pd.DataFrame:
    """``compare.compare_text`` of the recorded model: a text before and after a change.

    Raises:
        InputError: see ``recorded_model``; or the text does not fit, or the change cannot be made.
    """
    return _compare_typed(recorded_model(), text, change)


def changed_contexts(change: "Change", watch: Callable[[int, int], None]) -> "Changed":
    """``compare.changed_contexts`` of the open recording: recorded text that a change alters most.

    Raises:
        InputError: see ``recorded_model``; or the change alters nothing that was recorded.
    """
    model, path = recorded_model(), recording().path
    return _remembered((model, path, change), lambda: ask(asked.changed, model.where, path, change, watch=watch))


def continue_typed(
    text: str,
    sampling: "Sampling",
    change: "Change | None" = None,
    watch: Callable[[str], None] = lambda written: None,
) -> "Continued":
    """Let the recorded model go on from a text, under a change if one is given.

    Args:
        text: what it goes on from.
        sampling: how it goes on.
        change: what holds while it writes and reads.
        watch: called with what was written so far, after every token.

    Raises:
        InputError: see ``recorded_model``; or the text cannot be continued, or the change cannot be made.
    """
    model = recorded_model()

    def write() -> "Continued":
        return ask(asked.continued, model.where, text, sampling, change, watch=watch)

    return _remembered((model, text, sampling, change), write)


def document_predictions(doc: int, pos: int) -> pd.DataFrame:
    """The most likely next tokens after a token of a recorded document, as ``TextTrace.predictions``.

    Raises:
        InputError: see ``recorded_model``.
    """
    model, here = recorded_model(), recording()
    window = here.info.window
    start, rows = (int(here.documents[name][doc]) for name in ("first_row", "rows"))
    begin = pos // window * window
    ids = tuple(here.token_ids[start + begin : start + min(begin + window, rows)].tolist())
    found = _trace_ids(model, ids).predictions
    return found.assign(pos=found["pos"] + begin)


def expect_text() -> None:
    """Load the model of the open recording in the background: it is there when the reader has typed a text."""
    if where := _where(recording().info):
        _loading(where)


def expect_small() -> None:
    """``expect_text``, of a model that is small enough to be loaded although nobody asked for it."""
    info = recording().info
    small = sum(path.stat().st_size for path in Path(info.run).glob("*.safetensors")) <= SMALL
    if ahead.works() and can_type(info) and small:
        expect_text()


def _where(info: RecordingInfo) -> asked.Where | None:
    """How the model of a recording is opened again; none if its weights are gone."""
    run = Path(info.run)
    files = [path for path in run.glob("*.safetensors") if path.stem != "bank_init"]
    if not files:
        return None
    modified = max(path.stat().st_mtime_ns for path in (*files, *run.glob("text_bank.parquet")))
    return asked.Where(run, modified, info.window, info.selected if info.kind == "neurons" else None, info.step)


@st.cache_data(max_entries=8, show_spinner="Loading the model ...")
def _opened(where: asked.Where) -> asked.Opened:
    return ask(asked.opened, where)


@st.cache_resource(max_entries=2, show_spinner=False)
def _loading(where: asked.Where) -> threading.Thread:
    """The thread that has a model loaded, and read a first text."""

    def load() -> None:
        with suppress(Exception):  # the error is shown when a text is sent
            ask(asked.warmed, where)

    thread = threading.Thread(target=load, name="memscope-ahead", daemon=True)
    thread.start()
    return thread


@st.cache_data(max_entries=32, show_spinner="Running the model ...")
def _trace_typed(model: Model, text: str) -> "TextTrace":
    return ask(asked.traced, model.where, text)


@st.cache_data(max_entries=32, show_spinner="Running the model ...")
def _trace_ids(model: Model, ids: tuple[int, ...]) -> "TextTrace":
    return ask(asked.traced_ids, model.where, ids)


@st.cache_data(max_entries=32, show_spinner="Running the model ...")
def _compare_typed(model: Model, text: str, change: "Change") -> pd.DataFrame:
    return ask(asked.compared, model.where, text, change)


def _remembered(asked: tuple[Any, ...], answer: Callable[[], Answer]) -> Answer:
    """An answer that this session remembers. Streamlit's caches cannot show how far a function is."""
    known: dict[Any, Answer] = st.session_state.setdefault("_answers", {})
    if asked not in known:
        known[asked] = answer()
        while len(known) > _REMEMBERED:
            known.pop(next(iter(known)))
    return known[asked]
