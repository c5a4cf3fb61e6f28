"""Run the recorded model on texts that a reader types; one model serves all readers.

torch and the model are loaded in the background, before a reader types.
"""

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pandas as pd
import streamlit as st

from app import ahead
from app.state import RECORD, recording
from memscope.base.errors import InputError
from memscope.base.words import command_line
from memscope.recording.info import RecordingInfo

if TYPE_CHECKING:
    from memscope.causal.what_if import Change, Changed
    from memscope.record.continuation import Continued as Continued
    from memscope.record.trace import TextTrace
    from memscope.run.subject import Subject

SMALL = 500_000_000
"""Most bytes of weights that are loaded before a reader asks."""
QUIET = 1.0
"""Seconds between the end of a page and the start of work that makes the next one slower."""
_REMEMBERED = 16
"""Answers of ``_remembered`` that a session keeps."""
Answer = TypeVar("Answer")
_TYPED = {"memory", "text", "experts", "neurons"}
"""Kinds of layers whose models a folder gives back; others were recorded from Python or imported."""


class How(NamedTuple):
    """How a recorded model is opened again."""

    window: int
    neurons: int | None
    """Neurons that were recorded of each layer, if it was neurons."""
    step: int | None
    """Training step, where a checkpoint was recorded."""


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


def recorded_subject(name: str | None = None) -> "Subject":
    """Load the model that was recorded, of the open recording or another one. Hold ``model_lock`` while it runs.

    Raises:
        InputError: the model is missing, was trained further, or its folder gives other layers than were recorded.
    """
    info = recording(name).info
    run = Path(info.run)
    if not (weights := _weights(run)):
        raise InputError(
            f"{run}: the recorded model is missing. Recorded documents can still be read. To run it, restore the "
            f"model, or record again: {record_again(info, 'recordings/NAME') or RECORD}"
        )
    with st.spinner("Loading the model ..."):
        loaded = _load(run, max(weights), _how(info))
    if loaded.fingerprint != info.fingerprint:
        raise InputError(
            f"{run}: the model was trained further after it was recorded, so its answers would not match this "
            f"recording. Record it again: {record_again(info, 'recordings/NEW')}"
        )
    if loaded.sites != info.sites:
        raise InputError(
            f"{run}: other layers of the model were recorded than its folder gives, from Python. The page can only run "
            "what memscope record records"
        )
    return loaded


def trace_typed(text: str, name: str | None = None) -> "TextTrace":
    """Trace a text with the recorded model of the open recording or another one.

    Raises:
        InputError: see ``recorded_subject``; or the text does not fit.
    """
    subject = recorded_subject(name)
    return _trace_typed(subject.fingerprint, _how(recording(name).info), text, subject)


def compare_typed(text: str, change: "Change") -> pd.DataFrame:
    """``what_if.compare_text`` of the recorded model: a text before and after a change.

    Raises:
        InputError: see ``recorded_subject``; or the text does not fit, or the change cannot be made.
    """
    subject = recorded_subject()
    return _compare_typed(subject.fingerprint, _how(recording().info), text, change, subject)


def changed_contexts(change: "Change", watch: Callable[[int, int], None]) -> "Changed":
    """``what_if.changed_contexts`` of the open recording: recorded text that a change alters most.

    Raises:
        InputError: see ``recorded_subject``; or the change alters nothing that was recorded.
    """
    from memscope.causal import what_if

    subject = recorded_subject()

    def read() -> "Changed":
        with model_lock():
            return what_if.changed_contexts(subject, recording(), change, watch=watch)

    return _remembered(("changed", recording().path, subject.fingerprint, change), read)


def continue_typed(
    text: str,
    new_tokens: int,
    temperature: float,
    seed: int,
    change: "Change | None" = None,
    watch: Callable[[str], None] = lambda written: None,
) -> "Continued":
    """Let the recorded model go on from a text, under a change if one is given.

    Args:
        text: what it goes on from.
        new_tokens: most tokens to write.
        temperature: 0 takes the likeliest token each time.
        seed: of what is drawn.
        change: what holds while it writes and reads.
        watch: called with what was written so far, after every token.

    Raises:
        InputError: see ``recorded_subject``; or the text cannot be continued, or the change cannot be made.
    """
    from memscope.causal.what_if import open_change
    from memscope.record.continuation import Continued, Sampling, continue_ids
    from memscope.record.trace import text_ids, trace_ids

    subject, sampling = recorded_subject(), Sampling(new_tokens, temperature, seed)

    def write() -> Continued:
        with model_lock(), nullcontext() if change is None else open_change(subject, change):
            prompt = text_ids(subject.tokenizer, text)
            ids = list(prompt)
            for token in continue_ids(subject, prompt, sampling):
                ids.append(token)
                watch(subject.tokenizer.decode(ids[len(prompt) :], after=prompt, partial="ignore"))
            return Continued(trace_ids(subject, ids), len(prompt))

    return _remembered((subject.fingerprint, _how(recording().info), text, sampling, change), write)


def document_predictions(doc: int, pos: int) -> pd.DataFrame:
    """The most likely next tokens after a token of a recorded document, as ``TextTrace.predictions``.

    Raises:
        InputError: see ``recorded_subject``.
    """
    subject, here = recorded_subject(), recording()
    window = here.info.window
    start, rows = (int(here.documents[name][doc]) for name in ("first_row", "rows"))
    begin = pos // window * window
    ids = tuple(here.token_ids[start + begin : start + min(begin + window, rows)].tolist())
    found = _trace_ids(subject.fingerprint, _how(here.info), ids, subject).predictions
    return found.assign(pos=found["pos"] + begin)


def expect_text() -> None:
    """Load the model of the open recording in the background: it is there when the reader has typed a text."""
    info = recording().info
    if weights := _weights(Path(info.run)):
        _loading(Path(info.run), max(weights), _how(info))


def expect_later() -> None:
    """``expect_text`` when a page stands, of a model that is small enough to be loaded although nobody asked for it."""
    if not ahead.works():
        return
    info = recording().info
    run = Path(info.run)
    weights = _weights(run)
    if weights and can_type(info) and sum(path.stat().st_size for path in run.glob("*.safetensors")) <= SMALL:
        _loading(run, max(weights), _how(info), _wait=QUIET)


def _weights(run: Path) -> list[int]:
    """Times at which the files of a model's weights, and of the sentences that it reads, were written."""
    files = [path for path in run.glob("*.safetensors") if path.stem != "bank_init"]
    return [path.stat().st_mtime_ns for path in files + [*run.glob("text_bank.parquet")] * bool(files)]


def _how(info: RecordingInfo) -> How:
    return How(info.window, info.selected if info.kind == "neurons" else None, info.step)


@st.cache_resource(max_entries=2, show_spinner=False)
def _load(run: Path, modified: int, how: How) -> "Subject":
    from memscope.run.adapters.load import open_subject
    from memscope.run.adapters.own import OwnRun
    from memscope.run.checkpoint import load_run
    from memscope.run.folder import is_hugging_face, list_checkpoints

    if how.step is None:
        return open_subject(run, window=how.window if is_hugging_face(run) else None, neurons=how.neurons)
    for checkpoint in list_checkpoints(run):
        if checkpoint.name == f"step-{how.step:08d}":
            return OwnRun(load_run(run, checkpoint=checkpoint))
    raise InputError(f"{run}: the checkpoint of step {how.step:,} is gone. Recorded documents can still be read")


@st.cache_resource(max_entries=2, show_spinner=False)
def _loading(run: Path, modified: int, how: How, _wait: float = 0) -> threading.Thread:
    """The thread that loads a model, and reads a first text, which makes what later texts are read by."""

    def load() -> None:
        time.sleep(_wait)
        with suppress(Exception):  # the error is shown when a text is sent
            subject = _load(run, modified, how)
            from memscope.record.trace import trace_text

            with model_lock():
                trace_text(subject, ".")
        ahead.settle()

    thread = threading.Thread(target=load, name="memscope-ahead", daemon=True)
    thread.start()
    return thread


@st.cache_resource
def model_lock() -> threading.Lock:
    """A lock on the shared model, whose hooks allow one reader at a time."""
    return threading.Lock()


@st.cache_data(max_entries=32, show_spinner="Running the model ...")
def _trace_typed(fingerprint: str, how: How, text: str, _subject: "Subject") -> "TextTrace":
    from memscope.record.trace import trace_text

    with model_lock():
        return trace_text(_subject, text)


@st.cache_data(max_entries=32, show_spinner="Running the model ...")
def _trace_ids(fingerprint: str, how: How, ids: tuple[int, ...], _subject: "Subject") -> "TextTrace":
    from memscope.record.trace import trace_ids

    with model_lock():
        return trace_ids(_subject, ids)


@st.cache_data(max_entries=32, show_spinner="Running the model ...")
def _compare_typed(fingerprint: str, how: How, text: str, change: "Change", _subject: "Subject") -> pd.DataFrame:
    from memscope.causal.what_if import compare_text

    with model_lock():
        return compare_text(_subject, text, change)


def _remembered(asked: tuple[Any, ...], answer: Callable[[], Answer]) -> Answer:
    """An answer that this session remembers. Streamlit's caches cannot show how far a function is."""
    known: dict[Any, Answer] = st.session_state.setdefault("_answers", {})
    if asked not in known:
        known[asked] = answer()
        while len(known) > _REMEMBERED:
            known.pop(next(iter(known)))
    return known[asked]
