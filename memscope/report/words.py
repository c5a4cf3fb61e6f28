"""Numbers as words, for findings and captions."""

from collections.abc import Iterable
from typing import Any

from memscope.base.printable import printable
from memscope.query.recording import Recording
from memscope.recording.parts import RecordingInfo


def span(values: Iterable[Any], form: str) -> str:
    """Lowest to highest number, or the one when both look alike."""
    ordered = sorted(values)
    low, high = format(ordered[0], form), format(ordered[-1], form)
    return low if low == high else f"{low} to {high}"


def plural(count: int, one: str, many: str) -> str:
    """The noun that fits a number."""
    return one if count == 1 else many


def selections(recording: Recording, all_layers: bool = False) -> str:
    """D: selections of one layer, or of all."""
    info = recording.info
    return f"{info.rows * info.selected * (len(info.layers) if all_layers else 1):,}"


def shared_by(info: RecordingInfo) -> str:
    """Which layers select among which entries."""
    if info.bank_groups == 1:
        return "shared by all layers"
    each = len(info.layers) // info.bank_groups
    owners = "one for each layer" if each == 1 else f"one for every {each} layers in order"
    return f"in {info.bank_groups} groups of {info.group_size:,}, {owners}"


def model_name(recording: Recording) -> str:
    """What a model is called: the run folder's name, and the training step where that is known."""
    info = recording.info
    return info.run_name if info.step is None else f"{info.run_name} at step {info.step:,}"


def visible(text: str) -> str:
    """A token as a reader sees it: leading and trailing spaces, newlines, tabs and what is unseen become signs."""
    inner = text.strip(" ")
    if not inner:
        return "␣" * len(text) or "∅"
    start, end = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    return "␣" * start + printable(inner.replace("\n", "↵").replace("\t", "⇥")) + "␣" * end
