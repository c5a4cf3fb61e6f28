"""Tokenizers that make the library behind them fail or panic: one line, whatever it raises."""

import json
from pathlib import Path
from typing import Any

import pytest

from memscope.base.errors import InputError
from memscope.text.tokenizer import Tokenizer

WORDS = {"<s>": 0, "</s>": 1, "<pad>": 2, "a": 3, "b": 4, "ab": 5, "w": 6}
FILE: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "model": {"type": "BPE", "vocab": WORDS, "merges": ["a b"]},
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
}


def write_tokenizer(tmp_path: Path, **changed: Any) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(FILE | changed))
    return path


@pytest.mark.parametrize(
    "changed",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"model": FILE["model"] | {"continuing_subword_prefix": "#####"}},
        {
            "model": {
                "type": "BPE",
                "vocab": WORDS | {"中": 7, "a中": 8},
                "merges": ["a 中"],
                "continuing_subword_prefix": "##",
            }
        },
        {"decoder": {"type": "Strip", "content": "w", "start": 9, "stop": 9}},
        {"model": {"type": "Unigram", "unk_id": 9, "vocab": [["a", -1.0]]}},
    ],
    ids=[
        "panics when read",
        "panics when it reads",
        "a prefix longer than a token",
        "a prefix that cuts a character",
        "panics when it writes",
        "no panic",
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_one_line(
    tmp_path: Path, changed: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_tokenizer(tmp_path, **changed)
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer\.json \("):
        Tokenizer.load(path)
    assert capfd.readouterr().err == ""


def test_a_tokenizer_that_can_be_used_is_read(tmp_path: Path) -> None:
    assert Tokenizer.load(write_tokenizer(tmp_path)).encode("ab") == [5]  # so that the refusals come from the changes
