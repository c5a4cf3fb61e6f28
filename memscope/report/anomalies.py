"""The anomalies of a recording, at a stated error rate: entries and layers that behave unusually.

    find_anomalies(Recording("recordings/demo"))    # one row each, strongest evidence first; empty = nothing found

An anomaly needs both an effect worth naming and, where chance could make one, a p-value that survives correction for
everything looked at: in a recording without any effect the chance of a single false one is at most ``error_rate``. No
effect means that the gate is blind to text and to what else it selects, and usage to labels. Entries may be used as
unevenly as they like, tokens follow Zipf's law, documents differ in length, selections come in bursts
(``census/anomalies/looks.py``).

The census writes what has the effect (``census/anomalies/entries.py``, ``census/anomalies/pairs.py``); here the rest is
added and the error rate applied. ``testing/anomalies.py`` plants each kind, so that each is known to be found.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import pdtrc

from memscope.base.words import short_percent, visible
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.recording.sites import Has

ERROR_RATE = 0.05
"""Chance of a single false anomaly in a recording without any effect."""
DEAD_EXCESS = 0.1
"""Dead entries beyond those that chance leaves out, as a share of the bank."""
COLUMNS = ("kind", "layer", "entry", "other", "label", "effect", "p", "tokens")


class Kind(NamedTuple):
    """A kind of anomaly."""

    error_share: float
    """Its part of the error rate; 0 where chance can make none. Most goes to preferences, whose permutation p-values
    cannot get as small as the others."""
    words: str
    """A row of ``find_anomalies`` in words."""
    needs: Has | None = None
    """What a layer must have to show it."""


_EXACTLY = "; the lower one of precision and recall is {effect:.1%}"
KINDS = {
    "dead": Kind(0.03, "never selects {share} of its {words}"),
    "unread": Kind(0.0, "selected, and read with {effect:.2%} of the layer's weight", "reads"),
    "duplicate": Kind(0.03, "selected with {other} at {effect:.0%} of their tokens"),
    "everywhere": Kind(0.0, "selected at {effect:.1%} of all tokens"),
    "document": Kind(0.03, "{effect:.0%} of its tokens are in “{label}”"),
    "uniform": Kind(0.0, "its {label} weighs all selected {words} alike", "reads"),
    "negative": Kind(0.02, "read with a negative weight at {effect:.0%} of its tokens", "reads"),
    "exclusive": Kind(0.02, "takes turns with {other} on the same tokens, hardly ever both"),
    "token": Kind(0.03, "selected at “{label}”" + _EXACTLY),
    "previous": Kind(0.03, "selected after “{label}”" + _EXACTLY),
    "bigram": Kind(0.03, "selected at “{label}”" + _EXACTLY),
    "start": Kind(0.03, "{effect:.0%} of its tokens start a window"),
    "class": Kind(0.02, "{effect:.0%} of its tokens are {label}"),
    "preference": Kind(0.7, "selects entries of “{label}” {effect:.2g} times their share", "starts"),
}
"""Every kind by name, faults first: the order in which they are shown."""
FAULTS = {
    "dead": ("layer that leaves {words} out", "layers that leave {words} out"),
    "unread": ("{word} selected and not read", "{words} selected and not read"),
    "duplicate": ("pair of {words} selected together", "pairs of {words} selected together"),
    "everywhere": ("{word} that nearly every token selects", "{words} that nearly every token selects"),
    "document": ("{word} of one document only", "{words} of one document only"),
    "uniform": ("layer that reads all alike", "layers that read all alike"),
}
"""One and several of the kinds in which entries are wasted; the others are ways to use entries."""


def known_kinds(info: RecordingInfo) -> list[str]:
    """Names of the kinds that a recording can show."""
    return [name for name, kind in KINDS.items() if kind.needs is None or info.has(kind.needs)]


def fault_in_words(name: str, count: int, info: RecordingInfo) -> str:
    """How many anomalies of a kind of ``FAULTS`` there are: ``2 pairs of entries selected together``."""
    return f"{count:,} {FAULTS[name][count != 1].format(word=info.word(), words=info.word(2))}"


def find_anomalies(recording: Recording, error_rate: float = ERROR_RATE) -> pd.DataFrame:
    """All anomalies of a recording, by rising ``p``.

    Columns: ``kind`` (of ``KINDS``), ``layer``, ``entry`` and ``other`` (-1 where none), ``label`` (text of a token or
    two, a class of tokens, a document's title, what is uniform, or attribute and label of a preference), ``effect``,
    ``p``, corrected for everything that this kind looked at, and ``tokens`` (those that select the entry, or either of
    two; of a layer all that were counted):

    ==============  =============================================================  =================================
    kind            effect                                                         chance
    ==============  =============================================================  =================================
    ``dead``        dead entries as a share of the bank                            as many as are rare: Poisson
    ``unread``      read weight per gate score, against the whole layer's          none: p = 0
    ``duplicate``   tokens that select both / either                               looks: binomial, inside documents
    ``exclusive``   tokens that select both / expected of the same two tokens      likewise
    ``token``       smaller one of precision and recall of the input token         likewise
    ``previous``    the same of the token before                                   likewise
    ``bigram``      the same of both tokens, where neither is enough               likewise
    ``start``       share of its tokens that start a window                        likewise
    ``class``       share of its tokens in a class: digits, punctuation, capitals  likewise
    ``document``    share of its tokens in one document                            looks: binomial, by length
    ``negative``    share of its tokens at which the read weight is negative       looks: binomial, by the layer's
    ``everywhere``  share of all tokens that select it                             none: p = 0
    ``uniform``     exp(entropy) of read shares / their number, mean over tokens   none: p = 0
    ``preference``  lift                                                           labels shuffled
    ==============  =============================================================  =================================

    Example:
        >>> find_anomalies(recording)[["kind", "layer", "entry", "effect", "p"]]
    """
    counted = recording.sql("SELECT * FROM anomalies")
    titles = recording.documents["title"]
    in_document = counted["kind"] == "document"
    counted.loc[in_document, "label"] = [str(titles[int(doc)]) for doc in counted.loc[in_document, "label"]]
    alike = (counted["kind"] == "uniform") & (counted["label"] == "attention")
    if alike.sum() == sum(
        "reads" in site.has for site in recording.info.sites
    ):  # that is how the model is built, and no layer stands out
        counted = counted[~alike]
    table = pd.concat([_dead(recording), counted, _preferences(recording)], ignore_index=True)
    shares = table["kind"].map({name: kind.error_share for name, kind in KINDS.items()}).astype(float)
    table = table[table["p"].astype(float) <= error_rate * shares][list(COLUMNS)]
    return table.sort_values(["p", "kind", "layer", "entry", "other"], ignore_index=True)


def anomalies_in_words(recording: Recording, error_rate: float = ERROR_RATE) -> pd.DataFrame:
    """``find_anomalies`` with a column ``text`` that says each in words, faults first and then kind by kind."""
    table = find_anomalies(recording, error_rate)
    order = {name: number for number, name in enumerate(KINDS)}
    info = recording.info
    others = [info.label(other) if other >= 0 else "" for other in table["other"]]
    said = {"label": table["label"].map(visible), "share": table["effect"].map(short_percent), "other": others}
    rows = table.assign(**said, words=[info.site(layer).word(2) for layer in table["layer"]]).to_dict("records")
    table = table.assign(text=[KINDS[row["kind"]].words.format(**row) for row in rows])
    return table.sort_values("kind", key=lambda kind: kind.map(order), kind="stable", ignore_index=True)


def _dead(recording: Recording) -> pd.DataFrame:
    """Layers that never select a part of their entries, where it is more than they select hardly ever.

    Chance leaves out as many as even selection would, or as were seen in one fold of documents only: the first-order
    jackknife's estimate of how many more are alive and rare (Burnham and Overton 1978, "Estimation of the size of a
    closed population when capture probabilities vary among animals").
    """
    layers = recording.layer_metrics()
    n = layers["entries"].to_numpy()
    even = n * (1 - layers["even_coverage"].to_numpy())
    rare = ((recording.usage_folds() > 0).sum(0) == 1).sum(1)
    dead, by_chance = layers["dead"].to_numpy(), np.maximum(even, rare)
    at_least = pdtrc(np.maximum(dead - 1, 0), by_chance)  # of a Poisson distribution
    p = np.minimum(1, at_least * len(layers))
    table = _table("dead", layers["layer"], effect=dead / n, p=p, tokens=recording.info.rows)
    return table[(dead - by_chance) / n >= DEAD_EXCESS]


def _preferences(recording: Recording) -> pd.DataFrame:
    found = recording.preferences()
    label = found["attribute"] + ": " + found["label"]
    p = found[["q", "rank_q"]].min(axis=1)
    return _table("preference", found["layer"], label=label, effect=found["lift"], p=p, tokens=recording.info.rows)


def _table(kind: str, layer: pd.Series, **columns: object) -> pd.DataFrame:
    """Rows of one kind, with -1 or an empty label where there is none."""
    blank: dict[str, object] = {"kind": kind, "entry": -1, "other": -1, "label": ""}
    values = {name: value.to_numpy() if isinstance(value, pd.Series) else value for name, value in columns.items()}
    return pd.DataFrame({"layer": layer.to_numpy(), **blank, **values})
