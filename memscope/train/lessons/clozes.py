"""Cloze statements made of the bank's own sentences, for training without a file of facts.

A piece of a sentence asks for the rare word that follows it there, and the sentence goes on to its end, so that nobody
learns to stop behind an answer. Some words of the piece are left out, so that it is no quotation; which sentence it is
of, its rare words tell (the inverse cloze task of REALM, arXiv 2002.08909, with the sentence left in the bank: here
reading it is the lesson). The sentence states what is asked.

The sentences of **held-out subjects**, or held-out sentences where none has a subject, ask nothing. ``asked_facts`` has
clozes of both kinds as facts, for ``memscope facts``.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from memscope.base.errors import InputError
from memscope.text.fact_files import Fact
from memscope.text_bank.bank import SentenceBank
from memscope.text_bank.stating import asks_nothing
from memscope.train.lessons.statements import Stated

_PER_SENTENCE = 4
"""Most clozes of one sentence."""
_LEAST_BEFORE, _MOST_BEFORE = 3, 12
"""Words of a piece before the one that it asks for."""
_KEPT_WHOLE = 2
"""Last words of a piece, of which none is left out."""
_LEAST_ASKED = 5
"""Words of the question of a fact to ask."""
_LEFT_OUT = 0.3
"""Share of the others that is left out."""
_WORD = re.compile(r"\w{3,}")


def make_clozes(bank: SentenceBank, held_out: float, seed: int) -> list[Stated]:
    """Up to four clozes of every sentence, each asking for another word.

    Args:
        bank: the sentences.
        held_out: share of subjects, or sentences, that are held out.
        seed: of what is asked and left out.

    Raises:
        InputError: no sentence gives one.
    """
    entries = [entry for entry, one in enumerate(bank.sentences) if not asks_nothing(one, held_out)]
    if not (found := list(_clozes(bank, entries, seed))):
        raise InputError("no sentence of the bank has a rare word behind three others: set statement_share=0")
    return found


def asked_facts(bank: SentenceBank, held_out: float, seed: int, most: int) -> list[Fact]:
    """Clozes that ask for a name or a number, as facts with the uuids of their sentences: half held out, half taught.

    Args:
        bank: the sentences; those without a uuid give none, since nobody could tell which sentence states them.
        held_out: share of subjects, or sentences, that are held out.
        seed: the taught half is some of what ``make_clozes`` makes with it.
        most: facts in all.
    """
    asked: list[Fact] = []
    for out in (True, False):
        entries = [entry for entry, one in enumerate(bank.sentences) if asks_nothing(one, held_out) == out]
        facts = []
        for fact, [entry] in _clozes(bank, entries, seed):
            uuid = next((triple.uuid for triple in bank.sentences[entry].triples if triple.uuid), "")
            if uuid and fact.subject and fact.predicate != "word" and len(fact.question.split()) >= _LEAST_ASKED:
                facts.append(fact._replace(uuid=uuid))
        drawn = np.random.default_rng(seed).permutation(len(facts))[: most // 2]
        asked += [facts[number] for number in sorted(drawn)]
    return asked


def _clozes(bank: SentenceBank, entries: Iterable[int], seed: int) -> Iterator[Stated]:
    """Up to four clozes of each of some sentences."""
    chance = np.random.default_rng(seed)
    texts = [[word.lower() for word in re.findall(r"\w+", sentence.text)] for sentence in bank.sentences]
    having = Counter(word for words in texts for word in set(words))
    rarity = {word: np.log(len(texts) / count) ** 2 for word, count in having.items()}
    for entry in entries:
        for fact in _clozes_of(bank.sentences[entry].text, entry, rarity, chance):
            yield Stated(fact, np.array([entry]))


def _clozes_of(text: str, entry: int, rarity: dict[str, float], chance: np.random.Generator) -> list[Fact]:
    words = text.split()
    bare = [_bare(word) for word in words]
    weights = np.array(
        [
            rarity.get(word.lower(), 0.0) if word and at >= _LEAST_BEFORE and bare.count(word) == 1 else 0.0
            for at, word in enumerate(bare)
        ]
    )
    if weights.sum() == 0 or re.search(r"\[[XY]\]", text):
        return []
    n = min(_PER_SENTENCE, int(np.count_nonzero(weights)))
    asked = chance.choice(len(words), n, replace=False, p=weights / weights.sum())
    return [_cloze(words, bare, int(at), entry, rarity, chance) for at in asked]


def _cloze(
    words: list[str], bare: list[str], at: int, entry: int, rarity: dict[str, float], chance: np.random.Generator
) -> Fact:
    first = max(0, at - int(chance.integers(_LEAST_BEFORE, _MOST_BEFORE + 1)))
    names = max(range(first, at), key=lambda place: rarity.get(bare[place].lower(), 0.0))
    kept = [
        place
        for place in range(first, at)
        if place == names or place >= at - _KEPT_WHOLE or chance.random() >= _LEFT_OUT
    ]
    before, _, behind = words[at].partition(bare[at])
    if bare[names]:
        words = [*words[:names], words[names].replace(bare[names], "[X]", 1), *words[names + 1 :]]
    question = " ".join(words[place] for place in kept)
    kind = "name" if bare[at][0].isupper() else "number" if bare[at].isdigit() else "word"
    template = f"{question} {before}[Y]{' '.join([behind, *words[at + 1 :]])}"
    return Fact(f"{entry}:{at}", bare[names], kind, bare[at], template)


def _bare(word: str) -> str:
    """The letters and digits of a word, if it is three or more of them and marks around them."""
    found = _WORD.findall(word)
    return found[0] if len(found) == 1 else ""
