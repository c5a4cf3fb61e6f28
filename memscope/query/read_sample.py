"""How the attention weighs what the gate selected, on a sample of recorded tokens; the census counts all of them.

    sample = read_sample(recording, layer=3)
    unread_entries(recording, sample)

A sample is a few row groups spread evenly through the recording: as quick to read, whatever its size.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from memscope.query.needs import known_columns
from memscope.query.recording import Recording
from memscope.recording.part_reader import read_rows
from memscope.recording.parts import ROW_GROUP
from memscope.recording.token_rows import NONE, TokenRows
from memscope.stats.usage import UNREAD_SHARE

_GROUPS = 4
"""Row groups of a sample."""


class ReadSample(NamedTuple):
    """Gate and read of some tokens in one layer."""

    tokens: int
    entries: np.ndarray
    """Selected entries, uint32 ``[token, K]``; ``[selection]`` where their number varies, as in all arrays."""
    gate: np.ndarray
    """Gate shares: gate scores over their token's sum, float32 ``[token, K]``."""
    read: np.ndarray
    """Read shares: absolute read weights over their token's sum, float32 ``[token, K]``."""
    norm: np.ndarray
    """The same of norms, in which read heads of different signs do not cancel, float32 ``[token, K]``."""


def read_sample(recording: Recording, layer: int) -> ReadSample:
    """Gate and read shares in one layer that reads apart from its gate."""
    axis, site = recording.info.layers.index(layer), recording.info.site(layer)
    rows, own = list(_sampled(recording)), slice(site.selected)
    names = ("gate", "read", "read_norm" if site.signed_reads else "read")
    shares = [np.concatenate([_shares(getattr(part, name)[:, axis, own]) for part in rows]) for name in names]
    entries = np.concatenate([part.indices[:, axis, own] for part in rows])
    tokens = len(entries)
    if site.varies:
        there = entries != NONE
        entries, *shares = (values[there] for values in (entries, *shares))
    return ReadSample(tokens, entries, *shares)


def unread_entries(recording: Recording, sample: ReadSample, limit: int = 50) -> pd.DataFrame:
    """Entries with most unread selections in a sample.

    Returns ``entry selections unread unread_by_norm unread_share``, the share being that of ``unread``, and the
    ``sentence`` where entries start from some.
    """

    def count(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(sample.entries[chosen], minlength=recording.info.knowledge_num)

    selected, missed = count(np.ones(sample.entries.shape, bool)), count(sample.read < UNREAD_SHARE)
    missed_by_norm = count(sample.norm < UNREAD_SHARE)
    top = np.argsort(-missed, kind="stable")[:limit]
    top = top[missed[top] > 0]
    sentences = recording.sentences(top.tolist())
    table = pd.DataFrame(
        {
            "entry": top,
            "selections": selected[top],
            "unread": missed[top],
            "unread_by_norm": missed_by_norm[top],
            "unread_share": missed[top] / np.maximum(1, selected[top]),
            "sentence": [sentences[int(entry)] for entry in top],
        }
    )
    return known_columns(recording.info, table)


def head_shares(recording: Recording, layer: int, bins: int = 50) -> np.ndarray:
    """Selections of a sample by the share of a read head that they get, int64 ``[head, bin]`` over [0, 1].

    The recording keeps read weights per head (``info.head_weights``).
    """
    info = recording.info
    axis, heads = info.layers.index(layer), info.site(layer).read_heads
    histogram = np.zeros((heads, bins), np.int64)
    for rows in _sampled(recording):
        assert rows.head_read is not None
        own = rows.head_read[:, axis, : heads * info.site(layer).selected]
        share = _shares(own.reshape(len(rows.doc), heads, -1))
        number = np.minimum((share * bins).astype(int), bins - 1)
        for head in range(heads):
            histogram[head] += np.bincount(number[:, head].ravel(), minlength=bins)
    return histogram


def _sampled(recording: Recording) -> Iterator[TokenRows]:
    last = max(0, recording.info.rows - ROW_GROUP)
    starts = np.unique(np.linspace(0, last, _GROUPS).astype(int) // ROW_GROUP * ROW_GROUP)
    return (read_rows(recording.path, recording.info, int(start), ROW_GROUP) for start in starts)


def _shares(weights: np.ndarray) -> np.ndarray:
    """Absolute weights over their sum along the last axis; 0 where that is 0."""
    sizes = np.abs(weights.astype(np.float32))
    shares: np.ndarray = sizes / np.maximum(sizes.sum(-1, keepdims=True), 1e-30)
    return shares
