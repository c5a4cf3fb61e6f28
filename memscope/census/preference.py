"""Does a gate prefer entries by what their init sentence is? The lift of every label of ``census/labels.py``, and
tests.

    tables = {layer: layer_preferences(counts, labels, seed) for layer, counts in ...}
    preferences = adjust(tables)  # one row per layer, attribute and label

Lift = the label's share of the selections / its share of the entries, both among the entries that have the attribute
at all: in a bank that is half random, predicates are compared among sentences, and ``origin`` compares the halves.
Three questions are asked, and they are different ones:

- ``low`` to ``high``: would other documents give the same lift? The entries are held fixed, documents vary.
- ``p``: is the lift more than which entries happen to be hot? Counts are held fixed, labels are shuffled over entries.
- ``rank_p``: is an entry with the label selected more, or less, often than one without? The same shuffles, of ranks.

Usage has heavy tails: ten entries may take half of all selections. Whatever labels those ten bear then get a large
lift with a narrow interval; so do shuffled labels, and ``chance_low`` to ``chance_high`` is the range that they reach.
So a large p does not mean "no preference" but "no more uneven than these counts make any labels": few hot entries
are few observations. Ranks weigh all entries alike, and see a preference of ordinary ones that the hot ones drown.

A small p means that usage and label go together more than chance would have it; when sentences were put on entries
at random, chance is exactly that draw. It does not say that the label is the cause: labels overlap with one another
and with the words of a sentence. Nor does it say that the whole label is preferred: one hot entry under a rare label
is unlikely too, and ``top_share`` near 1 shows that case.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple, no_type_check

import numpy as np
import pandas as pd
from numba import njit
from scipy.sparse import csr_array
from scipy.special import expit
from scipy.stats import false_discovery_control, rankdata

from memscope.census.labels import EntryLabels
from memscope.stats.jackknife import Jackknife

MIN_ENTRIES = 5
"""Labels that fewer entries have, or that fewer entries lack, are left out: nothing can be said about them."""
FALSE_DISCOVERY_RATE = 0.05
SHUFFLED_ENTRIES = 5e8
"""Entries drawn per layer over all permutations: about 6 seconds of one core."""
PERMUTATIONS = 9_999, 99_999
"""Least and most permutations; the smallest possible p is 2 / (1 + permutations)."""
CHANCE_DRAWS = 9_999
"""Permutations that ``chance_low`` and ``chance_high`` are quantiles of."""


class Statistic(IntEnum):
    """Columns of the values of entries that are summed over the entries of a label."""

    SELECTIONS = 0
    DOUBLED_RANK = 1
    """Twice the rank of the selections among entries."""


class Labelling(IntEnum):
    """Rows of what is tested: the labels themselves, and the control that shuffles them once."""

    OBSERVED = 0
    SHUFFLED = 1


N_STATISTICS = len(Statistic)


def layer_preferences(
    counts: np.ndarray, labels: EntryLabels, seed: int, permutations: int = 0, spread: Jackknife | None = None
) -> pd.DataFrame:
    """Lift, interval and p-values of every label in one layer; columns are defined in docs/reference/metrics.md.

    The interval is the delete-one-fold jackknife of the log odds of a selection to have the label
    (``stats/jackknife.py``). For rare labels log odds are log lift up to a constant; for common ones they keep the
    share below 1. It is NaN where all selections with the label, or all without, come from one fold.

    p is twice the smaller tail of the label's selections among permutations, ties and the observed labels counted in
    both tails, as in ``scipy.stats.permutation_test``. The upper tail, naively, for integer ``total [entry]``:
    ``(1 + sum(rng.permutation(total)[has_label].sum() >= observed for _ in range(P))) / (1 + P)``. rank_p is the same
    with every count replaced by its rank, ties sharing one: a Mann-Whitney test. ``control_p`` and ``control_rank_p``
    are those of labels that were shuffled once: there should be no discovery.

    Args:
        counts: selections of every entry per fold of documents, integers ``[fold, entry]``.
        labels: of the same entries.
        seed: of all shuffling; give every layer its own.
        permutations: how many; 0 = as ``SHUFFLED_ENTRIES`` allows within ``PERMUTATIONS``.
        spread: of the folds; default: a fold is one document.
    """
    spread = spread or Jackknife(counts.sum(1))
    if labels.members.shape[1] != counts.shape[1]:
        raise ValueError(f"labels of {labels.members.shape[1]} entries for counts of {counts.shape[1]}")
    rng = np.random.Generator(np.random.SFC64(seed))
    tables = [
        _preferences_among(has, rows, counts, labels, rng, permutations, spread) for has, rows in _populations(labels)
    ]
    return pd.concat(tables).sort_index().reset_index(drop=True)


def adjust(tables: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """One table of all layers, with q-values over everything that was tested in the recording.

    Adds q-values (Benjamini-Hochberg over all p and rank_p together) and decisions at ``FALSE_DISCOVERY_RATE``. Those
    of the shuffled labels replace their p-values. Tests are dependent (labels overlap, layers share documents), for
    which the method is not proven in general: control discoveries show whether it holds here.
    """
    joined = pd.concat([table.assign(layer=layer) for layer, table in tables.items()], ignore_index=True)
    joined.insert(0, "layer", joined.pop("layer").astype(np.int64))
    joined["q"], joined["rank_q"] = _false_discovery(joined[["p", "rank_p"]])
    control, control_rank = _false_discovery(joined[["control_p", "control_rank_p"]])
    decisions = {
        "significant": joined["q"],
        "rank_significant": joined["rank_q"],
        "control_significant": control,
        "control_rank_significant": control_rank,
    }
    joined = joined.drop(columns=["control_p", "control_rank_p"])
    return joined.assign(**{name: q <= FALSE_DISCOVERY_RATE for name, q in decisions.items()})


def _false_discovery(p: pd.DataFrame) -> np.ndarray:
    """q-values of one family of tests, transposed: ``[column, row]``."""
    return np.asarray(false_discovery_control(p, axis=None)).reshape(p.shape).T if len(p) else np.empty((p.shape[1], 0))


def _populations(labels: EntryLabels) -> list[tuple[np.ndarray, np.ndarray]]:
    """Entries that have an attribute, bool ``[entry]``, and the rows of its labels; equal sets are joined."""
    n = labels.members.shape[1]
    joined: dict[bytes, tuple[np.ndarray, list[int]]] = {}
    for attribute in dict.fromkeys(labels.attribute):
        rows = [row for row, name in enumerate(labels.attribute) if name == attribute]
        has = np.bincount(labels.members[rows].indices, minlength=n) > 0
        joined.setdefault(has.tobytes(), (has, []))[1].extend(rows)
    return [(has, np.array(rows)) for has, rows in joined.values()] or [(np.ones(n, bool), np.empty(0, np.int64))]


def _preferences_among(
    has: np.ndarray,
    rows: np.ndarray,
    counts: np.ndarray,
    labels: EntryLabels,
    rng: np.random.Generator,
    permutations: int,
    spread: Jackknife,
) -> pd.DataFrame:
    """``layer_preferences`` of the labels in ``rows``, among the entries that ``has`` marks."""
    entries, among = np.diff(labels.members.indptr)[rows].astype(np.int64), int(has.sum())
    tested = (entries >= MIN_ENTRIES) & (entries <= among - MIN_ENTRIES)
    rows, entries = rows[tested], entries[tested]
    members, bank_share = labels.members[rows], entries / among
    in_fold = np.stack([members @ fold.astype(np.int64) for fold in counts], axis=1)  # [label, fold]
    all_in_fold = np.array([fold[has].sum() for fold in counts], np.int64)
    selections, all_selections = in_fold.sum(1), int(all_in_fold.sum()) or np.nan
    low, high = _jackknife_interval(in_fold, all_in_fold, spread)

    total = counts.sum(0, dtype=np.int64)
    values = np.zeros((len(total), len(Statistic)), np.int64)
    values[has, Statistic.SELECTIONS] = total[has]
    values[has, Statistic.DOUBLED_RANK] = _doubled_ranks(total[has])
    observed, control = members @ values, members @ values[_shuffle_within(has, rng)]
    chance = _shuffle_labels(values[has], entries, np.stack([observed, control]), rng, permutations)
    used, top = _used_and_top(members, total)
    return pd.DataFrame(
        {
            "attribute": pd.array([labels.attribute[row] for row in rows], dtype="str"),
            "label": pd.array([labels.label[row] for row in rows], dtype="str"),
            "entries": entries,
            "used": used,
            "bank_share": bank_share,
            "selections": selections,
            "selection_share": selections / all_selections,
            "top_share": top / np.maximum(1, selections),
            "lift": selections / all_selections / bank_share,
            "low": low / bank_share,
            "high": high / bank_share,
            "chance_low": chance.low / all_selections / bank_share,
            "chance_high": chance.high / all_selections / bank_share,
            "p": chance.p[Labelling.OBSERVED, :, Statistic.SELECTIONS],
            "superiority": _superiority(members, values[:, Statistic.DOUBLED_RANK], among),
            "rank_p": chance.p[Labelling.OBSERVED, :, Statistic.DOUBLED_RANK],
            "control_p": chance.p[Labelling.SHUFFLED, :, Statistic.SELECTIONS],
            "control_rank_p": chance.p[Labelling.SHUFFLED, :, Statistic.DOUBLED_RANK],
        },
        index=rows,
    )


def _shuffle_within(has: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    order, members = np.arange(len(has)), np.flatnonzero(has)
    order[members] = rng.permutation(members)
    return order


def _used_and_top(members: csr_array, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entries with any selection, and the selections of the most selected one, per label."""
    counts = total[members.indices]
    starts = members.indptr[:-1]
    if not len(starts):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.add.reduceat((counts > 0).astype(np.int64), starts), np.maximum.reduceat(counts, starts)


def _doubled_ranks(total: np.ndarray) -> np.ndarray:
    """Twice the rank of every count, less that of 0: integers, and 0 for unused entries."""
    return np.rint(2 * rankdata(total)).astype(np.int64) - 1 - int((total == 0).sum())


def _superiority(members: csr_array, doubled_rank: np.ndarray, among: int) -> np.ndarray:
    """Chance that a random entry with a label has a higher rank than one without, ties counting half, ``[label]``."""
    n_with, sum_with = np.diff(members.indptr), members @ doubled_rank
    difference = sum_with / n_with - (doubled_rank.sum() - sum_with) / (among - n_with)
    return np.asarray(0.5 + difference / (2 * among))


def _jackknife_interval(
    selections: np.ndarray, fold_total: np.ndarray, spread: Jackknife
) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of a label's share of selections; ``[label, fold]`` and ``[fold]`` -> two arrays ``[label]``."""
    low, high = np.full(len(selections), np.nan), np.full(len(selections), np.nan)
    pairs = np.stack([selections, fold_total - selections]).transpose(2, 0, 1)  # [fold, with or without, label]
    left = spread.without(pairs)
    known = (left > 0).all((0, 1)) & spread.known
    if known.any():
        odds, odds_left = (np.log(a[..., 0, known] / a[..., 1, known]) for a in (pairs.sum(0), left))
        low[known], high[known] = map(expit, spread.interval(odds, odds_left))
    return low, high


class _Chance(NamedTuple):
    p: np.ndarray
    """Two-sided p-values, in the shape of what was observed."""
    low: np.ndarray
    """2.5% quantile of a label's selections when labels are shuffled, ``[label]``."""
    high: np.ndarray
    """97.5% quantile."""


def _shuffle_labels(
    values: np.ndarray, entries: np.ndarray, observed: np.ndarray, rng: np.random.Generator, permutations: int
) -> _Chance:
    """Test observed sums ``[Labelling, label, Statistic]`` of ``values [entry, Statistic]`` over a label's entries.

    Unused entries have 0 in all statistics. What a label of n entries gets when labels are shuffled is the sum of n
    values drawn without replacement: it depends on n alone. So labels may be nested: the smallest gets the first
    positions of a shuffled order, a larger one those and more. An entry then needs one draw for all labels and
    attributes, and unused entries need none.
    """
    if not len(entries):
        return _Chance(np.empty(observed.shape), np.empty(0), np.empty(0))
    used = values[values[:, Statistic.SELECTIONS] > 0]
    least, most = PERMUTATIONS
    permutations = permutations or int(np.clip(SHUFFLED_ENTRIES / max(1, len(used)), least, most))
    sizes, size_of = np.unique(entries, return_inverse=True)
    ring = np.searchsorted(sizes, np.arange(len(values)), side="right").astype(np.uint16)  # of every position
    kept = np.empty((min(CHANCE_DRAWS, permutations), len(sizes)), np.int64)
    above, below = _count_tails(rng, ring, used, size_of, observed, permutations, kept)
    p = np.minimum(1.0, 2 * (1 + np.minimum(above, below)) / (1 + permutations))
    low, high = np.quantile(kept, [0.025, 0.975], axis=0)
    return _Chance(p, low[size_of], high[size_of])


@njit(nogil=True, cache=True)
@no_type_check
def _count_tails(rng, ring, used, size_of, observed, permutations, kept):
    """Count permutations that give a label at least, and at most, what was observed, in the shape of ``observed``.

    Selections of the first permutations are written to ``kept [draw, size]``. ``ring`` is shuffled in place.
    """
    n_tests, n_labels, _ = observed.shape
    n_sizes, n = kept.shape[1], len(ring)
    above, below = np.zeros(observed.shape, np.int64), np.zeros(observed.shape, np.int64)
    sums = np.empty((n_sizes + 1, N_STATISTICS), np.int64)
    for permutation in range(permutations):
        sums[:] = 0
        for i in range(len(used)):  # a partial Fisher-Yates shuffle: any start order gives a uniform one
            j = i + int(rng.random() * (n - i))
            drawn = ring[j]
            ring[j] = ring[i]
            ring[i] = drawn
            sums[drawn, Statistic.SELECTIONS] += used[i, Statistic.SELECTIONS]
            sums[drawn, Statistic.DOUBLED_RANK] += used[i, Statistic.DOUBLED_RANK]
        for size in range(1, n_sizes):
            for statistic in range(N_STATISTICS):
                sums[size, statistic] += sums[size - 1, statistic]
        if permutation < len(kept):
            kept[permutation] = sums[:n_sizes, Statistic.SELECTIONS]
        for test in range(n_tests):
            for label in range(n_labels):
                for statistic in range(N_STATISTICS):
                    got = sums[size_of[label], statistic]
                    above[test, label, statistic] += got >= observed[test, label, statistic]
                    below[test, label, statistic] += got <= observed[test, label, statistic]
    return above, below
