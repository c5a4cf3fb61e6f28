"""Words that findings and captions share: how they call a model, layers and selections, numbers with their errors."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from memscope.base.words import plural, span
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.stats.jackknife import DOMINANT, FEW_DOCUMENTS


class Reply(NamedTuple):
    """The answer to a question, short and at length."""

    short: str
    """The answer in one sentence."""
    answer: str
    """The numbers behind it, with the number of selections D that they are over."""


def selections(recording: Recording, all_layers: bool = False) -> str:
    """D: selections of one layer, or of all; where layers differ, the least and the most."""
    counts = [layer.by_count.selections for layer in recording.census.layers]
    return f"{sum(counts):,}" if all_layers else span(counts, ",")


def shared_by(info: RecordingInfo) -> str:
    """Which layers select among which entries."""
    if len(info.banks) == 1:
        return "shared by all layers"
    owners, sizes = {len(bank) for bank in info.banks}, [bank[0].entries for bank in info.banks]
    each = max(owners)
    whose = "one for each layer" if each == 1 else f"one for every {each} layers in order"
    return f"in {len(info.banks)} groups of {span(sizes, ',')}" + (f", {whose}" if len(owners) == 1 else "")


def model_name(recording: Recording) -> str:
    """The name of a model: that of the run's folder, and the training step if it is known."""
    info = recording.info
    return info.run_name if info.step is None else f"{info.run_name} at step {info.step:,}"


def few_documents(recording: Recording) -> str:
    """A warning where the text is too little for firm statements about other text; empty otherwise."""
    documents, longest = len(recording.documents), recording.census.longest_document
    if documents >= FEW_DOCUMENTS and longest < DOMINANT:
        return ""
    count = f"{documents:,} {plural(documents, 'document', 'documents')}"
    dominated = f", one of which is {longest:.0%} of the text" if longest >= DOMINANT and documents > 1 else ""
    return f"With care, from {count}{dominated}: intervals are rough, and other text may differ by more. "


def ends(table: pd.DataFrame, column: str, form: str) -> str:
    """Lowest and highest layer of a column."""
    low, high = (table.loc[getattr(table[column], end)()] for end in ("idxmin", "idxmax"))
    if len(table) == 1:
        return with_error(low, column, form)
    return (
        f"{with_error(low, column, form)} (layer {int(low['layer'])}) to "
        f"{with_error(high, column, form)} (layer {int(high['layer'])})"
    )


def with_error(row: pd.Series, name: str, form: str) -> str:
    """A number with its standard error, where that is known."""
    error = row.get(f"{name}_se")
    text = format(row[name], form)
    return text if error is None or np.isnan(error) else f"{text} ± {format(error, form.lstrip('+'))}"
