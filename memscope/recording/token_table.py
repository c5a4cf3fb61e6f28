"""Token-major rows as tables, the same for recorded text (``query/recording.py``) and for text that is traced live
(``record/trace.py``)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from memscope.recording.sites import Site
from memscope.recording.token_rows import TokenRows
from memscope.text.tokenizer import Tokenizer


class Trace(NamedTuple):
    """Tokens and selections on a stretch of text."""

    tokens: pd.DataFrame
    """One row per token: ``pos token text loss gate_entropy top_share silent_layers``. ``loss`` is that of predicting
    the next token (nats); ``gate_entropy`` (nats) and ``top_share`` are means over layers of the entropy and the
    largest of the token's gate shares; ``silent_layers`` counts layers in which nothing was read."""
    selections: pd.DataFrame
    """One row per (token, layer, selected entry): ``pos layer rank k entry gate read``; rank 0 = most read, or of the
    highest score where nothing reads apart from the gate; ``k`` = index along the recorded K axis."""


def make_trace(rows: TokenRows, sites: Sequence[Site], tokenizer: Tokenizer) -> Trace:
    """Recorded rows of one text as the two tables of a ``Trace``.

    Where a layer has no scores or nothing reads apart from the gate, the numbers of it are NaN.
    """
    n, n_layers, k = rows.indices.shape
    blank = np.full(rows.indices.shape, np.nan, np.float16)
    gates, reads = (blank if values is None else values for values in (rows.gate, rows.read))
    gate = np.nan_to_num(gates.astype(np.float64))
    total = gate.sum(-1, keepdims=True)
    share = np.divide(gate, total, out=np.full_like(gate, np.nan), where=total > 0)
    entropy = -(np.nan_to_num(share) * np.log(share, out=np.zeros_like(share), where=share > 0)).sum(-1)
    silent = np.nan_to_num(np.abs(reads)).sum(-1) == 0  # [token, layer]
    reading = [axis for axis, site in enumerate(sites) if "reads" in site.has]
    tokens = pd.DataFrame(
        {
            "pos": rows.pos.astype(np.int64),
            "token": rows.token,
            "text": [tokenizer.token_texts[i] for i in rows.token],
            "loss": rows.loss,
            "gate_entropy": entropy.mean(-1),
            "top_share": np.nan_to_num(share).max(-1).mean(-1),
            "silent_layers": silent[:, reading].sum(-1),
        }
    )
    if not any("scores" in site.has for site in sites):
        tokens[["gate_entropy", "top_share"]] = np.nan
    weight = np.where(np.isnan(reads), np.nan_to_num(gates.astype(np.float32)), reads)
    order = np.argsort(np.where(rows.indices < 0, np.inf, -np.abs(weight.astype(np.float32))), axis=-1, kind="stable")
    indices, gates, reads = (np.take_along_axis(values, order, -1) for values in (rows.indices, gates, reads))
    selections = pd.DataFrame(
        {
            "pos": np.repeat(rows.pos.astype(np.int64), n_layers * k),
            "layer": np.tile(np.repeat([site.layer for site in sites], k), n),
            "rank": np.tile(np.arange(k), n * n_layers),
            "k": order.ravel(),
            "entry": indices.ravel().astype(np.int64),
            "gate": gates.ravel().astype(np.float32),
            "read": reads.ravel().astype(np.float32),
        }
    )
    return Trace(tokens, selections[selections["entry"] >= 0].reset_index(drop=True))
