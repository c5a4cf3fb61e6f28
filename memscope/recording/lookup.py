"""Look up rows of single entries in Parquet files that are sorted by entry, within layers or as a whole.

The smallest and largest entry of every row group are read once; a look-up then opens the few row groups that can
hold an entry, for a file of any size. Several threads may look up at the same time.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from memscope.base.parquet import open_parquet, read_parquet


class EntryTable:
    """A Parquet file with a column ``entry``.

    Raises:
        InputError: missing or damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        with open_parquet(path) as file:
            self._metadata = file.metadata
            column = file.schema_arrow.get_field_index("entry")
            groups = [file.metadata.row_group(number).column(column) for number in range(file.num_row_groups)]
            spans = [
                (g.statistics.min, g.statistics.max) if g.num_values else (1, 0) for g in groups
            ]  # empty: no entry
            self._low, self._high = np.array(spans, np.int64).reshape(-1, 2).T

    def rows(self, entries: Iterable[int], columns: list[str] | None = None) -> pd.DataFrame:
        """All rows of some entries, in the order of the file; ``columns`` must have ``entry``."""
        wanted = np.unique(np.fromiter(entries, np.int64))
        may_hold = np.searchsorted(wanted, self._low) < np.searchsorted(wanted, self._high, side="right")
        table = read_parquet(self.path, columns, np.flatnonzero(may_hold).tolist(), self._metadata)
        entries_there = table["entry"].to_numpy()
        order = np.searchsorted(wanted, entries_there).clip(max=max(len(wanted) - 1, 0))
        return table.filter(pa.array(wanted[order] == entries_there if len(wanted) else np.zeros(0, bool))).to_pandas()
