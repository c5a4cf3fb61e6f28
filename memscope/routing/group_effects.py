"""Read what ``memscope ablate --by-group`` wrote: what every entry of a layer is worth to each group of documents."""

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from memscope.base.parquet import read_parquet
from memscope.base.seals import read_vouching

TABLE, SUMMARY = "group_effects.parquet", "group_effects.json"
AGAIN = "run memscope ablate --by-group again"


class GroupEffects(NamedTuple):
    """Effects by group."""

    table: pd.DataFrame
    """One row per group and entry, see ``causal.group_effects.domain_effects``."""
    summary: dict[str, Any]
    """The settings: ``layer mode groups tokens documents`` and others."""


def read_group_effects(folder: Path, group: str | None = None) -> GroupEffects:
    """Effects on all groups, or on one: entries that it misses more than other groups do come first.

    Raises:
        DamageError: a file is missing or not as it was written.

    Example:
        >>> effects = read_group_effects(Path("effects/demo"))
        >>> effects.table.sort_values("contrast_q").head()
    """
    summary = read_vouching(folder / SUMMARY, AGAIN)
    table = read_parquet(folder / TABLE).to_pandas()
    if group is not None:
        table = table[table["group"] == group].sort_values("contrast", ascending=False, kind="stable")
    return GroupEffects(table.reset_index(drop=True), summary)
