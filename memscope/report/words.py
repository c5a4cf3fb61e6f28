"""Words that findings and captions share: how they call a model, layers and selections, numbers with their errors."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from memscope.base.words import first_upper, plural, span
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.recording.sites import Has, Site, is_private
from memscope.stats.jackknife import DOMINANT, FEW_DOCUMENTS


class Reply(NamedTuple):
    """The answer to a question, short and at length."""

    short: str
    """The answer in one sentence."""
    answer: str
    """The numbers behind it, with the number of selections D that they are over."""
    found: bool = True
    """Whether there is anything to tell; a page folds what stands behind an answer that found nothing."""


def selections(recording: Recording, all_layers: bool = False, having: Has | None = None) -> str:
    """D: selections of one layer, or of all; where layers differ, the least and the most.

    Args:
        recording: what was recorded.
        all_layers: all layers together.
        having: only layers that have it.
    """
    sites = recording.info.sites
    counts = [recording.total_selections(site.layer) for site in sites if having is None or having in site.has]
    return f"{sum(counts):,}" if all_layers else span(counts, ",")


def rows_having(recording: Recording, table: pd.DataFrame, what: Has) -> pd.DataFrame:
    """The rows of a table with a column ``layer`` that are of layers which have something."""
    having = [site.layer for site in recording.info.sites if what in site.has]
    return table[table["layer"].isin(having)].reset_index(drop=True)


def shared_by(info: RecordingInfo) -> str:
    """Which layers select among which entries."""
    if info.private and len(info.banks) == len(info.sites):
        return f"{span([site.entries for site in info.sites], ',')} in each layer"
    if len(info.banks) == 1:
        return "shared by all layers"
    owners, sizes = {len(bank) for bank in info.banks}, [bank[0].entries for bank in info.banks]
    each = max(owners)
    whose = "one for each layer" if each == 1 else f"one for every {each} layers in order"
    return f"in {len(info.banks)} groups of {span(sizes, ',')}" + (f", {whose}" if len(owners) == 1 else "")


def a_word(info: RecordingInfo) -> str:
    """The word of an entry with its article."""
    return f"{'an' if info.word()[0] in 'aeiou' else 'a'} {info.word()}"


def reworded(info: RecordingInfo, text: str) -> str:
    """A text on a memory in the words of what selects in a recording: experts for entries, a router for a gate.

    The texts of a memory stay as they are.
    """
    if info.kind == "memory":
        return text
    words = {
        r"an entry\b": a_word(info),
        r"An entry\b": first_upper(a_word(info)),
        r"entries\b": info.word(2),
        r"Entries\b": first_upper(info.word(2)),
        r"entry\b": info.word(),
        r"Entry\b": first_upper(info.word()),
        r"gate score": info.score,
        r"Gate score": first_upper(info.score),
        r"gate share": f"{info.score} share",
        r"gate entropy": f"{info.score} entropy",
        r"Gate entropy": first_upper(f"{info.score} entropy"),
        r"gate\b": info.selector,
        r"attention\b": info.reader,
    }
    for known, here in words.items():
        text = re.sub(rf"\b{known}", here, text)
    return text


def bias_name(info: RecordingInfo) -> str:
    """What the bias of selection is called, and with it the app's page on it: "gate bias", "router bias"."""
    return f"{info.selector} bias"


def place(path: Path) -> str:
    """A path for a command line in a page: below the working folder if it is there, else its name alone."""
    absolute, here = path.absolute(), Path.cwd()
    return shlex.quote(str(absolute.relative_to(here)) if absolute.is_relative_to(here) else path.name)


def listed(parts: list[str]) -> str:
    """Parts with commas, and an "and" before the last."""
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]


def has_start(info: RecordingInfo, entry: int) -> bool:
    """Whether it is known what an entry started from."""
    return any("starts" in site.has for site in info.sites if site.own.start <= entry < site.own.stop)


def start_name(site: Site) -> str:
    """What the text of an entry is: a sentence that it started from, or the sentence that it is."""
    return "init sentence" if "drift" in site.has else "sentence"


def start_names(info: RecordingInfo) -> str:
    """``start_name`` of all layers that have texts."""
    return "init sentence" if info.has("drift") else "sentence"


def entry_name(info: RecordingInfo, entry: int) -> str:
    """An entry in a column that says what it is: its number, or its label where layers have entries of their own."""
    return info.label(entry) if info.private else str(entry)


def own_number(info: RecordingInfo, entry: int) -> int:
    """The number of an entry, counted in its layer where the layer has entries of its own."""
    site = next(site for site in info.sites if site.own.start <= entry < site.own.stop)
    return entry - site.first_entry if is_private(info.sites, site) else entry


def layer_name(info: RecordingInfo) -> str:
    """What a layer that selects is called."""
    return "memory layer" if info.kind == "memory" else f"layer that selects {info.word(2)}"


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
