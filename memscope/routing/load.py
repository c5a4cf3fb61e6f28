"""How the load of a model is spread: layer x entry, beside even selection.

load_table(recording)       # one row per layer: max_violation, its even level, coverage, entropy
load_matrix(recording)      # times the even share, [layer, entry]
"""

import numpy as np
import pandas as pd

from memscope.query.recording import Recording
from memscope.routing.rows import routed_layers, strata_of

_DRAWS = 200


def load_matrix(recording: Recording) -> np.ndarray:
    """Selections of every entry over the even share of its layer, float64 ``[layer, entry]``.

    Layers are those of ``routed_layers``; NaN fills up layers with fewer entries.

    Example:
        >>> load_matrix(recording).max(axis=1)  # the busiest entry of each layer, over its even share
    """
    layers, counts = routed_layers(recording), recording.usage()
    width = max((recording.info.site(layer).entries for layer in layers), default=0)
    load = np.full((len(layers), width), np.nan)
    for row, layer in enumerate(layers):
        site = recording.info.site(layer)
        own = counts[recording.info.layers.index(layer), site.own]
        load[row, : site.entries] = own * site.entries / max(own.sum(), 1)
    return load


def load_table(recording: Recording) -> pd.DataFrame:
    """One row per layer: how uneven its load is, and how uneven even selection would look.

    Returns ``layer entries selections max_violation max_violation_se even_max_violation least entropy
    effective_entries never``. ``max_violation`` is MaxVio (Wang et al. 2024, arXiv 2408.15664), its error is by the
    jackknife over documents; ``even_max_violation`` is its mean in draws of even selection at the same D; ``least`` is
    the smallest load over the even share; ``effective_entries`` is exp(entropy of the shares).

    Example:
        >>> load_table(recording)[["layer", "max_violation", "even_max_violation"]]
    """
    layers, folds, spread = routed_layers(recording), recording.usage_folds(), strata_of(recording).jackknife()
    chance, rows = np.random.default_rng(0), []
    for layer in layers:
        site = recording.info.site(layer)
        own = folds[:, recording.info.layers.index(layer), site.own].astype(np.int64)
        counts = own.sum(0)
        share = counts / max(counts.sum(), 1)
        used = share[share > 0]
        entropy = float(-(used * np.log(used)).sum())
        left = np.array([_violation(kept) for kept in spread.without(own)]) if spread.known else np.empty(0)
        rows.append(
            {
                "layer": layer,
                "entries": site.entries,
                "selections": int(counts.sum()),
                "max_violation": _violation(counts),
                "max_violation_se": float(spread.errors(_violation(counts), left)),
                "even_max_violation": _even_violation(int(counts.sum()), site.entries, site.distinct, chance),
                "least": float(share.min() * site.entries),
                "entropy": entropy,
                "effective_entries": float(np.exp(entropy)),
                "never": int((counts == 0).sum()),
            }
        )
    return pd.DataFrame(rows)


def _violation(counts: np.ndarray) -> float:
    return float(counts.max() * len(counts) / max(counts.sum(), 1) - 1)


def _even_violation(selections: int, entries: int, distinct: int, chance: np.random.Generator) -> float:
    """Mean MaxVio of independent binomial counts: the sum over entries varies, which hardly moves the largest."""
    draws = chance.binomial(selections // distinct, distinct / entries, (_DRAWS, entries))
    return float((draws.max(1) * entries / np.maximum(draws.sum(1), 1) - 1).mean())
