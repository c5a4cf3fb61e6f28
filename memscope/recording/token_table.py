"""Token-major rows as tables, the same for recorded text (``query/recording.py``) and for text that is traced live
(``record/trace.py``)."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from memscope.recording.token_rows import TokenRows
from memscope.text.tokenizer import Tokenizer


class Trace(NamedTuple):
    """Tokens and selections on a stretch of text."""

    tokens: pd.DataFrame
    """One row per token: ``pos token text loss gate_entropy top_share silent_layers``. ``loss`` is that of predicting
    the next token (nats); ``gate_entropy`` (nats) and ``top_share`` are means over layers of the entropy and the
    largest of the token's gate shares; ``silent_layers`` counts layers in which nothing was read."""
    selections: pd.DataFrame
    """One row per (token, layer, selected entry): ``pos layer rank k entry gate read``; rank 0 = most
    read, ``k`` = place along the recorded K axis."""


def make_trace(rows: TokenRows, layers: tuple[int, ...], tokenizer: Tokenizer) -> Trace:
    """Recorded rows of one text as the two tables of a ``Trace``."""
    n, n_layers, k = rows.indices.shape
    gate = rows.gate.astype(np.float64)
    total = gate.sum(-1, keepdims=True)
    share = np.divide(gate, total, out=np.zeros_like(gate), where=total > 0)
    entropy = -(share * np.log(share, out=np.zeros_like(share), where=share > 0)).sum(-1)  # [token, layer]
    tokens = pd.DataFrame(
        {
            "pos": rows.pos.astype(np.int64),
            "token": rows.token,
            "text": [tokenizer.token_texts[i] for i in rows.token],
            "loss": rows.loss,
            "gate_entropy": entropy.mean(-1),
            "top_share": share.max(-1).mean(-1),
            "silent_layers": (np.abs(rows.read).sum(-1) == 0).sum(-1),
        }
    )
    by_read = np.argsort(-np.abs(rows.read.astype(np.float32)), axis=-1, kind="stable")
    indices, gates, reads = (np.take_along_axis(a, by_read, -1) for a in (rows.indices, rows.gate, rows.read))
    selections = pd.DataFrame(
        {
            "pos": np.repeat(rows.pos.astype(np.int64), n_layers * k),
            "layer": np.tile(np.repeat(layers, k), n),
            "rank": np.tile(np.arange(k), n * n_layers),
            "k": by_read.ravel(),
            "entry": indices.ravel().astype(np.int64),
            "gate": gates.ravel().astype(np.float32),
            "read": reads.ravel().astype(np.float32),
        }
    )
    return Trace(tokens, selections)
