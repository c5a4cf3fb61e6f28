"""Token-major rows of a recording: their columns in memory and in Parquet. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from memscope.base.parquet import fixed_lists, matrix
from memscope.recording.sites import Site

NONE = -1
"""In place of an entry: the token selected fewer than K."""
BLANK: dict[str, float | int] = {"by_score": 1}
"""What stands where a layer lacks a column that another layer has; NaN where nothing is named."""
PER_SELECTION = ("gate", "read", "by_score", "read_norm")
"""Columns with a number per selection: as long as the K axis, whichever layers have them."""


@dataclass(frozen=True)
class TokenRows:
    """Recorded tokens; axes ``token``, memory ``layer``, selection ``K``, gate head ``H``."""

    doc: np.ndarray
    """Document number, uint32 ``[token]``."""
    pos: np.ndarray
    """Position in the document, uint32 ``[token]``."""
    token: np.ndarray
    """Token id, uint32 ``[token]``."""
    predicted: np.ndarray
    """Most likely next token, int64 ``[token]``; -1 where the recording has no predictions."""
    loss: np.ndarray
    """Loss of predicting the next token in nats, float32 ``[token]``; NaN at the end of a document."""
    indices: np.ndarray
    """Selected entries, int64 ``[token, layer, K]``; -1 where a layer selects fewer."""
    gate: np.ndarray | None = None
    """Gate scores, float16 ``[token, layer, K]``; NaN past the selections of a layer that has fewer. None without."""
    read: np.ndarray | None = None
    """Read weights, mean over read heads and sum over slots, float16 ``[token, layer, K]``. None where no layer reads
    apart from its gate."""
    margin: np.ndarray | None = None
    """Raw score plus selection bias of the weakest selected entry above that of the best rejected one, float16
    ``[token, layer, H]``; NaN if none is rejected."""
    score_margin: np.ndarray | None = None
    """The margin in raw scores alone, float16 ``[token, layer, H]``: negative where the bias passed over a better one.
    None without a bias: ``margin`` is then of raw scores."""
    by_score: np.ndarray | None = None
    """Whether raw scores alone would have selected the entry too, bool ``[token, layer, K]``. None without a bias: all
    true."""
    read_norm: np.ndarray | None = None
    """Absolute read weights, mean over read heads and sum over slots (an L1 norm), float16 ``[token, layer, K]``:
    ``read`` without cancellation. None where no weight can be negative: ``read`` has the same values."""
    head_read: np.ndarray | None = None
    """Read weights per read head, sum over slots, float16 ``[token, layer, A * K]`` head by head; on request."""
    slot_read: np.ndarray | None = None
    """Read weights per slot, mean over read heads, float16 ``[token, layer, K * L]`` entry by entry; on request."""


def to_table(rows: TokenRows, schema: pa.Schema, sites: Sequence[Site], columns: Sequence[Sequence[str]]) -> pa.Table:
    """Rows as the Parquet table of a part.

    Args:
        rows: its tokens.
        schema: of the table (``parts.token_schema``).
        sites: layers, in the order of the layer axis.
        columns: of every site beside the entries.
    """
    arrays: dict[str, pa.Array] = {
        "doc": pa.array(rows.doc, pa.uint32()),
        "pos": pa.array(rows.pos, pa.uint32()),
        "token": pa.array(rows.token, pa.uint32()),
        "predicted": pa.array(rows.predicted, pa.uint32(), mask=rows.predicted < 0),
        "loss": pa.array(rows.loss, pa.float32(), mask=np.isnan(rows.loss)),
    }
    for axis, (site, names) in enumerate(zip(sites, columns, strict=True)):
        for name in ("indices", *names):
            field = schema.field(f"l{site.layer}_{name}").type
            values = getattr(rows, name)[:, axis, : field.list_size]
            arrays[f"l{site.layer}_{name}"] = fixed_lists(values, field.value_type)
    return pa.table({name: arrays[name] for name in schema.names})


def from_table(table: pa.Table, sites: Sequence[Site], columns: Sequence[Sequence[str]]) -> TokenRows:
    """The inverse of ``to_table``; layers with fewer numbers than others are filled up."""

    def stack(name: str, blank: float | int) -> np.ndarray:
        there = [
            matrix(table[f"l{site.layer}_{name}"]) if name in ("indices", *names) else None
            for site, names in zip(sites, columns, strict=True)
        ]
        known = [values for values in there if values is not None]
        widths = [site.selected for site in sites] if name in PER_SELECTION else [values.shape[1] for values in known]
        width, dtype = max(widths), known[0].dtype
        stacked = np.full((table.num_rows, len(sites), width), blank, np.int64 if name == "indices" else dtype)
        for axis, values in enumerate(there):
            if values is not None:
                stacked[:, axis, : values.shape[1]] = values
        return stacked

    kinds = dict.fromkeys(name for names in columns for name in names)
    predicted = table["predicted"].cast(pa.int64()).fill_null(NONE).to_numpy()
    return TokenRows(
        **{name: table[name].to_numpy() for name in ("doc", "pos", "token", "loss")},
        predicted=predicted,
        indices=stack("indices", NONE),
        **{name: stack(name, BLANK.get(name, np.nan)) for name in kinds},
    )
