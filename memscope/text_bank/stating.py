"""Which sentences of a bank state a fact, and whose facts training must not state."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from memscope.text.fact_files import Fact
from memscope.text.sentences import Sentence, Triple
from memscope.text_bank.bank import SentenceBank


def is_held_out(subject: str, share: float) -> bool:
    """Whether a subject is among the held-out ones: the first 32 bits of its SHA-256, as a share of all."""
    return int(hashlib.sha256(subject.encode()).hexdigest()[:8], 16) < share * 2**32


def asks_nothing(sentence: Sentence, share: float) -> bool:
    """Whether a sentence is held out: one of its subjects is, or where it has none the sentence itself."""
    names = {triple.subject for triple in sentence.triples if triple.subject} or {sentence.text}
    return any(is_held_out(name, share) for name in names)


def stating_entries(facts: Sequence[Fact], bank: SentenceBank) -> list[np.ndarray]:
    """For every fact the entries of a bank whose sentence states it, rising; see ``match_triples``."""
    return match_triples(facts, (sentence.triples for sentence in bank.sentences))


def match_triples(facts: Sequence[Fact], stated: Iterable[Iterable[Triple]]) -> list[np.ndarray]:
    """For every fact the entries that state it, rising: the same uuid, or the same triple if one has none.

    Args:
        facts: the facts.
        stated: the triples of every entry.
    """
    by_uuid: dict[str, set[int]] = defaultdict(set)
    by_triple: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for entry, triples in enumerate(stated):
        for triple in triples:
            by_triple[triple.subject, triple.predicate, triple.object].add(entry)
            if triple.uuid:
                by_uuid[triple.uuid].add(entry)
    found = [by_uuid.get(f.uuid) or by_triple.get((f.subject, f.predicate, f.object), set()) for f in facts]
    return [np.array(sorted(entries), np.int64) for entries in found]
