"""Tokens become the words of the text that they are in."""

from itertools import groupby

import numpy as np
import pytest

from memscope.census.firing.row_words import LONGEST, words_of_rows
from memscope.text.tokenizer import Tokenizer
from tests.conftest import make_sentences
from tests.synthetic import SPECIAL, write_tokenizer

SOME = (" Ada", " was", " bor", "n", ".", " The", "re", "(", " (", "1984", " a", " x", "-", "ray", "\n", "é", "3")
TEXTS = (*SPECIAL, *SOME)
NUMBER = {text: number for number, text in enumerate(TEXTS)}


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    write_tokenizer(path, TEXTS)
    return Tokenizer.load(path)


def words_by_row(documents: list[list[str]], tokenizer: Tokenizer) -> list[str | None]:
    """The word that every token is in, of documents of tokens written as texts."""
    tokens = np.array([NUMBER[text] for document in documents for text in document], np.int32)
    lengths = [len(document) for document in documents]
    words = words_of_rows(tokens, np.cumsum([0, *lengths[:-1]]), tokenizer)
    return [words.texts[word] if word >= 0 else None for word in words.of_row]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (["<s>", " Ada", " was", " bor", "n", "."], [None, "Ada", "was", "born", "born", None]),
        (["<s>", "re", " The", "re", "</s>"], [None, "re", "There", "There", None]),
        (["<s>", " The", ".", "re"], [None, "The", None, "re"]),  # a word starts after punctuation
        (["<s>", " (", "re", "n", "("], [None, "ren", "ren", "ren", None]),  # and may stand behind an open one
        (["<s>", "\n", "re", " The"], [None, "re", "re", "The"]),  # white space belongs to what follows
        (["<s>", " a", "1984"], [None, "a1984", "a1984"]),
        (["<s>", "1984", " a", " x"], [None, None, None, None]),  # numbers and single letters are no words
        (["<s>", " x", "-", "ray"], [None, None, None, "ray"]),
        (["<s>", "3", "re", "é"], [None, "3reé", "3reé", "3reé"]),
        (["<s>", "<pad>", "re"], [None, None, "re"]),
    ],
)
def test_tokens_are_joined_to_words(by_hand: Tokenizer, document: list[str], expected: list[str | None]) -> None:
    assert words_by_row([document], by_hand) == expected


def test_a_word_ends_with_its_document(by_hand: Tokenizer) -> None:
    found = words_by_row([["<s>", " bor"], ["n", "re"], ["re"]], by_hand)
    assert found == [None, "bor", None, "re", "re"]  # the first token of a document is bos, whatever it looks like


def test_equal_words_of_different_tokens_are_one(by_hand: Tokenizer) -> None:
    tokens = np.array([NUMBER[text] for text in ["<s>", "re", " (", "re", ".", "re", " The"]], np.int32)
    words = words_of_rows(tokens, np.array([0]), by_hand)
    assert words.texts == ["re", "The"]
    assert words.of_row.tolist() == [-1, 0, 0, 0, -1, 0, 1]
    assert words.share.tolist() == pytest.approx([0.8, 0.2])  # of the five rows that are in a word


def test_a_text_without_words(by_hand: Tokenizer) -> None:
    words = words_of_rows(np.array([NUMBER["<s>"], NUMBER["."]], np.int32), np.array([0]), by_hand)
    assert (words.of_row.tolist(), words.texts) == ([-1, -1], [])
    assert len(words.share) == 1


PLAIN = [" ".join(make_sentences(4, seed)).replace(" .", "").replace(" ,", "") for seed in range(6)]
HARD = ["naïve café größe", "Über die Straße", "日本 東京 漢字", "emoji 🎉🎉x done", "snake_case"]


def words_in_order(documents: list[str], vocab: int) -> list[str]:
    """Words of texts, as a byte-level tokenizer that knows ``PLAIN`` cuts them; repeats side by side are one."""
    tokenizer = Tokenizer.train(PLAIN, vocab)
    ids = [[tokenizer.bos, *tokenizer.encode(text), tokenizer.eos] for text in documents]
    tokens = np.concatenate(ids).astype(np.int32)
    words = words_of_rows(tokens, np.cumsum([0, *map(len, ids[:-1])]), tokenizer)
    assert (words.of_row[np.isin(tokens, [tokenizer.bos, tokenizer.eos])] == -1).all()
    return [words.texts[word] for word, _ in groupby(words.of_row) if word >= 0]


@pytest.mark.parametrize("vocab", [300, 330])
def test_words_are_what_stands_between_spaces_however_they_are_cut_into_tokens(vocab: int) -> None:
    expected = [word for text in PLAIN for word in text.split() if len(word) > 1]  # all but "a"
    assert words_in_order(PLAIN, vocab) == [word for word, _ in groupby(expected)]


def test_characters_of_several_tokens_stay_whole() -> None:
    assert words_in_order(HARD, 260) == [
        *("naïve", "café", "größe", "Über", "die", "Straße", "日本", "東京", "漢字", "emoji", "done", "snake", "case")
    ]


@pytest.mark.parametrize("longer", [0, 1])
def test_in_a_longer_run_than_a_word_has_every_token_is_one(by_hand: Tokenizer, longer: int) -> None:
    # A script without spaces would make one word of a whole sentence.
    run = [" The", *["re"] * (LONGEST - 1 + longer)]
    found = words_by_row([["<s>", *run, " was"]], by_hand)
    together = "The" + "re" * (LONGEST - 1)
    assert found == [None, *([together] * LONGEST if not longer else ["The", *["re"] * LONGEST]), "was"]
