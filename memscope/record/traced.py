"""What is asked of a model about a text, and what it answers, in plain values: naming them loads no torch."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from memscope.base.printable import brief
from memscope.base.words import visible
from memscope.notebook import markup
from memscope.recording.token_table import Trace


class TextTrace(NamedTuple):
    """Selections and predictions of a model on a text."""

    trace: Trace
    """Tokens and selections, as from a recording; the tokens that open a text come first."""
    predictions: pd.DataFrame
    """``pos rank text probability``: the most likely next tokens after every token."""
    slots: dict[int, np.ndarray]
    """Read weight of every slot, mean over read heads, float32 ``[token, K, L]``, of each layer whose entries have
    several; column ``k`` of the selections is the K axis."""

    def __repr__(self) -> str:
        return brief(self)

    def _repr_html_(self) -> str:
        likely = {
            pos: "next: " + ", ".join(f"{visible(row.text)} {row.probability:.1%}" for row in rows.itertuples())
            for pos, rows in self.predictions.groupby("pos")
        }
        return markup.card("Trace", self.trace.html(likely))


class Sampling(NamedTuple):
    """How a text is continued."""

    new_tokens: int = 40
    """Most tokens to write; the model stops earlier at a token that ends documents."""
    temperature: float = 0.8
    """0 takes the most likely token; above, the sample is a function of the seed."""
    seed: int = 0


class Continued(NamedTuple):
    """A text and how a model went on with it."""

    traced: TextTrace
    """Of the whole text; the entries of a token fired when it was read, and help to predict the next one."""
    prompt: int
    """Tokens of the text that was given: those of ``traced`` from here on are the model's."""
