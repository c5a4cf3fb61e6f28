"""Token-major rows of a recording: their columns in memory and in Parquet. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from memscope.base.parquet import fixed_lists, matrix

KINDS = ("gate", "read", "margin")
"""Columns that every recording has of a layer, beside the entries."""


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
    """Most likely next token, uint32 ``[token]``."""
    loss: np.ndarray
    """Loss of predicting the next token in nats, float32 ``[token]``; NaN at the end of a document."""
    indices: np.ndarray
    """Selected entries, uint32 ``[token, layer, K]``."""
    gate: np.ndarray
    """Gate scores, float16 ``[token, layer, K]``."""
    read: np.ndarray
    """Read weights, mean over read heads and sum over slots, float16 ``[token, layer, K]``."""
    margin: np.ndarray
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


def to_table(rows: TokenRows, layers: Sequence[int], kinds: Sequence[str], entry_type: pa.DataType) -> pa.Table:
    """Rows as the Parquet table of a part.

    Args:
        rows: its tokens.
        layers: memory layers, in the order of the layer axis.
        kinds: columns to write of each layer beside the entries.
        entry_type: of entry numbers.
    """
    columns = {
        "doc": pa.array(rows.doc, pa.uint32()),
        "pos": pa.array(rows.pos, pa.uint32()),
        "token": pa.array(rows.token, pa.uint32()),
        "predicted": pa.array(rows.predicted, pa.uint32()),
        "loss": pa.array(rows.loss, pa.float32(), mask=np.isnan(rows.loss)),
    }
    for axis, layer in enumerate(layers):
        columns[f"l{layer}_indices"] = fixed_lists(rows.indices[:, axis], entry_type)
        for kind in kinds:
            column_type = pa.bool_() if kind == "by_score" else pa.float16()
            columns[f"l{layer}_{kind}"] = fixed_lists(getattr(rows, kind)[:, axis], column_type)
    return pa.table(columns)


def from_table(table: pa.Table, layers: Sequence[int], kinds: Sequence[str]) -> TokenRows:
    """The inverse of ``to_table``."""

    def stack(kind: str) -> np.ndarray:
        return np.stack([matrix(table[f"l{layer}_{kind}"]) for layer in layers], axis=1)

    return TokenRows(
        **{name: table[name].to_numpy() for name in ("doc", "pos", "token", "predicted", "loss")},
        indices=stack("indices").astype(np.uint32),
        **{kind: stack(kind) for kind in kinds},
    )
