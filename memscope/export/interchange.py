"""Code that the exports to other tools share (``export/delphi.py``, ``export/neuronpedia.py``).

Those tools know one number per token and latent. Here a latent is an entry in one layer, and its number is the score
of the selection (the gate score of a memory, the router's weight of an expert), summed where several gate heads select
the same entry for one token; 0 where none does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from memscope.base.errors import InputError
from memscope.base.files import atomic_path
from memscope.base.lock import one_maker
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.recording.part_reader import SelectionReader
from memscope.recording.sites import Site, is_private

MOST_SELECTIONS = 1 << 21
"""Selections held in memory at once, unless a single entry has more."""


def scored_sites(recording: Recording) -> list[Site]:
    """The layers whose selections have scores.

    Raises:
        InputError: there is none, so there are no activations to export.
    """
    sites = [site for site in recording.info.sites if "scores" in site.has]
    if not sites:
        raise InputError(
            f"{recording.path}: its selections have no scores, so there are no activations to export; record a model "
            "whose layers give scores"
        )
    return sites


def latents(info: RecordingInfo, site: Site) -> range:
    """The entries that are a layer's latents, the first one being latent 0: its own where they are private."""
    return range(site.own.start, site.own.stop) if is_private(info.sites, site) else range(info.knowledge_num)


class Activations(NamedTuple):
    """Tokens that select some entries in one layer, one element per pair of token and entry; entries' rows rise."""

    entry: np.ndarray
    """Entry, uint32."""
    row: np.ndarray
    """Token number through all parts, uint32."""
    gate: np.ndarray
    """Gate score, summed over gate heads, float16."""


def read_activations(reader: SelectionReader, layer: int, first_entry: int, last_entry: int) -> Activations:
    """Activations of a layer's entries first to last (inclusive).

    Equivalent: for each token and entry, the sum of ``l{layer}_gate[k]`` over all k with ``l{layer}_indices[k]`` equal
    to the entry, where there is such a k.
    """
    entry, row, gate = reader.read(layer, first_entry, last_entry)
    starts = np.ones(len(row), bool)  # selections of one token and entry are adjacent
    starts[1:] = (entry[1:] != entry[:-1]) | (row[1:] != row[:-1])
    if not starts.all():
        gate = np.add.reduceat(gate.astype(np.float32), np.flatnonzero(starts)).astype(np.float16)
        entry, row = entry[starts], row[starts]
    return Activations(entry, row, gate)


def entry_runs(entries: list[int], counts: list[int], most_entries: int) -> Iterator[list[int]]:
    """Cut entries into runs whose activations fit in memory together.

    Args:
        entries: entries of one layer, rising.
        counts: their selections.
        most_entries: entries per run, at most.
    """
    run: list[int] = []
    held = 0
    for entry, count in zip(entries, counts, strict=True):
        if run and (len(run) == most_entries or held + count > MOST_SELECTIONS):
            yield run
            run, held = [], 0
        run.append(entry)
        held += count
    if run:
        yield run


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that appears as ``out``, whole, when the block succeeds.

    Raises:
        InputError: ``out`` exists; an export never replaces files of others.
    """
    with one_maker(out):
        if out.exists():
            raise InputError(f"{out}: already exists; remove it or choose another folder")
        with atomic_path(out) as temporary:
            temporary.mkdir()
            yield temporary
