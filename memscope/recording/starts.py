"""``bank_init.parquet``: what entries started from, or, where no entry has a text, one empty row each."""

import numpy as np
import pyarrow as pa

STARTS = "bank_init.parquet"


def no_starts(entries: int) -> pa.Table:
    """The starts of entries of which nothing is known: null in all columns but ``entry``."""
    texts = pa.list_(pa.string())
    columns = {"sentence": pa.string(), "token_ids": pa.list_(pa.uint32())}
    columns |= dict.fromkeys(("uuid", "subject", "predicate", "object"), texts)
    numbers = {"entry": pa.array(np.arange(entries, dtype=np.uint32))}
    return pa.table(numbers | {name: pa.nulls(entries, kind) for name, kind in columns.items()})
