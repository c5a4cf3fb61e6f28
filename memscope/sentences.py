"""Sentences with triples: what the entries of a bank can start from.

Two file shapes: the T-REx JSON of the founding experiment (a list of ``{"target": [{"sentence", "uuid", "subject",
"predicate", "object"}, ...]}``, the rows of one item sharing one sentence), and plain text, one sentence a line.
"""

import random
from pathlib import Path
from typing import Any, NamedTuple

from memscope.corpus import clean_text
from memscope.errors import InputError
from memscope.files import read_json


class Triple(NamedTuple):
    """A Wikidata statement that a sentence expresses; parts that are unknown are empty."""

    uuid: str
    subject: str
    predicate: str
    object: str


class Sentence(NamedTuple):
    """A sentence and what it states."""

    text: str
    triples: tuple[Triple, ...]


def read_sentences(path: Path) -> list[Sentence]:
    """Read all sentences in file order; equal sentences become one that has the triples of all.

    Raises:
        InputError: missing, empty, binary, truncated or wrong-shape file, with the item or line.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such sentence file")
    rows = _read_trex(path) if path.suffix == ".json" else _read_lines(path)
    merged: dict[str, dict[Triple, None]] = {}
    for sentence in rows:
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


def _read_trex(path: Path) -> list[Sentence]:
    items = read_json(path)
    if not isinstance(items, list):
        raise InputError(f'{path}: expected a list of {{"target": [...]}} items, got {type(items).__name__}')
    return [sentence for number, item in enumerate(items) for sentence in _parse_item(item, f"{path}: item {number}")]


def _parse_item(item: Any, where: str) -> list[Sentence]:
    rows = item.get("target") if isinstance(item, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f'{where}: expected {{"target": [row, ...]}}')
    sentences = []
    for row in rows:
        text = row.get("sentence")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f'{where}: a row has no "sentence" text')
        triple = Triple(*(clean_text(str(row.get(key) or "")) for key in Triple._fields))
        sentences.append(Sentence(clean_text(text.strip()), (triple,)))
    return sentences


def _read_lines(path: Path) -> list[Sentence]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text; expected one sentence a line or T-REx .json") from error
    if any("\0" in line for line in lines):
        raise InputError(f"{path}: a binary file; expected one sentence a line or T-REx .json")
    return [Sentence(line.strip(), ()) for line in lines if line.strip()]
