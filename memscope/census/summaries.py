"""From counts to the plain numbers of ``census.json``: evenness, reading, profiles, overlap. Pure functions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.linalg import block_diag
from scipy.stats import rankdata

from memscope.census.kernels import SUMS
from memscope.census.strata import TokenClass
from memscope.stats.jackknife import Jackknife
from memscope.stats.stability import jensen_shannon
from memscope.stats.usage import jackknife_errors, usage_metrics

WEIGHTINGS = ("by_count", "by_gate_score", "by_read_weight")
_PER_HEARD = SUMS[3:10]  # means over the tokens that read anything
_TOKENS, _HEARD, _UNREAD = 0, 1, 2
_MARGIN, _MARGINS, _LOSS, _LOSSES = 10, 11, 12, 13
_UNREAD_BY_NORM, _SCORE_MARGIN, _BY_SCORE = 14, 15, 16


def evenness(
    folds: np.ndarray, weights: np.ndarray, spread: Jackknife, distinct: int, groups: int = 1
) -> dict[str, dict[str, Any]]:
    """Metrics of usage under every weighting, those by count with standard errors.

    Args:
        folds: selections per fold and entry, ``[fold, N]``.
        weights: summed gate scores and absolute read weights, the first columns of ``[N, weight]``.
        spread: of the folds.
        distinct: entries that a gate head selects for a token, all different.
        groups: equal parts of the bank, each for as many layers.
    """
    counts = folds.sum(0, dtype=np.int64)
    d = int(counts.sum())
    columns = (counts, weights[:, 0], weights[:, 1])
    metrics = {
        name: usage_metrics(usage, d, distinct, groups).as_dict()
        for name, usage in zip(WEIGHTINGS, columns, strict=True)
    }
    return {**metrics, "by_count": metrics["by_count"] | _plain(jackknife_errors(folds, spread))}


def reading_statistics(sums: np.ndarray, selected: int) -> dict[str, Any]:
    """How tokens weigh what they selected.

    Args:
        sums: ``kernels.SUMS`` per class of tokens, ``[class, sum]``; classes are added up.
        selected: selections per token (K).
    """
    total = sums.sum(0)
    tokens, heard = max(total[_TOKENS], 1), max(total[_HEARD], 1)
    return {name: float(total[SUMS.index(name)] / heard) for name in _PER_HEARD} | _plain(
        {
            "unread_share": total[_UNREAD] / (tokens * selected),
            "unread_share_by_norm": total[_UNREAD_BY_NORM] / (tokens * selected),
            "silent_tokens": 1 - total[_HEARD] / tokens,
            "margin": total[_MARGIN] / total[_MARGINS] if total[_MARGINS] else float("nan"),
            "score_margin": total[_SCORE_MARGIN] / total[_MARGINS] if total[_MARGINS] else float("nan"),
            "by_score_share": total[_BY_SCORE] / (tokens * selected),
            "loss": total[_LOSS] / total[_LOSSES] if total[_LOSSES] else float("nan"),
        }
    )


def reading_errors(cells: np.ndarray, selected: int, spread: Jackknife) -> dict[str, float | None]:
    """Standard errors ``{name}_se`` of ``reading_statistics`` by leaving out one fold after the other.

    Args:
        cells: ``kernels.SUMS`` per fold, ``[fold, sum]``.
        selected: selections per token (K).
        spread: of the folds.
    """
    if not spread.known:
        return {}
    whole = reading_statistics(cells, selected)
    without = [reading_statistics(sums[None], selected) for sums in spread.without(cells)]
    value, *left = ([np.nan if one[name] is None else one[name] for name in whole] for one in (whole, *without))
    errors = spread.errors(np.array(value), np.array(left))
    return _plain({f"{name}_se": error for name, error in zip(whole, errors, strict=True)})


def profile(
    classes: Sequence[TokenClass], counts: np.ndarray, shuffled: np.ndarray, sums: np.ndarray, selected: int
) -> list[dict[str, Any]]:
    """One row per class of tokens: what the gate does there, and how far its choice differs from the whole layer's.

    ``divergence`` is KL(entries of the class || entries of the layer) in nats; ``even_divergence`` the same for as
    many tokens taken at random, since a small class looks different by chance.

    Args:
        classes: their names.
        counts: selections per entry and class, ``[N, class]``.
        shuffled: the same with tokens shuffled between classes.
        sums: ``kernels.SUMS`` per class, ``[class, sum]``.
        selected: selections per token (K).
    """
    layer = counts.sum(1, dtype=np.int64)
    rows = []
    for number, one in enumerate(classes):
        if sums[number, _TOKENS] == 0:
            continue
        rows.append(
            {
                "label": one.label,
                "low": one.low,
                "high": one.high,
                "tokens": int(sums[number, _TOKENS]),
                "coverage": float((counts[:, number] > 0).mean()),
                "divergence": _divergence(counts[:, number], layer),
                "even_divergence": _divergence(shuffled[:, number], layer),
                **reading_statistics(sums[number : number + 1], selected),
            }
        )
    return rows


def mutual_information(counts: np.ndarray) -> float:
    """Mutual information in nats between entry and class of a selection, from ``[N, class]`` counts."""
    total = max(int(counts.sum(dtype=np.int64)), 1)
    entry = counts.sum(1, dtype=np.float64)
    information = 0.0
    for column in counts.T:
        used = np.flatnonzero(column)
        joint = column[used].astype(np.float64)
        information += float((joint * np.log(joint * total / (entry[used] * joint.sum()))).sum())
    return information / total


def layer_overlap(usage: np.ndarray, groups: int = 1) -> dict[str, list[list[float]]]:
    """How alike the layers use the bank: matrices ``[layer, layer]``.

    ``jaccard`` of the sets of used entries, ``even_jaccard`` of independent random sets of the same sizes,
    ``rank_correlation`` of usage (Spearman, over all entries), ``jensen_shannon`` divergence in nats (0 = same
    distribution, ln 2 = no entry in common). Layers of different groups have no entry in common by construction: 0, 0,
    0 and ln 2; those of one are compared over the entries of their group.

    Args:
        usage: selections of the entries that each layer can select, ``[layer, N / groups]``.
        groups: of layers, equal and in order.
    """
    blocks = [_overlap(part) for part in np.split(usage, groups)]
    apart = {"jensen_shannon": np.log(2)}
    within = block_diag(*(np.ones((len(part), len(part)), bool) for part in np.split(usage, groups)))
    joined = {name: block_diag(*(block[name] for block in blocks)) for name in blocks[0]}
    return {name: np.where(within, values, apart.get(name, 0.0)).tolist() for name, values in joined.items()}


def _overlap(usage: np.ndarray) -> dict[str, np.ndarray]:
    """``layer_overlap`` of the layers of one group."""
    used = usage > 0
    size = used.mean(1)
    both = (used[:, None] & used[None]).sum(-1) if len(usage) <= 1 else used.astype(np.float32) @ used.T
    either = used.sum(1)[:, None] + used.sum(1)[None] - both
    chance = size[:, None] * size[None]
    with np.errstate(invalid="ignore"):  # a layer of constant usage has no rank correlation: 0
        correlation = np.atleast_2d(np.corrcoef(rankdata(usage, axis=1)))
    matrices = {
        "jaccard": both / np.maximum(either, 1),
        "even_jaccard": chance / np.maximum(size[:, None] + size[None] - chance, 1e-300),
        "rank_correlation": correlation,
        "jensen_shannon": np.array([[jensen_shannon(a, b) for b in usage] for a in usage]),
    }
    return {name: np.nan_to_num(values).astype(float) for name, values in matrices.items()}


def _divergence(part: np.ndarray, whole: np.ndarray) -> float:
    used = np.flatnonzero(part)
    p, q = part[used] / max(part.sum(dtype=np.int64), 1), whole[used] / max(whole.sum(), 1)
    return float((p * np.log(p / q)).sum())


def _plain(values: dict[str, Any]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if np.isnan(value) else float(value) for name, value in values.items()}
