"""A change of what entries do, and its effects, in plain values: naming them loads no torch."""

from typing import Literal, NamedTuple

import pandas as pd

from memscope.stats.jackknife import Interval

Kind = Literal["ablate", "zero", "force", "swap", "rewrite", "scale"]
NEEDS = {"ablate": None, "zero": None, "force": 1, "swap": 2, "rewrite": 1, "scale": 0}
"""Number of entries that each kind of change takes; none = one or more."""


class Change(NamedTuple):
    """An intervention in plain values."""

    kind: Kind
    entries: tuple[int, ...] = ()
    layers: tuple[int, ...] | None = None
    """Layers that select; none = all."""
    amount: float = 0.0
    """Score of ``force``, factor of ``scale``."""
    sentence: str = ""
    """Sentence of ``rewrite``, which needs a run of memscope: what an entry starts from, or what a sentence reads."""


class Changed(NamedTuple):
    """Effects of a change on recorded text."""

    loss: Interval
    """Mean change per token in nats, over the tokens that were read."""
    tokens: int
    contexts: pd.DataFrame
    """The tokens that changed most, see ``effects.most_changed``."""
