"""Words in token ids, the search by words and shared word sequences, against plain Python over the text itself."""

import math
import re
from collections import Counter

import numpy as np
import pytest

from memscope.text.sentences import Sentence
from memscope.text.tokenizer import Tokenizer
from memscope.text_bank.bank import SentenceBank
from memscope.text_bank.lexical import LexicalIndex
from memscope.text_bank.overlap import Overlaps
from memscope.text_bank.words import WordReader

SENTENCES = [
    "Ada Holm was a painter from Aston, and the painter of the town.",
    "Bo Lind, an engineer, lived in Berrow for forty years.",
    "Cora Wells and Ada Holm met in Berrow.",
    "The Aston canal was dug by an engineer of the town in forty years.",
    "Ünder Größe: Zoë's café, 1984!",
    "Farley is a town.",
]
K1, B = 1.2, 0.75


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(iter(SENTENCES * 3), 330)  # most words take several tokens


@pytest.fixture(scope="module")
def bank(tokenizer: Tokenizer) -> SentenceBank:
    return SentenceBank.of([Sentence(text, ()) for text in SENTENCES], tokenizer.encode_batch(SENTENCES))


def plain_words(text: str) -> list[str]:
    """Runs of letters and digits; bytes beyond ASCII count as letters and keep their case."""
    raw = text.encode()
    return [word.decode(errors="replace").lower() for word in re.findall(rb"[0-9A-Za-z\x80-\xff]+", raw)]


def plain_scores(query: list[str]) -> np.ndarray:
    """BM25 with squared rarity, as a share of what one mean entry with all words would have."""
    documents = [Counter(plain_words(text)) for text in SENTENCES]
    mean = sum(map(len, map(plain_words, SENTENCES))) / len(SENTENCES)
    scores, total = np.zeros(len(SENTENCES)), 0.0
    for word in set(query):
        having = sum(word in document for document in documents)
        if not having:
            continue
        weight = math.log(1 + (len(SENTENCES) - having + 0.5) / (having + 0.5)) ** 2
        total += weight
        for entry, document in enumerate(documents):
            count, length = document[word], sum(document.values())
            scores[entry] += weight * count * (K1 + 1) / (count + K1 * (1 - B + B * length / mean))
    return scores / total if total else scores


@pytest.mark.parametrize("text", [*SENTENCES, "a-b  c_d\n1984x", "", "ÀÉ naïve co-op's"])
def test_words_are_those_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    ends = WordReader(tokenizer).read(np.array(tokenizer.encode(text), np.int64))
    found = ends.words[ends.whole]
    expected = plain_words(text)
    assert len(found) == len(expected)
    assert len(set(found.tolist())) == len(set(expected))
    assert int(ends.begins.sum()) >= 0
    same = [
        (a == b) == (c == d) for a, c in zip(found, expected, strict=True) for b, d in zip(found, expected, strict=True)
    ]
    assert all(same)


def test_a_special_token_ends_a_word_and_spells_none(tokenizer: Tokenizer) -> None:
    [town] = [tokenizer.encode("town")]
    ends = WordReader(tokenizer).read(np.array([tokenizer.bos, *town, tokenizer.eos, *town], np.int64))
    whole = ends.words[ends.whole]
    assert len(whole) == 2 and whole[0] == whole[1]


def test_scores_are_those_of_bm25_at_every_token(tokenizer: Tokenizer, bank: SentenceBank) -> None:
    index = LexicalIndex.build(bank.ids, bank.lengths, WordReader(tokenizer), tokenizer.bos, window=32)
    text = "The painter Ada Holm was born in Aston, as was an unknown engineer of the town"
    ids = tokenizer.encode(text)
    found = index.search(np.array([[tokenizer.bos, *ids]]), k=6)
    for pos in range(len(ids) + 1):
        query = plain_words(tokenizer.decode(ids[:pos]))
        expected = plain_scores(query)
        entries, scores = found.entries[0, pos], found.scores[0, pos]
        there = entries >= 0
        assert set(entries[there]) == set(np.flatnonzero(expected > 0)), pos
        np.testing.assert_allclose(scores[there], expected[entries[there]], rtol=1e-5)
        assert (np.diff(scores[there]) <= 1e-7).all() and (scores[~there] == 0).all()


def test_only_the_last_words_are_looked_for_and_bos_forgets(tokenizer: Tokenizer, bank: SentenceBank) -> None:
    index = LexicalIndex.build(bank.ids, bank.lengths, WordReader(tokenizer), tokenizer.bos, window=3)
    ids = tokenizer.encode("Ada Holm met in Berrow an engineer")
    found = index.search(np.array([[tokenizer.bos, *ids, tokenizer.bos]]), k=6)
    last = found.entries[0, len(ids)]
    expected = plain_scores(["berrow", "an", "engineer"])
    assert set(last[last >= 0]) == set(np.flatnonzero(expected > 0))
    np.testing.assert_allclose(found.scores[0, len(ids)][last >= 0], expected[last[last >= 0]], rtol=1e-5)
    assert (found.entries[0, -1] == -1).all()


def test_blocked_entries_are_not_found_in_their_row(tokenizer: Tokenizer, bank: SentenceBank) -> None:
    index = LexicalIndex.build(bank.ids, bank.lengths, WordReader(tokenizer), tokenizer.bos, window=32)
    row = [tokenizer.bos, *tokenizer.encode("Ada Holm in Berrow")]
    found = index.search(np.array([row, row]), k=4, blocked=[np.array([2]), np.empty(0, np.int64)])
    assert 2 not in found.entries[0] and 2 in found.entries[1, -1]


def test_a_sentence_that_a_text_contains_is_told(tokenizer: Tokenizer, bank: SentenceBank) -> None:
    overlaps = Overlaps(bank.ids, bank.lengths, WordReader(tokenizer), n=5)
    quoting = "It says: " + SENTENCES[3].upper() + " And more."
    assert overlaps.find(np.array(tokenizer.encode(quoting))).tolist() == [3]
    apart = "The Aston canal was, an engineer of, in forty years"
    assert overlaps.find(np.array(tokenizer.encode(apart))).tolist() == []
    assert overlaps.find(np.array(tokenizer.encode(" ".join(SENTENCES[:2])))).tolist() == [0, 1]
