"""Two recordings side by side, as the compare page asks: metrics, entries that changed most, likeness layer by layer.

    changed_entries(Recording("recordings/early"), Recording("recordings/late"))

``report/compare/changes.py`` compares everything at once, for the report; here each question is answered by itself.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from memscope.query.needs import known_columns
from memscope.query.recording import Recording
from memscope.stats.stability import halves, likeness, switches


def paired_metrics(a: Recording, b: Recording, metrics: Sequence[str]) -> pd.DataFrame:
    """Metrics of both and their change, one row per layer that both have.

    Returns ``layer`` and, for every metric that both have, ``{metric}_a {metric}_b {metric}_change``.

    Args:
        a: the first recording.
        b: the other one; a change is B - A.
        metrics: columns of ``Recording.layer_metrics()`` and ``Recording.reading_metrics()``.
    """
    one, other = (r.layer_metrics().merge(r.reading_metrics(), on="layer") for r in (a, b))
    metrics = [metric for metric in metrics if metric in one and metric in other]
    one, other = one[["layer", *metrics]], other[["layer", *metrics]]
    both = one.merge(other, on="layer", suffixes=("_a", "_b"))
    for metric in metrics:
        both[f"{metric}_change"] = both[f"{metric}_b"] - both[f"{metric}_a"]
    return both[["layer", *(f"{metric}_{side}" for metric in metrics for side in ("a", "b", "change"))]]


def changed_entries(a: Recording, b: Recording, layer: int | None, limit: int = 100) -> pd.DataFrame:
    """Entries whose share of selections differs most between two recordings of banks of the same size.

    Returns ``entry count_a count_b share_a share_b change drift_a drift_b sentence``, as far as both are known, by
    falling absolute change.
    """
    where = "" if layer is None else f"WHERE layer = {int(layer)}"
    tables = [r.sql(f"SELECT entry, sum(count) AS count FROM usage {where} GROUP BY entry") for r in (a, b)]
    both = tables[0].merge(tables[1], on="entry", how="outer", suffixes=("_a", "_b")).fillna(0)
    for side in ("a", "b"):
        both[f"share_{side}"] = both[f"count_{side}"] / max(1.0, both[f"count_{side}"].sum())
    both["change"] = both["share_b"] - both["share_a"]
    both = both.iloc[np.argsort(-both["change"].abs().to_numpy(), kind="stable")[:limit]]
    entries = [int(entry) for entry in both["entry"]]
    for side, recording in (("a", a), ("b", b)):
        drift = recording.sql("SELECT entry, drift FROM decodings WHERE entry IN (SELECT unnest(?))", [entries])
        both = both.merge(drift.rename(columns={"drift": f"drift_{side}"}), on="entry", how="left")
    sentences = a.sentences(entries)
    table = both.astype({"entry": int, "count_a": int, "count_b": int}).assign(
        sentence=[sentences.get(entry) for entry in both["entry"]]
    )
    return known_columns(a.info, known_columns(b.info, table))


def likeness_by_layer(a: Recording, b: Recording) -> Iterator[dict[str, Any]]:
    """How alike two recordings use the bank, beside what two halves of one show; a row per layer, as it is found."""
    counts_a, counts_b = a.reachable_usage(), b.reachable_usage()
    folds = [recording.usage_folds() for recording in (a, b)]
    for axis, (layer, one, other) in enumerate(zip(a.info.layers, counts_a, counts_b, strict=True)):
        now, moved = likeness(one, other), switches(one, other)
        split = [halves(counts[:, axis, a.info.entries_of(layer)]) for counts in folds]
        known = [half for half in split if half is not None]
        correlations = [half.rank_correlation for half in known if half.rank_correlation is not None]
        yield {
            "layer": layer,
            "jensen_shannon": now.jensen_shannon,
            "halves_jensen_shannon": max((half.jensen_shannon for half in known), default=None),
            "jaccard": now.jaccard,
            "halves_jaccard": min((half.jaccard for half in known), default=None),
            "rank_correlation": now.rank_correlation,
            "halves_rank_correlation": min(correlations, default=None),
            "died": len(moved.died),
            "woke": len(moved.woke),
        }
