"""Lower bounds, in nats, on the information of selected entries about the token, its neighbour, frequency and position.

    held_out_information(recording, info, strata)     # per layer: {kind: ...}

Mutual information counted from one table is too high, by nats where most pairs of entry and token are rare; less that
of shuffled tokens it is too low where there is information, by 30 to 50%. Here a rule is learned on all folds of
documents but one and asked about the one left out. How often a label selected an entry, and how often independence
would have it, put every pair into a bin; how far the share of selections in the bins is from the share that
independence would give them, as a KL divergence, is information that the rule conveys. Independence is that within a
fold, so that what only the document chooses does not count. Data processing makes it a lower bound: 0 where there is
none, close to the truth where labels repeat, low where labels are rare and entries many: ``benchmarks/information.py``
prints by how much.
"""

from pathlib import Path
from typing import Any, no_type_check

import numpy as np
from numba import njit

from memscope.base.parquet import read_parquet
from memscope.base.work import ALONE, Processes
from memscope.census.strata import Strata
from memscope.recording.info import RecordingInfo
from memscope.recording.part_reader import SelectionReader, read_columns
from memscope.recording.row_columns import disk_array, pieces, row_columns
from memscope.stats.jackknife import Jackknife

KINDS = ("position", "frequency", "token", "previous")
_OCTAVES, _STEPS, _PER_OCTAVE = 40, 160, 4
_LOWEST = -10.0
"""Ratios of counts below 2^-10 of independence share a bin."""
_BLOCK = 1 << 21
"""Selections read at once."""


def held_out_information(
    recording: Path, info: RecordingInfo, strata: Strata, group: Processes = ALONE
) -> list[dict[str, float | None]] | None:
    """Per layer ``{kind}_held_out`` in nats and ``{kind}_held_out_se`` of ``KINDS``; none with fewer than two folds.

    Processes other than the main one get nothing.
    """
    labels, fold = _labels(recording, info, strata)
    usage = read_parquet(recording / "usage.parquet", ["layer", "entry", "count"]).to_pandas()
    reader, spread = SelectionReader(recording, info), strata.jackknife()

    def measure(layer: int) -> dict[str, float | None]:
        used = usage[usage["layer"] == layer].sort_values("entry")
        counts = [HeldOut(one, fold, strata.folds) for one in labels]
        block = np.cumsum(used["count"].to_numpy()) // _BLOCK
        for number in np.unique(block):
            entries = used["entry"].to_numpy()[block == number]
            entry, row, _ = reader.read(layer, int(entries[0]), int(entries[-1]))
            order = np.argsort(entry, kind="stable")  # parts follow one another
            for count in counts:
                count.add(entry[order].astype(np.int64), row[order].astype(np.int64))
        numbers: dict[str, float | None] = {}
        for kind, count in zip(KINDS, counts, strict=True):
            nats, error = count.information(spread)
            numbers |= {f"{kind}_held_out": nats, f"{kind}_held_out_se": error}
        return numbers

    return group.share(measure, info.layers, list)


class HeldOut:
    """Selections, entry by entry, in bins of what the other folds say of their entry and label.

    Args:
        label: of every row, integers from 0 up, ``[row]``; -1 for none.
        fold: of every row, ``[row]``.
        folds: how many.
    """

    def __init__(self, label: np.ndarray, fold: np.ndarray, folds: int):
        self._label, self._fold = np.asarray(label, np.int32), np.asarray(fold, np.int32)
        self._rows = np.zeros((int(label.max(initial=0)) + 1, folds), np.int64)
        for piece in pieces(len(label)):
            known = label[piece] >= 0
            np.add.at(self._rows, (label[piece][known], fold[piece][known]), 1)
        self._hits = np.zeros((folds, _OCTAVES, _STEPS))
        self._even = np.zeros_like(self._hits)
        self._missed = np.zeros((folds, _OCTAVES, _OCTAVES))  # pairs that the other folds never saw
        self._seen = np.zeros_like(self._missed)
        self._mass = np.zeros((folds, _OCTAVES))

    def add(self, entry: np.ndarray, row: np.ndarray) -> None:
        """Add all selections of some entries, sorted by entry: their entries and rows, int64 ``[selection]``."""
        starts = np.append(np.flatnonzero(np.diff(entry, prepend=-1)), len(entry))
        tables = (self._hits, self._even, self._missed, self._seen, self._mass)
        _count(starts, row, self._label, self._fold, self._rows, *tables)

    def information(self, spread: Jackknife) -> tuple[float | None, float | None]:
        """Nats that selections tell of labels at least, and their standard error."""
        if not spread.known:
            return None, None
        of_fold = np.zeros((len(self._missed), _OCTAVES))
        seen = _octaves(self._rows.sum(1, keepdims=True) - self._rows)
        for fold, octave in enumerate(seen.T):
            of_fold[fold] = np.bincount(octave, self._rows[:, fold], minlength=_OCTAVES)
        even = np.maximum(of_fold[:, :, None] * self._mass[:, None] - self._seen, 0)
        pairs = [(self._hits, self._even), (self._missed, even)]
        hits, even = (
            np.concatenate([pair[side].reshape(len(seen.T), -1) for pair in pairs], axis=1) for side in (0, 1)
        )
        used = hits.any(0)
        rest = [hits[:, ~used].sum(1, keepdims=True), even[:, ~used].sum(1, keepdims=True)]
        hits, even = np.append(hits[:, used], rest[0], 1), np.append(even[:, used], rest[1], 1)
        left = np.array([_divergence(*pair) for pair in zip(spread.without(hits), spread.without(even), strict=True)])
        value = _divergence(hits.sum(0), even.sum(0))
        return max(value - max(float(spread.excess(value, left)), 0.0), 0.0), float(spread.errors(value, left))


def _divergence(hits: np.ndarray, even: np.ndarray) -> float:
    """KL of two distributions over bins, nats."""
    used = (hits > 0) & (even > 0)
    p, q = hits[used] / max(hits.sum(), 1), even[used] / max(even.sum(), 1e-300)
    return float((p * np.log(p / q)).sum())


def _labels(recording: Path, info: RecordingInfo, strata: Strata) -> tuple[list[np.ndarray], np.ndarray]:
    """Labels of every row in the order of ``KINDS``, and its fold."""
    columns = row_columns(recording, info, ["token", "previous"])
    position, frequency, fold = (disk_array(recording, info.rows) for _ in range(3))
    for part, first in zip(info.parts, info.first_rows(), strict=True):
        table = read_columns(recording, info, part, ["doc", "pos", "token"])
        doc, pos, token = (table[name].to_numpy() for name in ("doc", "pos", "token"))
        cell, of_position, of_frequency = strata.sum_classes(doc, pos, token, first).T
        here = slice(first, first + part.rows)
        position[here] = of_position - strata.cells
        frequency[here] = of_frequency - strata.cells - len(strata.positions)
        fold[here] = cell % strata.folds
    return [position, frequency, columns["token"], columns["previous"]], fold


def _octaves(values: np.ndarray) -> np.ndarray:
    """0, 1, 2-3, 4-7 ... as 0, 1, 2, 3 ..."""
    return np.frexp(values.astype(np.float64))[1]


@njit(nogil=True, cache=True)
@no_type_check
def _octave(value: int) -> int:
    octave = 0
    while value > 0:
        value >>= 1
        octave += 1
    return octave


@njit(nogil=True, cache=True)
@no_type_check
def _count(
    starts: Any,
    rows: Any,
    label: Any,
    fold: Any,
    of_label: Any,
    hits: Any,
    even: Any,
    missed: Any,
    seen: Any,
    mass: Any,
) -> None:
    """Add entries to the tables of ``HeldOut``; ``of_label`` are rows per label and fold."""
    n_folds = of_label.shape[1]
    total, n_rows = of_label.sum(1), of_label.sum(0)
    counts = np.zeros(of_label.shape, np.int64)
    here = np.zeros(len(of_label), np.int64)
    touched = np.empty(len(of_label), np.int64)
    for e in range(len(starts) - 1):
        n_touched = 0
        selections = np.zeros(n_folds)
        for row in rows[starts[e] : starts[e + 1]]:
            one = label[row]
            if one >= 0:
                selections[fold[row]] += 1
                if here[one] == 0:
                    touched[n_touched] = one
                    n_touched += 1
                here[one] += 1
                counts[one, fold[row]] += 1
        n = selections.sum()
        share = selections / np.maximum(n_rows, 1)  # selections of the entry per row
        for f in range(n_folds):
            mass[f, _octave(int(n - selections[f]))] += share[f]
        for i in range(n_touched):
            one = touched[i]
            for f in range(n_folds):
                if of_label[one, f] > 0:
                    known, others = here[one] - counts[one, f], total[one] - of_label[one, f]
                    octave, even_hits = _octave(int(n - selections[f])), of_label[one, f] * share[f]
                    if known > 0:
                        elsewhere = (n - selections[f]) / (n_rows.sum() - n_rows[f])
                        ratio = np.log2(known / (others * elsewhere))
                        step = min(max(int((ratio - _LOWEST) * _PER_OCTAVE), 0), _STEPS - 1)
                        hits[f, _octave(known), step] += counts[one, f]
                        even[f, _octave(known), step] += even_hits
                        seen[f, _octave(others), octave] += even_hits
                    else:
                        missed[f, _octave(others), octave] += counts[one, f]
                counts[one, f] = 0
            here[one] = 0
