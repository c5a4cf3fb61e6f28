"""Numbers that colour a text: one per token, or one per layer and token.

values = layer_measure(trace, recording.info.layers, "gate entropy")     # [layer, token]
over_layers(values, "gate entropy")                                      # [token]
"""

import numpy as np

from memscope.recording.token_table import Trace

MEASURES = {
    "loss": "loss of predicting the next token, nats",
    "gate entropy": "gate entropy, nats: how evenly the gate weighs what it selects",
    "top gate score": "top gate score: how well the best key matches",
    "top gate share": "top gate share: share of the token's gate scores that the best entry has",
    "effective entries": "effective entries: how many entries the attention reads, exp(entropy of read shares)",
    "drift of the read entry": "drift of the most read entry, 1 - cosine to its start",
    "one entry": "gate score of one entry",
}
"""Measures and what they are; ``loss`` is one number per token, the others have one per layer."""


def layer_measure(
    trace: Trace, layers: tuple[int, ...], measure: str, drift: np.ndarray | None = None, entry: int | None = None
) -> np.ndarray:
    """A measure of every layer and token, float64 ``[layer, token]``; NaN where there is none.

    Args:
        trace: what happened on a text.
        layers: memory layers, rows of the result.
        measure: one of ``MEASURES`` but ``loss``.
        drift: of every entry, ``[N]``; for ``drift of the read entry``.
        entry: whose gate score ``one entry`` shows.
    """
    shape = (len(trace.tokens), len(layers), -1)  # make_trace's rows run by token, layer and falling read weight
    entries = trace.selections["entry"].to_numpy().reshape(shape)
    gate = trace.selections["gate"].to_numpy(np.float64).reshape(shape)
    read = np.abs(trace.selections["read"].to_numpy(np.float64)).reshape(shape)
    match measure:
        case "one entry":
            fires = entries == entry
            values = np.where(fires.any(-1), np.where(fires, gate, -np.inf).max(-1), np.nan)
        case "drift of the read entry":
            assert drift is not None
            values = np.where(read[..., 0] > 0, drift[entries[..., 0]], np.nan)
        case "top gate score":
            values = gate.max(-1)
        case "top gate share":
            values = _shares(gate).max(-1)
        case "gate entropy":
            values = _entropy(_shares(gate))
        case "effective entries":
            values = np.exp(_entropy(_shares(read)))
        case _:
            raise ValueError(f"no measure per layer is called '{measure}'")
    return np.asarray(values.T, np.float64)


def over_layers(values: np.ndarray, measure: str) -> np.ndarray:
    """One value per token out of ``[layer, token]``: the largest for one entry, else the mean; NaN where none."""
    known = ~np.isnan(values)
    if measure == "one entry":
        return np.where(known.any(0), np.where(known, values, -np.inf).max(0), np.nan)
    return np.where(known.any(0), np.where(known, values, 0).sum(0) / np.maximum(1, known.sum(0)), np.nan)


def _shares(weights: np.ndarray) -> np.ndarray:
    total = weights.sum(-1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


def _entropy(shares: np.ndarray) -> np.ndarray:
    """Entropy along the last axis, nats."""
    entropy: np.ndarray = -(shares * np.log(shares, out=np.zeros_like(shares), where=shares > 0)).sum(-1)
    return entropy
