"""Numbers that colour a text: one per token, or one per layer and token.

values = layer_measure(trace, recording.info.layers, "gate entropy")     # [layer, token]
over_layers(values, "gate entropy")                                      # [token]
"""

import numpy as np

from memscope.recording.info import RecordingInfo
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
"""Measures and what they are in a memory; ``loss`` is one number per token, the others have one per layer."""


def known_measures(info: RecordingInfo) -> dict[str, str]:
    """The measures that a recording has and what they are, in the words of what selects; ``one entry`` always."""
    has = {
        "loss": info.predictions,
        **dict.fromkeys(("gate entropy", "top gate score", "top gate share"), info.has("scores")),
        "effective entries": info.has("reads"),
        "drift of the read entry": info.has("reads") and info.has("drift"),
        "one entry": True,
    }
    said = {name: words for name, words in MEASURES.items() if has[name]}
    if info.kind == "memory":
        return said
    score, word = info.score, info.word()
    here = {
        "gate entropy": f"entropy of {score}s, nats: how evenly the selected {info.word(2)} are weighed",
        "top gate score": f"the largest {score} of the token",
        "top gate share": f"share of the token's {score}s that the best {word} has",
        "effective entries": f"effective {info.word(2)}: how many the {info.reader} takes, exp(entropy of read shares)",
        "one entry": f"{score} of one {word}" if info.has("scores") else f"whether one {word} is selected",
    }
    return said | {name: words for name, words in here.items() if name in said}


def default_measure(info: RecordingInfo) -> str:
    """The measure that colours a text at first: one that every layer has, so that text and grid show the same."""
    known = known_measures(info)
    return next((name for name in ("gate entropy", "effective entries", "loss") if name in known), "one entry")


def measure_name(info: RecordingInfo, measure: str) -> str:
    """What a measure is called where a reader chooses one."""
    if info.kind == "memory":
        return measure
    score = info.score
    names = {
        "gate entropy": f"{score} entropy",
        "top gate score": f"top {score}",
        "top gate share": f"top {score} share",
        "effective entries": f"effective {info.word(2)}",
    }
    return names.get(measure, measure.replace("entry", info.word()))


def layer_measure(
    trace: Trace, layers: tuple[int, ...], measure: str, drift: np.ndarray | None = None, entry: int | None = None
) -> np.ndarray:
    """A measure of every layer and token, float64 ``[layer, token]``; NaN where there is none.

    Args:
        trace: what happened on a text.
        layers: layers that select, rows of the result.
        measure: one of ``MEASURES`` but ``loss``.
        drift: of every entry, ``[N]``; for ``drift of the read entry``.
        entry: whose gate score ``one entry`` shows; 1 where it is selected without one.
    """
    entries, gate, read = (_by_rank(trace, layers, name) for name in ("entry", "gate", "read"))
    read = np.abs(read)
    match measure:
        case "one entry":
            fires = entries == entry
            values = np.where(
                fires.any(-1), np.where(fires, np.where(np.isnan(gate), 1, gate), -np.inf).max(-1), np.nan
            )
        case "drift of the read entry":
            assert drift is not None
            best = np.nan_to_num(entries[..., 0]).astype(np.int64)
            values = np.where(read[..., 0] > 0, drift[best], np.nan)
        case "top gate score":
            values = _where_any(gate, np.nan_to_num(gate).max(-1))
        case "top gate share":
            values = _where_any(gate, _shares(gate).max(-1))
        case "gate entropy":
            values = _where_any(gate, _entropy(_shares(gate)))
        case "effective entries":
            values = _where_any(read, np.exp(_entropy(_shares(read))))
        case _:
            raise ValueError(f"no measure per layer is called '{measure}'")
    return np.asarray(values.T, np.float64)


def over_layers(values: np.ndarray, measure: str) -> np.ndarray:
    """One value per token out of ``[layer, token]``: the largest for one entry, else the mean; NaN where none."""
    known = ~np.isnan(values)
    if measure == "one entry":
        return np.where(known.any(0), np.where(known, values, -np.inf).max(0), np.nan)
    return np.where(known.any(0), np.where(known, values, 0).sum(0) / np.maximum(1, known.sum(0)), np.nan)


def _by_rank(trace: Trace, layers: tuple[int, ...], column: str) -> np.ndarray:
    """A column of selections, ``[token, layer, rank]``; NaN where a token selects fewer than the most."""
    rows = trace.selections
    token = np.searchsorted(trace.tokens["pos"].to_numpy(), rows["pos"].to_numpy())
    layer, rank = np.searchsorted(layers, rows["layer"].to_numpy()), rows["rank"].to_numpy()
    values = np.full((len(trace.tokens), len(layers), int(rank.max(initial=0)) + 1), np.nan)
    values[token, layer, rank] = rows[column].to_numpy(np.float64)
    return values


def _where_any(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values of tokens that have any weight, NaN of the others."""
    return np.where(np.isnan(weights).all(-1), np.nan, values)


def _shares(weights: np.ndarray) -> np.ndarray:
    weights = np.nan_to_num(weights)
    total = weights.sum(-1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


def _entropy(shares: np.ndarray) -> np.ndarray:
    """Entropy along the last axis, nats."""
    entropy: np.ndarray = -(shares * np.log(shares, out=np.zeros_like(shares), where=shares > 0)).sum(-1)
    return entropy + 0.0  # one share alone gives -0
