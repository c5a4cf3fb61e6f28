"""Co-activation: which entries of a layer tokens select together.

    found = coactivation(recording, layer)
    found.together[i, j], found.lift[i, j]          # all pairs of a token's selections
    found.ranks[i, j]                               # pairs of neighbouring rank alone, as OLMoE's script counts

Two entries that are both busy meet often. So pairs are set against what they would have if only their loads mattered,
scaled so that all pairs together are as many as there are: a token selects K different entries, whatever they are.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, t

from memscope.base.printable import brief
from memscope.query.recording import Recording
from memscope.routing.rows import layer_rows, routed_site, strata_of
from memscope.stats.jackknife import Jackknife

LEAST = 20
"""Tokens that would select both by their loads, from which on a pair is tested."""


class EntryPairs(NamedTuple):
    """Pairs of a layer's entries, ``[entry, entry]``, symmetric but for ``given``."""

    def __repr__(self) -> str:
        return brief(self)

    together: np.ndarray
    """Tokens that select both; the diagonal holds those that select the one."""
    expected: np.ndarray
    """Those by the loads alone."""
    lift: np.ndarray
    """``together / expected``; NaN on the diagonal and where nothing is expected."""
    given: np.ndarray
    """Share of the tokens of the row's entry that select the column's too (OLMoE, arXiv 2409.02060)."""
    ranks: np.ndarray
    """Tokens at which both are selected at neighbouring ranks."""
    pairs: pd.DataFrame
    """``entry other together expected lift low high p q``, one row per tested pair, strongest evidence first."""


def coactivation(recording: Recording, layer: int) -> EntryPairs:
    """Count the pairs of a layer; intervals and p-values are over documents, q over all pairs of the layer.

    Example:
        >>> coactivation(recording, layer=0).pairs.head()
    """
    site, strata = routed_site(recording, layer), strata_of(recording)
    n, folds = site.entries, strata.folds
    together, ranks = np.zeros((folds, n, n), np.int64), np.zeros((n, n), np.int64)
    for rows in layer_rows(recording, layer):
        fold = strata.cell_of(rows.doc, rows.first) % folds
        chosen = np.zeros((len(fold), n), np.float32)
        row, slot = np.nonzero(rows.entries >= 0)
        chosen[row, rows.entries[row, slot]] = 1
        for number in np.unique(fold):
            own = chosen[fold == number]
            together[number] += (own.T @ own).round().astype(np.int64)
        for rank in range(rows.entries.shape[1] - 1):
            first, second = rows.entries[:, rank], rows.entries[:, rank + 1]
            both = (first >= 0) & (second >= 0)
            np.add.at(ranks, (first[both], second[both]), 1)
    total = together.sum(0)
    expected = _expected(total)
    lift = np.divide(total, expected, out=np.full((n, n), np.nan), where=expected > 0)
    np.fill_diagonal(lift, np.nan)
    alone = np.maximum(np.diag(total), 1)
    return EntryPairs(
        total, expected, lift, total / alone[:, None], ranks + ranks.T, _tests(together, strata.jackknife())
    )


def _expected(total: np.ndarray) -> np.ndarray:
    """Pairs by load alone, ``[..., entry, entry]``, as many in all as there are."""
    load = np.diagonal(total, axis1=-2, axis2=-1).astype(np.float64)
    product = load[..., :, None] * load[..., None, :]
    off = ~np.eye(total.shape[-1], dtype=bool)
    scale = (total * off).sum((-1, -2), keepdims=True) / np.maximum(
        (product * off).sum((-1, -2), keepdims=True), 1e-300
    )
    return np.asarray(product * scale)


def _tests(folds: np.ndarray, spread: Jackknife) -> pd.DataFrame:
    total = folds.sum(0)
    expected = _expected(total)
    first, second = np.nonzero(np.triu(expected >= LEAST, 1))
    columns = ["entry", "other", "together", "expected", "lift", "low", "high", "p", "q"]
    if not spread.known or not len(first):
        return pd.DataFrame(columns=columns)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.log(total[first, second] / expected[first, second])
        left = spread.without(folds)
        without = np.log(left[:, first, second] / _expected(left)[:, first, second])
        error = np.where(np.isfinite(without).all(0) & np.isfinite(value), spread.errors(value, without), np.nan)
        half = spread.critical * error
        p = 2 * t.sf(np.abs(value) / error, max(len(without) - 1, 1))
    table = pd.DataFrame(
        {
            "entry": first,
            "other": second,
            "together": total[first, second],
            "expected": expected[first, second],
            "lift": np.exp(value),
            "low": np.exp(value - half),
            "high": np.exp(value + half),
            "p": p,
        }
    )
    known = table["p"].notna().to_numpy()
    table["q"] = np.nan
    if known.any():
        table.loc[known, "q"] = false_discovery_control(table.loc[known, "p"])
    return table.sort_values(["p", "entry", "other"], kind="stable", ignore_index=True)
