"""Edit a fact by typing: its sentences name another object, and nothing is trained.

    result = edit_sentences(run, facts, count=100)       # the measures of ``causal/edit.py``

Every sentence of the bank that states the fact and names its object names the new one instead. One that states it in
other words becomes the plain statement of the new fact, so that none is left that says the old one.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd

from memscope.base.errors import InputError
from memscope.base.work import watched
from memscope.causal.edit import Edit, EditResult, edit_rows, plan_edits, probabilities, summarise
from memscope.run.checkpoint import LoadedRun
from memscope.run.text_bank import typed_sentences
from memscope.text.fact_files import Fact
from memscope.text_bank.bank import SentenceBank
from memscope.text_bank.stating import stating_entries


@contextmanager
def typed(run: LoadedRun, changes: Mapping[int, str]) -> Iterator[None]:
    """Let sentences of the bank, counted from 0, read otherwise while a block runs; words are indexed anew.

    Raises:
        InputError: the model has no text layer, the bank has no such sentence, or a text is empty.
    """
    if run.model.text_bank is None:
        raise InputError(f"{run.path}: no layer reads sentences; train with block: text")
    with typed_sentences(run.model, run.tokenizer, changes):
        yield


def edit_sentences(run: LoadedRun, facts: Sequence[Fact], count: int = 100, seed: int = 0) -> EditResult:
    """Edit ``count`` facts that the bank states, drawn at random, each alone and undone before the next.

    Raises:
        InputError: the model has no text layer, or no sentence states one of the facts.
    """
    if run.model.text_bank is None:
        raise InputError(f"{run.path}: no layer reads sentences; train with block: text")
    bank = run.model.text_bank.sentences
    stated = [fact for fact, own in zip(facts, stating_entries(facts, bank), strict=True) if len(own)]
    if not stated:
        raise InputError(f"{run.path}: no sentence of the bank states one of these facts")
    frames = []
    for number, edit in enumerate(watched(plan_edits(run, stated, count, seed), "editing", "facts")):
        changes = _typing(edit, bank)
        before = probabilities(run, edit)
        with typed(run, changes):
            after = probabilities(run, edit)
        frames.append(edit_rows(run, edit, before, after).assign(edit=number, entry=min(changes)))
    rows = pd.concat(frames, ignore_index=True)
    return EditResult(rows, {"method": "text", "edits": len(frames), **summarise(rows, seed)})


def _typing(edit: Edit, bank: SentenceBank) -> dict[int, str]:
    """What a person would type: the sentences that state a fact, with its new object."""
    fact, [own] = edit.fact, stating_entries([edit.fact], bank)
    word = re.compile(rf"(?<!\w){re.escape(fact.object)}(?!\w)")
    texts = {int(entry): bank.sentences[entry].text for entry in np.asarray(own)}
    statement = fact.template.replace("[X]", fact.subject).replace("[Y]", edit.new_object)
    return {
        entry: word.sub(lambda _: edit.new_object, text) if word.search(text) else statement
        for entry, text in texts.items()
    }
