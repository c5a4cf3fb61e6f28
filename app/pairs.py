"""Questions on two recordings, or on two tokens; see ``queries.py``."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from memscope.query import Recording
from memscope.stability import likeness, sampled_likeness, switches
from memscope.token_table import Trace


def changed_entries(a: Recording, b: Recording, layer: int | None, limit: int = 100) -> pd.DataFrame:
    """Entries whose share of selections differs most between two recordings of banks of the same size.

    Returns ``entry count_a count_b share_a share_b change drift_a drift_b sentence``, by falling absolute change.
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
    return both.astype({"entry": int, "count_a": int, "count_b": int}).assign(
        sentence=[sentences.get(entry) for entry in both["entry"]]
    )


def shared_selections(a: Trace, b: Trace, pos_a: int, pos_b: int) -> pd.DataFrame:
    """Entries that two tokens select, per layer: ``layer entry gate_a gate_b read_a read_b``; NaN where not."""
    sides = [t.selections[t.selections["pos"] == pos] for t, pos in ((a, pos_a), (b, pos_b))]
    sides = [side.groupby(["layer", "entry"], as_index=False)[["gate", "read"]].max() for side in sides]
    return sides[0].merge(sides[1], on=["layer", "entry"], how="outer", suffixes=("_a", "_b"))


def likeness_by_layer(a: Recording, b: Recording) -> Iterator[dict[str, Any]]:
    """How alike two recordings use the bank, beside what sampling alone shows; one row per layer, as it is found."""
    counts_a, counts_b = a.usage(), b.usage()
    for layer, one, other in zip(a.info.layers, counts_a, counts_b, strict=True):
        now, sampled, moved = likeness(one, other), sampled_likeness(one, other), switches(one, other)
        yield {
            "layer": layer,
            "jensen_shannon": now.jensen_shannon,
            "sampled_jensen_shannon": sampled.jensen_shannon,
            "jaccard": now.jaccard,
            "sampled_jaccard": sampled.jaccard,
            "rank_correlation": now.rank_correlation,
            "sampled_rank_correlation": sampled.rank_correlation,
            "died": len(moved.died),
            "woke": len(moved.woke),
        }
