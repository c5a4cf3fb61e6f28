"""Cloze statements of facts that sentences of the bank state, for training.

A subject is **held out** by a hash of its name: no statement is made of its facts, though sentences about it stand in
the bank. So a model can be asked about facts that it could only have read.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from memscope.base.errors import InputError
from memscope.text.fact_files import Fact
from memscope.text.tokenizer import Tokenizer
from memscope.text_bank.bank import SentenceBank
from memscope.text_bank.stating import is_held_out, stating_entries

_DRAWN_AT_ONCE = 64
"""Statements that are encoded together."""


class Stated(NamedTuple):
    """A fact that sentences state."""

    fact: Fact
    entries: np.ndarray
    """Their numbers in the bank."""


def taught_facts(facts: Sequence[Fact], bank: SentenceBank, held_out: float) -> list[Stated]:
    """The facts that some sentence states, but for those of held-out subjects.

    Args:
        facts: the facts.
        bank: the sentences.
        held_out: share of subjects that are held out.

    Raises:
        InputError: no fact is left.
    """
    taught = [
        Stated(fact, entries)
        for fact, entries in zip(facts, stating_entries(facts, bank), strict=True)
        if len(entries) and not is_held_out(fact.subject, held_out)
    ]
    if not taught:
        raise InputError(
            f"none of {len(facts)} facts is stated by a sentence of the bank and of a subject that is not held "
            "out; are facts_path and sentences_path of the same collection?"
        )
    return taught


class Statements(NamedTuple):
    """Windows of statements."""

    tokens: np.ndarray
    """int64 ``[row, window + 1]``; every statement stands between bos and eos."""
    rows: list[int]
    positions: list[int]
    """Where facts are asked: the last token before the object."""
    stating: list[np.ndarray]
    """Entries whose sentences state each."""
    swapped: dict[int, list[int]]
    """Token ids of the sentences in which an object was replaced."""


class StatementMaker:
    """Makes windows of statements; what it makes is a function of its arguments and of the seed it is called with.

    Args:
        taught: the facts, one or more.
        bank: the sentences.
        tokenizer: of the model.
        swap: share of statements whose object is replaced.
        retold: the same facts in other words.
        retold_share: share of statements that are drawn of these.
    """

    def __init__(
        self,
        taught: Sequence[Stated],
        bank: SentenceBank,
        tokenizer: Tokenizer,
        swap: float,
        retold: Sequence[Stated] = (),
        retold_share: float = 0.0,
    ):
        self.facts = [fact for fact, _ in taught]
        self._stated, self._plain = [*taught, *retold], len(taught)
        self._bank, self._tokenizer, self._swap = bank, tokenizer, swap
        self._retold_share = retold_share if retold else 0.0
        self._objects: dict[str, list[str]] = defaultdict(list)
        for fact in self.facts:
            self._objects[fact.predicate].append(fact.object)

    def windows(self, seed: Sequence[int], rows: int, length: int) -> Statements:
        """``rows`` windows of ``length`` tokens; statements that a window cuts have no question."""
        chance, step = np.random.default_rng(seed), _Step({}, {}, set())
        drawn: list[tuple[list[int], list[int], np.ndarray]] = []
        tokens = np.zeros((rows, length), np.int64)
        made = Statements(tokens, [], [], [], {})
        for row in range(rows):
            end = 0
            while end < length:
                if not drawn:
                    drawn = self._draw_some(chance, step)
                question, rest, entries = drawn.pop()
                statement = [*self._tokenizer.opening, *question, *rest, *self._tokenizer.closing]
                asked = end + len(self._tokenizer.opening) + len(question) - 1
                if asked < length - 1:
                    made.rows.append(row)
                    made.positions.append(asked)
                    made.stating.append(entries)
                part = statement[: length - end]
                tokens[row, end : end + len(part)] = part
                end += len(part)
        ids = self._tokenizer.encode_batch(list(step.texts.values()))
        made.swapped.update(zip(step.texts, ids, strict=True))
        return made

    def _draw_some(self, chance: np.random.Generator, step: "_Step") -> list[tuple[list[int], list[int], np.ndarray]]:
        """Some statements as ids of the question and of what follows, with the entries that state them."""
        drawn = [self._draw(chance, step) for _ in range(_DRAWN_AT_ONCE)]
        encoded = self._tokenizer.encode_pairs([(fact.question, self._rest(fact)) for fact, _ in drawn])
        return [(*ids, entries) for ids, (_, entries) in zip(encoded, drawn, strict=True)]

    def _draw(self, chance: np.random.Generator, step: "_Step") -> tuple[Fact, np.ndarray]:
        """A fact; sometimes with another object, which then stands in its sentences too."""
        while True:
            number = self._number(chance)
            fact, entries = self._stated[number]
            if number in step.told:  # as it was told before
                return step.told[number], entries
            swaps = chance.random() < self._swap
            before = {int(entry): self._bank.sentences[entry].text for entry in entries}
            now = {entry: step.texts.get(entry, text) for entry, text in before.items()}
            if not any(_lost(name, before, now) for name in (fact.subject, fact.object)):
                break
        may_change = swaps and step.relied.isdisjoint(before)
        naming = [entry for entry, text in now.items() if may_change and whole(fact.object).search(text)]
        if naming:
            others = self._objects[fact.predicate]
            other = others[int(chance.integers(len(others)))]
            step.texts.update({entry: whole(fact.object).sub(lambda _: other, now[entry]) for entry in naming})
            fact = fact._replace(object=other)
        step.relied.update(before)
        step.told[number] = fact
        return fact, entries

    def _number(self, chance: np.random.Generator) -> int:
        """Which statement is told next."""
        if self._retold_share and chance.random() < self._retold_share:
            return int(chance.integers(self._plain, len(self._stated)))
        return int(chance.integers(self._plain))

    @staticmethod
    def _rest(fact: Fact) -> str:
        """What follows the question."""
        return fact.answer + fact.template.partition("[Y]")[2].replace("[X]", fact.subject)


class _Step(NamedTuple):
    """What a step tells: each fact in one way, and no sentence that a statement relies on is changed after it."""

    texts: dict[int, str]
    """Sentences in which an object was replaced."""
    told: dict[int, Fact]
    relied: set[int]
    """Entries that state what was told."""


@cache
def whole(name: str) -> re.Pattern[str]:
    """A name as whole words."""
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")


def _lost(name: str, before: dict[int, str], now: dict[int, str]) -> bool:
    """Whether a sentence named something before an object was replaced in it, for the sake of another fact."""
    changed = [(text, now[entry]) for entry, text in before.items() if now[entry] != text]
    return any(whole(name).search(text) and not whole(name).search(after) for text, after in changed)
