"""Recorded rows as studies of routing need them: the entries of one layer, numbered within it, and folds of documents.

    for rows in layer_rows(recording, layer):
        rows.token, rows.entries       # int64 [token], int64 [token, K]

Every question reads the parts once, part by part, and what several pages and sections ask is answered once for an open
recording (``once``). The tables that it counts are as large as the layer has entries, or
their square, so layers of more than ``MOST_ENTRIES`` are refused.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from memscope.base.errors import InputError
from memscope.base.parquet import matrix
from memscope.census.strata import Strata, divide_recording
from memscope.query.tables import RecordingTables
from memscope.recording.part_reader import read_columns
from memscope.recording.sites import Site

Asked = TypeVar("Asked", bound=RecordingTables)
Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")
MOST_ENTRIES = 1024
"""A layer of more has too many pairs to show; ``Recording.neighbours_of`` has those of single entries."""


class LayerRows(NamedTuple):
    """Some rows of a recording, ``[token]`` each, and what one layer selects there."""

    first: int
    """Number of the first row."""
    doc: np.ndarray
    pos: np.ndarray
    """Position in the document."""
    token: np.ndarray
    """Input token."""
    predicted: np.ndarray
    """Most likely next token; -1 where the recording has no predictions."""
    entries: np.ndarray
    """Selected entries, counted from 0 in the layer, best score first, int64 ``[token, K]``; -1 is none."""


def routed_layers(recording: RecordingTables) -> tuple[int, ...]:
    """Layers with few enough entries for these questions."""
    return tuple(site.layer for site in recording.info.sites if site.entries <= MOST_ENTRIES)


def routed_site(recording: RecordingTables, layer: int) -> Site:
    """What selects in a layer.

    Raises:
        InputError: it has too many entries.
    """
    site = recording.info.site(layer)
    if site.entries > MOST_ENTRIES:
        raise InputError(
            f"{recording.path}: layer {layer} selects among {site.entries:,} {site.word(2)}; tables of all of them "
            f"are made for at most {MOST_ENTRIES:,}"
        )
    return site


def layer_rows(recording: RecordingTables, layer: int) -> Iterator[LayerRows]:
    """All rows, part by part."""
    for [rows] in rows_of_layers(recording, [layer]):
        yield rows


def rows_of_layers(recording: RecordingTables, layers: Sequence[int]) -> Iterator[list[LayerRows]]:
    """All rows of several layers side by side, part by part."""
    info, sites = recording.info, [routed_site(recording, layer) for layer in layers]
    for part, first in zip(info.parts, info.first_rows(), strict=True):
        names = [f"l{layer}_indices" for layer in layers]
        table = read_columns(recording.path, info, part, ["doc", "pos", "token", "predicted", *names])
        doc, pos, token = (table[name].to_numpy().astype(np.int64) for name in ("doc", "pos", "token"))
        predicted = table["predicted"].to_numpy().astype(np.int64) if info.predictions else np.full(len(doc), -1)
        rows = []
        for site, name in zip(sites, names, strict=True):
            entries = matrix(table[name]).astype(np.int64)
            entries = np.where(entries < 0, -1, entries - site.first_entry)
            rows.append(LayerRows(first, doc, pos, token, predicted, entries))
        yield rows


def once(
    question: Callable[Concatenate[Asked, Arguments], Answer],
) -> Callable[Concatenate[Asked, Arguments], Answer]:
    """Answer a question on an open recording once; callers must not change the answer, which is that of all."""
    answers: WeakKeyDictionary[RecordingTables, dict[tuple[Any, ...], Answer]] = WeakKeyDictionary()

    @wraps(question)
    def ask(recording: Asked, /, *arguments: Arguments.args, **named: Arguments.kwargs) -> Answer:
        known, key = answers.setdefault(recording, {}), (*arguments, *sorted(named.items()))
        if key not in known:
            known[key] = question(recording, *arguments, **named)
        return known[key]

    return ask


@once
def strata_of(recording: RecordingTables) -> Strata:
    """Document groups and folds of a recording, as the census divides it."""
    return divide_recording(recording.path, recording.info)


def count_pairs(label: np.ndarray, entries: np.ndarray, n_labels: int, n_entries: int) -> np.ndarray:
    """Selections of every entry by the label of its token, int64 ``[label, entry]``; -1 is no label, or no entry."""
    of_row = np.repeat(label, entries.shape[1])
    flat = entries.ravel()
    known = (flat >= 0) & (of_row >= 0)
    return np.bincount(of_row[known] * n_entries + flat[known], minlength=n_labels * n_entries).reshape(n_labels, -1)
