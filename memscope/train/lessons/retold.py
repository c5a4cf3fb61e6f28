"""Facts told in the words of the sentences that state them, beside their templates.

A template asks in few and always the same words. A sentence asks in words of its own: those of the subject, and the
last ones before the object. Some are left out of every second question, so that it is no quotation. The sentence then
goes on to its end. Those of **held-out subjects** tell nothing.
"""

import re
from collections.abc import Sequence

import numpy as np

from memscope.text.fact_files import Fact
from memscope.text_bank.bank import SentenceBank
from memscope.text_bank.stating import is_held_out
from memscope.train.lessons.statements import Stated, whole

_LEAST_BEFORE, _MOST_BEFORE = 3, 12
"""Words of a sentence before the object that a question has at least, and at most without the subject's."""
_KEPT_WHOLE = 2
"""Last words of a question, of which none is left out."""
_LEFT_OUT = 0.3
"""Share of the others that is left out of every second question."""


def retell(taught: Sequence[Stated], bank: SentenceBank, held_out: float, seed: int) -> list[Stated]:
    """Every fact in the words of each sentence that names its object once, behind three others.

    Args:
        taught: the facts, with the sentences that state them.
        bank: the sentences.
        held_out: share of subjects that are held out.
        seed: of what is left out.
    """
    chance = np.random.default_rng(seed)
    aside = [any(is_held_out(triple.subject, held_out) for triple in sentence.triples) for sentence in bank.sentences]
    told: list[Stated] = []
    for fact, entries in taught:
        for entry in entries:
            template = None if aside[entry] else _template(bank.sentences[entry].text, fact, chance)
            if template is not None:
                told.append(Stated(fact._replace(template=template), entries))
    return told


def _template(text: str, fact: Fact, chance: np.random.Generator) -> str | None:
    """A sentence from some words before its object, which is ``[Y]``; none if it is not named once, or too early."""
    parts = whole(fact.object).split(text)
    if len(parts) != 2 or re.search(r"\[[XY]\]", text) or not parts[0].endswith(" "):
        return None
    words, names = parts[0].split(), set(fact.subject.split())
    if len(words) < _LEAST_BEFORE:
        return None
    left_out = _LEFT_OUT if chance.random() < 0.5 else 0.0
    kept = [
        word
        for behind, word in zip(range(len(words), 0, -1), words, strict=True)
        if word in names or behind <= _KEPT_WHOLE or (behind <= _MOST_BEFORE and chance.random() >= left_out)
    ]
    return f"{' '.join(kept)} [Y]{parts[1]}"
