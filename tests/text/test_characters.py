"""Characters that several tokens spell."""

import pytest

from memscope.recording.token_table import text_around
from memscope.text.characters import find_units
from memscope.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("text", "characters"),
    [
        ("ab c", ["a", "b", " ", "c"]),
        ("中文é", ["中", "文", "é"]),
        ("e\u0301x", ["e\u0301", "x"]),
        ("👍🏽👨\u200d👩\u200d👧", ["👍🏽", "👨\u200d👩\u200d👧"]),
        ("🇩🇪🇫🇷!", ["🇩🇪", "🇫🇷", "!"]),
        (" \u0301", [" ", "\u0301"]),
        ("", []),
    ],
)
def test_bytes_that_spell_a_character_are_one_unit(text: str, characters: list[str]) -> None:
    units = find_units([bytes([byte]) for byte in text.encode()])
    assert [unit.text for unit in units] == characters
    assert [unit.first for unit in units] == [len("".join(characters[:n]).encode()) for n in range(len(units))]
    assert [unit.tokens for unit in units] == [len(character.encode()) for character in characters]


def test_tokens_that_end_inside_a_character_are_joined_with_what_they_hold_beside_it() -> None:
    units = find_units([b"a", b" \xe4", b"\xb8\xad.", b"", b"b"])
    assert units == [("a", 0, 1), (" 中.", 1, 2), ("", 3, 1), ("b", 4, 1)]


def test_bytes_of_no_character_are_written_out_one_by_one() -> None:
    assert [unit.text for unit in find_units([b"\xff", b"\xe4", b"\xb8", b"a"])] == ["\\xff", "\\xe4", "\\xb8", "a"]


def test_the_text_around_a_token_has_whole_characters() -> None:
    tokenizer = Tokenizer.train(["some words of a text"], 270)
    ids = tokenizer.encode("中 a漢b 文")
    at = ids.index(tokenizer.encode("漢")[1])
    assert text_around(tokenizer, ids, at) == ("中 a", "漢", "b 文")
    assert text_around(tokenizer, ids[1:-1], at - 1) == (" a", "漢", "b ")  # characters that the ends cut are left out
    assert text_around(tokenizer, ids[:1], 0) == ("", "\\xe4", "")
