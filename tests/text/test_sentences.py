"""What the entries of a bank can start from."""

import json
from pathlib import Path

import pytest

from memscope.base.errors import InputError
from memscope.text.sentences import Sentence, Triple, choose_sentences, read_sentences


def row(sentence: object, number: int = 0, **values: object) -> dict[str, object]:
    return {"sentence": sentence, "uuid": f"u{number}", "subject": "s", "predicate": "p", "object": "o", **values}


def write_trex(tmp_path: Path, items: object) -> Path:
    path = tmp_path / "sentences.json"
    path.write_text(json.dumps(items))
    return path


def test_trex_items_become_sentences_with_triples(tmp_path: Path) -> None:
    path = write_trex(tmp_path, [{"target": [row(" One .", 1), row("One .", 2)]}, {"target": [row("Two .", 3)]}])
    one, two = Triple("u1", "s", "p", "o"), Triple("u2", "s", "p", "o")
    assert read_sentences(path) == [
        Sentence("One .", (one, two)),
        Sentence("Two .", (Triple("u3", "s", "p", "o"),)),
    ]


def test_equal_sentences_become_one_with_all_their_triples(tmp_path: Path) -> None:
    path = write_trex(tmp_path, [{"target": [row("Same .", n)]} for n in (1, 2, 1)] + [{"target": [row("Other .")]}])
    same, other = read_sentences(path)
    assert [triple.uuid for triple in same.triples] == ["u1", "u2"]
    assert other.text == "Other ."


def test_parts_that_are_unknown_are_empty(tmp_path: Path) -> None:
    [sentence] = read_sentences(write_trex(tmp_path, [{"target": [{"sentence": "One .", "uuid": 7, "object": None}]}]))
    assert sentence.triples == (Triple("7", "", "", ""),)


def test_a_text_file_has_one_sentence_a_line(tmp_path: Path) -> None:
    path = tmp_path / "sentences.txt"
    path.write_bytes("First .\n\n  Zweiter Größe. \r\nFirst .\nstill\u2028one\x0cline".encode())
    assert [sentence.text for sentence in read_sentences(path)] == [
        "First .",
        "Zweiter Größe.",
        "still\u2028one\x0cline",
    ]
    assert all(sentence.triples == () for sentence in read_sentences(path))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"rows": []}, r'sentences\.json:1: expected \{"target"'),
        ([{"target": [row("One .")]}, {"rows": []}], 'item 1: expected {"target"'),
        ([5], 'item 0: expected {"target"'),
        ([{"target": ["One ."]}], "item 0: expected"),
        ([{"target": [row("One ."), row("")]}], 'item 0: a row has no "sentence" text'),
        ([{"target": [row(5)]}], 'item 0: a row has no "sentence" text'),
        ([], "no sentences in this file"),
    ],
)
def test_a_wrong_shape_is_refused_with_the_item(tmp_path: Path, items: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_sentences(write_trex(tmp_path, items))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.json", b'[{"target": [', "not valid JSON .* truncated"),
        ("s.json", b"\xff\xfe\x00", "UTF-16 text, not UTF-8"),
        ("s.txt", b"caf\xe9", "s.txt:1: not UTF-8 text"),
        ("s.txt", b"a\x00b", "a binary file"),
        ("s.txt", b"", "no sentences in this file"),
        ("s.txt", b" \n\n", "no sentences in this file"),
    ],
)
def test_what_is_not_a_sentence_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_sentences(tmp_path / name)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(InputError, match="no such sentence file"):
            read_sentences(path)


def test_half_a_surrogate_pair_is_no_traceback(tmp_path: Path) -> None:
    path = write_trex(tmp_path, [{"target": [row("half an emoji: \ud83d")]}])
    try:
        [sentence] = read_sentences(path)
        sentence.text.encode("utf-8")
    except InputError as error:
        assert "item 0" in str(error)


def test_chosen_sentences_are_a_seeded_sample_in_random_order() -> None:
    sentences = [Sentence(str(number), ()) for number in range(100)]
    chosen = choose_sentences(sentences, 20, seed=1)
    numbers = [int(sentence.text) for sentence in chosen]
    assert len(set(numbers)) == 20
    assert numbers != sorted(numbers)  # neighbours in the file do not become neighbours in the bank
    assert max(numbers) > 50 and min(numbers) < 50  # nor is it a prefix
    assert chosen == choose_sentences(sentences, 20, seed=1)
    assert chosen != choose_sentences(sentences, 20, seed=2)


def test_with_room_for_all_every_sentence_is_chosen_once() -> None:
    sentences = [Sentence(str(number), ()) for number in range(100)]
    assert sorted(choose_sentences(sentences, 200, seed=1)) == sorted(sentences)
