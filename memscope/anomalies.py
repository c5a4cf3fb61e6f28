"""What stands out in a recording, at a stated error rate: dead sets, decoys, duplicates, detectors, preferences.

    find_anomalies(Recording("recordings/demo"))    # one row each, strongest evidence first; empty = nothing found

An anomaly needs both an effect worth naming (constants below) and, where chance could make one, a p-value that
survives correction for everything looked at: in a recording without any effect the chance of a single false one is at
most ``error_rate``. ``testing.py`` plants each kind, so that each is known to be found.
"""

import numpy as np
import pandas as pd
from scipy.stats import binom, poisson

from memscope.query import Recording
from memscope.usage import UNREAD_SHARE

MIN_COUNT = 20
"""Selections that an entry needs to be named."""
DEAD_EXCESS = 0.1
"""Dead entries beyond those of even selection, as a share of the bank."""
TOGETHER = 0.95
"""Share of the tokens that select either of two duplicates that must select both."""
EXACT = 0.95
"""Precision and recall of a detector: of its selections on the token, and of the token's occurrences it is selected
at."""
COLUMNS = ("kind", "layer", "entry", "other", "label", "effect", "p")
_ERROR_SHARES = {"dead": 0.1, "unread": 0.0, "duplicate": 0.1, "detector": 0.1, "preference": 0.7}
"""How the error rate is shared out; most goes to preferences, whose permutation p-values cannot get as small."""


def find_anomalies(recording: Recording, error_rate: float = 0.05) -> pd.DataFrame:
    """All anomalies of a recording.

    Columns: ``kind`` (``dead``, ``unread``, ``duplicate``, ``detector``, ``preference``), ``layer``, ``entry`` and
    ``other`` (-1 where none), ``label`` (a token's text, or attribute and label of the init sentence), ``effect`` and
    ``p``, corrected for everything that this kind looked at:

    ==============  ==========================================================  ==================================
    kind            effect                                                      chance
    ==============  ==========================================================  ==================================
    ``dead``        dead entries as a share of the bank                         even selection: Poisson, binomial
    ``unread``      read weight per gate score, against the whole layer's       none: p = 0
    ``duplicate``   tokens that select both / either                            independent selection: Poisson
    ``detector``    smaller one of precision and recall on ``label``            selection blind to tokens: binomial
    ``preference``  lift                                                        labels shuffled (preference.py)
    ==============  ==========================================================  ==================================
    """
    found = [_dead(recording), _unread(recording), _duplicates(recording), _detectors(recording)]
    table = pd.concat([*found, _preferences(recording)], ignore_index=True)[list(COLUMNS)]
    table = table[table["p"] <= error_rate * table["kind"].map(_ERROR_SHARES)]
    return table.sort_values(["p", "kind", "layer", "entry"], ignore_index=True)


def _dead(recording: Recording) -> pd.DataFrame:
    layers = recording.layer_metrics()
    n = layers["entries"]
    effect = layers["dead"] / n
    alone = poisson.pmf(0, layers["selections"] / n)  # that even selection leaves an entry out
    p = np.minimum(1, binom.sf(layers["dead"] - 1, n, alone) * len(layers))
    table = _table("dead", layers["layer"], effect=effect, p=p)
    return table[(effect - (1 - layers["even_coverage"]) >= DEAD_EXCESS).to_numpy()]


def _unread(recording: Recording) -> pd.DataFrame:
    usage = recording.usage_table()
    layer = usage.groupby("layer")[["read_sum", "gate_sum"]].transform("sum")
    effect = (usage["read_sum"] / usage["gate_sum"]) / (layer["read_sum"] / layer["gate_sum"])
    table = _table("unread", usage["layer"], entry=usage["entry"], effect=effect, p=0.0)
    return table[((usage["count"] >= MIN_COUNT) & (effect < UNREAD_SHARE)).to_numpy()]


def _duplicates(recording: Recording) -> pd.DataFrame:
    pairs = recording.sql(
        """SELECT n.layer, n.entry, n.other, n.together, n.tokens, a.count AS a, b.count AS b
           FROM neighbours n JOIN usage a ON a.layer = n.layer AND a.entry = n.entry
                             JOIN usage b ON b.layer = n.layer AND b.entry = n.other
           WHERE n.entry < n.other"""
    )
    # Entries are counted over all tokens, pairs over those that were looked at.
    share = pairs["tokens"] / recording.info.rows
    either = (pairs["a"] + pairs["b"]) * share - pairs["together"]
    effect = pairs["together"] / either
    expected = pairs["a"] * pairs["b"] * share / recording.info.rows
    looked_at = len(recording.info.layers) * recording.info.group_size**2 / 2
    p = np.minimum(1, poisson.sf(pairs["together"] - 1, expected) * looked_at)
    table = _table("duplicate", pairs["layer"], entry=pairs["entry"], other=pairs["other"], effect=effect, p=p)
    return table[((pairs["together"] >= MIN_COUNT) & (effect >= TOGETHER)).to_numpy()]


def _detectors(recording: Recording) -> pd.DataFrame:
    top = recording.sql(
        """SELECT layer, entry, count, input_token[1] AS token, input_count[1] AS hits, input_lift[1] AS lift
           FROM firing WHERE input_token[1] >= 0 AND count >= ?""",
        [MIN_COUNT],
    )
    precision = top["hits"] / top["count"]
    share = precision / top["lift"]  # of the token among all tokens
    effect = np.minimum(precision, top["hits"] / (share * recording.info.rows))
    texts = recording.tokenizer.token_texts
    looked_at = len(recording.usage_table()) * len(texts)
    p = np.minimum(1, binom.sf(top["hits"] - 1, top["count"], share) * looked_at)
    label = [texts[token] for token in top["token"]]
    table = _table("detector", top["layer"], entry=top["entry"], label=label, effect=effect, p=p)
    return table[(effect >= EXACT).to_numpy()]


def _preferences(recording: Recording) -> pd.DataFrame:
    found = recording.preferences()
    label = found["attribute"] + ": " + found["label"]
    return _table("preference", found["layer"], label=label, effect=found["lift"], p=found[["q", "rank_q"]].min(axis=1))


def _table(kind: str, layer: pd.Series, **columns: object) -> pd.DataFrame:
    """Rows of one kind, with -1 or an empty label where there is none."""
    blank: dict[str, object] = {"kind": kind, "entry": -1, "other": -1, "label": ""}
    values = {name: value.to_numpy() if isinstance(value, pd.Series) else value for name, value in columns.items()}
    return pd.DataFrame({"layer": layer.to_numpy(), **blank, **values})
