"""Paths: how the first choice of one layer goes with that of the next, and the most frequent ways through all layers.

    transitions(recording, 3, 4).lift          # [entry of layer 3, entry of layer 4]
    frequent_paths(recording, limit=20)        # one row per way of first choices

A token's first choice in a layer is the entry of its highest score. That two layers go together may come from the token
alone; ``information`` says how much one first choice tells of the other, beside the same for tokens shuffled among all
with the same token id (``by_token``), which is what the id alone explains.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from memscope.base.printable import brief
from memscope.query.recording import Recording
from memscope.routing.rows import routed_layers, routed_site, rows_of_layers, strata_of


class LayerMoves(NamedTuple):
    """First choices of two layers."""

    def __repr__(self) -> str:
        return brief(self)

    counts: np.ndarray
    """Tokens, int64 ``[entry, entry]``."""
    lift: np.ndarray
    """Over what independent layers would have; NaN where they would have none."""
    information: float
    """Mutual information of the two first choices in nats, from the table of counts."""
    information_se: float
    """Its standard error over documents."""
    by_token: float
    """The same for tokens shuffled among those of the same token id: what the id explains, and the table's excess."""
    shuffled: float
    """The same for tokens shuffled among all: the excess alone."""


def transitions(recording: Recording, layer: int, following: int) -> LayerMoves:
    """How first choices of two layers go together.

    Example:
        >>> moves = transitions(recording, layer=0, following=1)
        >>> moves.information, moves.by_token
    """
    strata, sites = strata_of(recording), [routed_site(recording, number) for number in (layer, following)]
    first, second, token, fold = [], [], [], []
    for here, there in rows_of_layers(recording, [layer, following]):
        known = (here.entries[:, 0] >= 0) & (there.entries[:, 0] >= 0)
        first.append(here.entries[known, 0])
        second.append(there.entries[known, 0])
        token.append(here.token[known])
        fold.append((strata.cell_of(here.doc, here.first) % strata.folds)[known])
    a, b, ids, folds = (np.concatenate(parts) for parts in (first, second, token, fold))
    shape = (sites[0].entries, sites[1].entries)
    tables = np.stack([_table(a[folds == number], b[folds == number], shape) for number in range(strata.folds)])
    counts, chance, spread = tables.sum(0), np.random.default_rng(0), strata.jackknife()
    product = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / max(counts.sum(), 1)
    value = _information(counts)
    left = np.array([_information(table) for table in spread.without(tables)]) if spread.known else np.empty(0)
    order = np.lexsort((chance.random(len(ids)), ids))  # tokens of one id in random order
    same = np.argsort(ids, kind="stable")
    mixed = np.empty_like(b)
    mixed[same] = b[order]
    return LayerMoves(
        counts=counts,
        lift=np.divide(counts, product, out=np.full(shape, np.nan), where=product > 0),
        information=value,
        information_se=float(spread.errors(value, left)),
        by_token=_information(_table(a, mixed, shape)),
        shuffled=_information(_table(a, chance.permutation(b), shape)),
    )


def frequent_paths(recording: Recording, limit: int = 20) -> pd.DataFrame:
    """The ways of first choices through all layers that most tokens take.

    Returns ``path tokens share independent lift``: ``path`` are the entries by layer, counted from 0 in each,
    ``independent`` the share if layers chose independently, and ``lift`` the share over it.

    Example:
        >>> frequent_paths(recording, limit=5)
    """
    layers = routed_layers(recording)
    ways: dict[tuple[int, ...], int] = {}
    loads = [np.zeros(recording.info.site(layer).entries) for layer in layers]
    for rows in rows_of_layers(recording, layers):
        first = np.stack([layer.entries[:, 0] for layer in rows], 1)
        first = first[(first >= 0).all(1)]
        for load, column in zip(loads, first.T, strict=True):
            load += np.bincount(column, minlength=len(load))
        found, counts = np.unique(first, axis=0, return_counts=True)
        for way, count in zip(map(tuple, found.tolist()), counts.tolist(), strict=True):
            ways[way] = ways.get(way, 0) + count
    total = max(sum(ways.values()), 1)
    best = sorted(ways.items(), key=lambda item: (-item[1], item[0]))[:limit]
    shares = [load / max(load.sum(), 1) for load in loads]
    independent = [float(np.prod([share[entry] for share, entry in zip(shares, way, strict=True)])) for way, _ in best]
    table = pd.DataFrame({"path": [list(way) for way, _ in best], "tokens": [count for _, count in best]})
    table["share"] = table["tokens"] / total
    return table.assign(independent=independent, lift=table["share"] / np.maximum(independent, 1e-300))


def _table(a: np.ndarray, b: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.bincount(a * shape[1] + b, minlength=shape[0] * shape[1]).reshape(shape)


def _information(counts: np.ndarray) -> float:
    """Mutual information in nats of a table of counts."""
    joint = counts / max(counts.sum(), 1)
    product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    used = joint > 0
    return float((joint[used] * np.log(joint[used] / product[used])).sum())
