"""Tokens as words."""

import pytest

from memscope.base.words import visible


@pytest.mark.parametrize(
    ("text", "shown"), [(" the", "␣the"), ("\n", "↵"), (" ", "␣"), ("", "∅"), ("a\tb", "a⇥b"), ("x ", "x␣")]
)
def test_white_space_in_tokens_can_be_seen(text: str, shown: str) -> None:
    assert visible(text) == shown
