"""Edit a fact by typing: its sentences name another object, and nothing is trained.

    result = edit_sentences(run, facts, count=100)       # the measures of ``causal/edit.py``

Every sentence of the bank that states the fact names the new object instead, and so does one that names its subject and
its object and says of nobody else that the object is theirs. One that states the fact in other words becomes the plain
statement of the new one, so that none is left that says the old one; one that does not name the subject in full has
the statement before it, so that the gate finds it by the name.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pandas as pd

from memscope.base.errors import InputError
from memscope.base.work import watched
from memscope.causal.edit import EditResult, edit_rows, plan_edits, probabilities, summarise
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
        changes = retyped(edit.fact, edit.new_object, bank)
        before = probabilities(run, edit)
        with typed(run, changes):
            after = probabilities(run, edit)
        frames.append(edit_rows(run, edit, before, after).assign(edit=number, entry=min(changes)))
    rows = pd.concat(frames, ignore_index=True)
    return EditResult(rows, {"method": "text", "edits": len(frames), **summarise(rows, seed)})


def retyped(fact: Fact, new_object: str, bank: SentenceBank) -> dict[int, str]:
    """What a person would type: the sentences that say a fact, with a new object, by entry."""
    [own] = stating_entries([fact], bank)
    statement = fact._replace(object=new_object).statement
    changes: dict[int, str] = {}
    for entry in own.tolist():
        renamed = _renamed(fact, new_object, bank.sentences[entry].text)
        if renamed is None:
            changes[entry] = statement
        else:
            changes[entry] = renamed if fact.subject in renamed else f"{statement} {renamed}"
    for entry, sentence in enumerate(bank.sentences):
        if entry in changes or fact.subject not in sentence.text:
            continue
        of_another = any(one.object == fact.object and one.subject != fact.subject for one in sentence.triples)
        renamed = None if of_another else _renamed(fact, new_object, sentence.text)
        if renamed:
            changes[entry] = renamed
    return changes


def _renamed(fact: Fact, new_object: str, text: str) -> str | None:
    """A text with another object, but where the word is part of the subject's name; none if it names no object."""
    subject, word = re.escape(fact.subject), re.escape(fact.object)
    names = re.compile(rf"(?<!\w)(?:(?P<subject>{subject})|(?P<object>{word}))(?!\w)")
    if not any(match["object"] for match in names.finditer(text)):
        return None
    return names.sub(lambda match: match["subject"] or new_object, text)
