"""Read sentences with triples, from which the entries of a bank can start.

Shapes of rows, in any of the files that ``text/inputs.py`` reads:

- ``{"target": [{"sentence", "uuid", "subject", "predicate", "object"}, ...]}``, the rows of one item sharing one
  sentence: T-REx as the founding experiment has it; or one such row by itself;
- a document of the T-REx dump (``text``, ``sentences_boundaries``, ``triples``; Elsahar et al., LREC 2018): its
  sentences that state a triple, with names as they stand in the text and relations as Wikidata numbers them;
- a text: one sentence a line of a plain file, or in a JSON list.
"""

import random
from pathlib import Path
from typing import Any, NamedTuple

from memscope.base.errors import InputError
from memscope.text.corpus import clean_text
from memscope.text.inputs import read_rows


class Triple(NamedTuple):
    """A Wikidata statement that a sentence expresses; parts that are unknown are empty."""

    uuid: str
    subject: str
    predicate: str
    object: str


class Sentence(NamedTuple):
    """A sentence and the triples that it states."""

    text: str
    triples: tuple[Triple, ...]


def read_sentences(path: Path) -> list[Sentence]:
    """Read all sentences in file order; equal sentences become one that has the triples of all.

    A row without a sentence is skipped (``inputs.read_rows``).

    Raises:
        InputError: see ``inputs.read_rows``; or the file has no sentences.
    """
    merged: dict[str, dict[Triple, None]] = {}
    for sentences in read_rows(path, "sentence", _parse, plain=True):
        for sentence in sentences:
            merged.setdefault(sentence.text, {}).update(dict.fromkeys(sentence.triples))
    if not merged:
        raise InputError(f"{path}: no sentences in this file")
    return [Sentence(text, tuple(triples)) for text, triples in merged.items()]


def choose_sentences(sentences: list[Sentence], count: int, seed: int) -> list[Sentence]:
    """At most ``count`` of them, in a seeded random order.

    Files are sorted by relation or article: a prefix would be one-sided, and file order would give neighbouring
    entries, which share half keys under a product gate, to one topic.
    """
    return random.Random(seed).sample(sentences, min(count, len(sentences)))


def _parse(item: Any, where: str) -> list[Sentence]:
    """The sentences of a row of any of the shapes."""
    if isinstance(item, str):
        return [Sentence(clean_text(item.strip()), ())] if item.strip() else []
    if isinstance(item, dict) and isinstance(item.get("text"), str):
        if isinstance(item.get("triples"), list):
            return _of_document(item, where)
        raise InputError(f'{where}: a document of a corpus ("text"), not a sentence; write one sentence a line')
    rows = [item] if isinstance(item, dict) and "sentence" in item else _target(item, where)
    sentences = []
    for row in rows:
        text = row.get("sentence")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f'{where}: a row has no "sentence" text')
        triple = Triple(*(clean_text(str(row.get(key) or "")) for key in Triple._fields))
        sentences.append(Sentence(clean_text(text.strip()), (triple,) if any(triple) else ()))
    return sentences


def _target(item: Any, where: str) -> list[dict[str, Any]]:
    rows = item.get("target") if isinstance(item, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f'{where}: expected {{"target": [row, ...]}} or {{"sentence": ...}}')
    return rows


def _of_document(document: dict[str, Any], where: str) -> list[Sentence]:
    """The sentences of a T-REx document that state triples, with these triples."""
    stated: dict[int, list[Triple]] = {}
    try:
        for triple in document["triples"]:
            subject, predicate, object_ = (triple[part] for part in ("subject", "predicate", "object"))
            relation = predicate.get("surfaceform") or str(predicate["uri"]).rpartition("/")[2]
            names = (str(subject["surfaceform"] or ""), relation, str(object_["surfaceform"] or ""))
            stated.setdefault(int(triple["sentence_id"]), []).append(Triple("", *map(clean_text, names)))
        bounds = document["sentences_boundaries"]
        texts = {number: clean_text(document["text"][slice(*bounds[number])].strip()) for number in sorted(stated)}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(f"{where}: not a document as T-REx has them ({error!r})") from error
    return [Sentence(text, tuple(stated[number])) for number, text in texts.items() if text]
