"""What a token selected, put together for ``components.fired_view``: scores, sentences, decodings, slots."""

from typing import Any

import numpy as np

from app.queries import Words, words_of
from memscope.query import Recording
from memscope.store import read_rows
from memscope.token_table import Trace

_DECODED = 6
"""Nearest tokens shown of an entry."""


def fired_layers(recording: Recording, trace: Trace, pos: int, slots: np.ndarray | None) -> list[dict[str, Any]]:
    """The entries that the token at ``pos`` selected in every layer, most read first.

    Args:
        recording: whose bank.
        trace: a stretch of text around the token.
        pos: the token.
        slots: read weights of its slots, ``[layer, K, L]``; none where entries have one slot or they were not kept.
    """
    fired = trace.selections[trace.selections["pos"] == pos]
    words = words_of(recording, fired["entry"])
    parts = []
    for axis, (layer, rows) in enumerate(fired.groupby("layer")):
        gates, reads = rows["gate"].to_numpy(np.float64), rows["read"].to_numpy(np.float64)
        read = np.abs(reads).sum()
        gate_shares, read_shares = np.maximum(gates, 1e-30) / max(gates.sum(), 1e-30), np.abs(reads) / max(read, 1e-30)
        entropy = float(np.exp(-(read_shares * np.log(np.maximum(read_shares, 1e-30))).sum()))
        entries = [
            {
                "entry": int(row.entry),
                "gate": f"{row.gate:.3g}",
                "gate_share": float(gate_share / gate_shares.max()),
                "read": f"{row.read:.3g}",
                "read_share": float(read_share / max(read_shares.max(), 1e-30)),
                "sentence": words[int(row.entry)].text,
                "slots": _slots(words[int(row.entry)], None if slots is None else slots[axis, row.k]),
                "decoded": [list(pair) for pair in words[int(row.entry)].decoded[:_DECODED]],
                "title": words[int(row.entry)].title,
                "tag": "",
            }
            for row, gate_share, read_share in zip(rows.itertuples(), gate_shares, read_shares, strict=True)
        ]
        note = f"reads {entropy:.1f} of {len(rows)} entries effectively" if read > 0 else "reads nothing here"
        parts.append({"layer": int(layer), "note": note, "entries": entries})
    return parts


def recorded_slots(recording: Recording, doc: int, pos: int) -> np.ndarray | None:
    """Read weights of the slots at a recorded token, ``[layer, K, L]``, if the recording keeps them."""
    info = recording.info
    if not info.slot_weights:
        return None
    rows = read_rows(recording.path, info, int(recording.documents["first_row"][doc]) + pos, 1)
    assert rows.slot_read is not None
    return rows.slot_read[0].astype(np.float32).reshape(len(info.layers), info.selected, info.knowledge_length)


def _slots(words: Words, weights: np.ndarray | None) -> list[tuple[str, float, str]] | None:
    """Tokens of the sentence with the strength and the text of their read weight; none for entries of one slot."""
    if weights is None or len(weights) == 1 or not words.sentence:
        return None
    weights = np.abs(weights[: len(words.sentence)])
    strongest = max(float(weights.max(initial=0)), 1e-30)
    return [(text, float(w) / strongest, f"{w:.3g}") for text, w in zip(words.sentence, weights, strict=False)]
