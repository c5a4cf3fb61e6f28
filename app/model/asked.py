"""What readers ask of a recorded model. ``process.ask`` calls these functions where the model is.

Arguments and answers are plain values, which go from one process to another.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from memscope.base.errors import InputError
from memscope.recording.sites import Site

if TYPE_CHECKING:
    import pandas as pd

    from memscope.causal.what_if.change import Change, Changed
    from memscope.record.traced import Continued, Sampling, TextTrace
    from memscope.run.subject import Subject


class Where(NamedTuple):
    """How a recorded model is opened again."""

    run: Path
    modified: int
    """When its weights were written last: other weights are another model."""
    window: int
    neurons: int | None
    """Neurons that were recorded of each layer, if it was neurons."""
    step: int | None
    """Training step, where a checkpoint was recorded."""


class Opened(NamedTuple):
    """What a model is, to be compared with what was recorded."""

    fingerprint: str
    sites: tuple[Site, ...]


def opened(where: Where) -> Opened:
    """Load a model.

    Raises:
        InputError: it cannot be loaded.
    """
    subject = _subject(where)
    return Opened(subject.fingerprint, subject.sites)


def warmed(where: Where) -> None:
    """Load a model and read a first text, which makes what later texts are read by."""
    traced(where, ".")


def traced(where: Where, text: str) -> "TextTrace":
    """``trace.trace_text``."""
    from memscope.record.trace import trace_text

    return trace_text(_subject(where), text)


def traced_ids(where: Where, ids: tuple[int, ...]) -> "TextTrace":
    """``trace.trace_ids``."""
    from memscope.record.trace import trace_ids

    return trace_ids(_subject(where), ids)


def compared(where: Where, text: str, change: "Change") -> "pd.DataFrame":
    """``compare.compare_text``: a text before and after a change."""
    from memscope.causal.what_if.compare import compare_text

    return compare_text(_subject(where), text, change)


def changed(where: Where, recording: Path, change: "Change", watch: Callable[[int, int], None]) -> "Changed":
    """``compare.changed_contexts``: recorded text that a change alters most."""
    from memscope.causal.what_if.compare import changed_contexts
    from memscope.query.recording import Recording

    return changed_contexts(_subject(where), Recording(recording), change, watch=watch)


def continued(
    where: Where, text: str, sampling: "Sampling", change: "Change | None", watch: Callable[[str], None]
) -> "Continued":
    """``continuation.continue_text`` under a change; ``watch`` is called with what was written so far."""
    from memscope.record.continuation import continue_ids
    from memscope.record.trace import text_ids, trace_ids
    from memscope.record.traced import Continued

    subject = _subject(where)
    prompt = text_ids(subject.tokenizer, text)
    ids = list(prompt)
    with nullcontext() if change is None else _changed(subject, change):
        for token in continue_ids(subject, prompt, sampling):
            ids.append(token)
            watch(subject.tokenizer.decode(ids[len(prompt) :], after=prompt, partial="ignore"))
        return Continued(trace_ids(subject, ids), len(prompt))


def _changed(subject: "Subject", change: "Change") -> AbstractContextManager[None]:
    from memscope.causal.what_if.compare import open_change

    return open_change(subject, change)


@lru_cache(maxsize=2)
def _subject(where: Where) -> "Subject":
    from memscope.run.adapters.load import open_subject
    from memscope.run.adapters.own import OwnRun
    from memscope.run.checkpoint import load_run
    from memscope.run.folder import is_hugging_face, list_checkpoints

    if where.step is None:
        window = where.window if is_hugging_face(where.run) else None
        return open_subject(where.run, window=window, neurons=where.neurons)
    for checkpoint in list_checkpoints(where.run):
        if checkpoint.name == f"step-{where.step:08d}":
            return OwnRun(load_run(where.run, checkpoint=checkpoint))
    raise InputError(
        f"{where.run}: the checkpoint of step {where.step:,} is gone. Recorded documents can still be read"
    )
