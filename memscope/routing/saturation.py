"""Router saturation: how far two recordings of the same text select the same entries, token by token.

    saturation(early, late)        # one row per layer

The share of a token's K entries in one checkpoint that it selects in the other too (Muennighoff et al. 2024, OLMoE,
arXiv 2409.02060), and the agreement of first choices. Beside each stands the level by load: the same for tokens that
are shuffled, which agree because some entries are busy in both.
"""

from typing import Any

import numpy as np
import pandas as pd

from memscope.base.errors import InputError
from memscope.query.recording import Recording
from memscope.routing.rows import routed_layers, rows_of_layers, strata_of


def saturation(a: Recording, b: Recording) -> pd.DataFrame:
    """Agreement of two recordings of the same tokens.

    Returns ``layer overlap overlap_se low high by_load first first_se first_by_load``: shares of selections, and of
    tokens for ``first``; intervals are over documents (jackknife, 95%).

    Raises:
        InputError: the two are of different text, tokens, layers or numbers of entries.

    Example:
        >>> saturation(Recording("recordings/early"), Recording("recordings/demo"))
    """
    _check(a, b)
    layers, strata = [layer for layer in routed_layers(a) if layer in routed_layers(b)], strata_of(a)
    sums = np.zeros((len(layers), 4, strata.folds))
    made = np.zeros((len(layers), 2, strata.folds))
    chance = np.random.default_rng(0)
    for ours, theirs in zip(rows_of_layers(a, layers), rows_of_layers(b, layers), strict=True):
        fold = strata.cell_of(ours[0].doc, ours[0].first) % strata.folds
        mixed = chance.permutation(len(fold))
        for axis, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            if not np.array_equal(mine.token, other.token):
                raise InputError(f"{b.path}: its tokens are not those of {a.path}; saturation compares the same tokens")
            n = a.info.site(layers[axis]).entries
            values = [
                *_agreement(mine.entries, other.entries, n),
                *_agreement(mine.entries, other.entries[mixed], n),
            ]
            for number, value in enumerate((values[0], values[1], values[3], values[4])):
                sums[axis, number] += np.bincount(fold, value, strata.folds)
            made[axis, 0] += np.bincount(fold, values[2], strata.folds)
            made[axis, 1] += np.bincount(fold, minlength=strata.folds)
    spread, rows = strata.jackknife(), []
    for axis, layer in enumerate(layers):
        row: dict[str, Any] = {"layer": layer}
        for name, number, of in (("overlap", 0, 0), ("first", 1, 1)):
            share = float(sums[axis, number].sum() / max(made[axis, of].sum(), 1))
            row[name], row[f"{name}_se"] = share, np.nan
            if spread.known:
                left = spread.without(sums[axis, number]) / np.maximum(spread.without(made[axis, of]), 1)
                row[f"{name}_se"] = float(spread.errors(share, left))
        half = spread.critical * row["overlap_se"]
        row |= {"low": row["overlap"] - half, "high": row["overlap"] + half}
        row["by_load"] = float(sums[axis, 2].sum() / max(made[axis, 0].sum(), 1))
        row["first_by_load"] = float(sums[axis, 3].sum() / max(made[axis, 1].sum(), 1))
        rows.append(row)
    columns = ["layer", "overlap", "overlap_se", "low", "high", "by_load", "first", "first_se", "first_by_load"]
    return pd.DataFrame(rows, columns=columns).astype({"layer": int})


def _check(a: Recording, b: Recording) -> None:
    if a.info.corpus_sha256 != b.info.corpus_sha256 or a.info.rows != b.info.rows:
        raise InputError(f"{b.path}: is not of the same text as {a.path}; record both on the same corpus and tokens")
    if [part.rows for part in a.info.parts] != [part.rows for part in b.info.parts]:
        raise InputError(f"{b.path}: has other parts than {a.path}; record both with the same --part-tokens")
    for one, other in zip(a.info.sites, b.info.sites, strict=False):
        if (one.layer, one.entries) != (other.layer, other.entries):
            raise InputError(
                f"{b.path}: layer {other.layer} selects among {other.entries:,}, layer {one.layer} of {a.path} among "
                f"{one.entries:,}; saturation compares checkpoints of one model"
            )


def _agreement(a: np.ndarray, b: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per token: selections of ``a`` that ``b`` makes too, whether the first ones agree, and selections of ``a``."""
    chosen = np.zeros((len(b), n + 1), bool)
    np.put_along_axis(chosen, np.where(b < 0, n, b), True, axis=1)
    chosen[:, n] = False
    there = np.take_along_axis(chosen, np.where(a < 0, n, a), axis=1)
    return there.sum(1), (a[:, 0] == b[:, 0]) & (a[:, 0] >= 0), (a >= 0).sum(1)
