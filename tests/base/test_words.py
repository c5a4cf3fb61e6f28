"""Tokens as words, and names that were meant."""

import pytest

from memscope.base.errors import InputError
from memscope.base.words import Named, did_you_mean, interval, visible


@pytest.mark.parametrize(
    ("text", "shown"), [(" the", "␣the"), ("\n", "↵"), (" ", "␣"), ("", "∅"), ("a\tb", "a⇥b"), ("x ", "x␣")]
)
def test_white_space_in_tokens_can_be_seen(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.52, 1.9, "0.52 to 1.9"),
        (1.092, 1.134, "1.092 to 1.134"),
        (1.1, 1.1, "1.100 to 1.100"),
        (0.0, 0.5, "0 to 0.5"),
    ],
)
def test_the_ends_of_an_interval_do_not_look_alike(low: float, high: float, said: str) -> None:
    assert interval(low, high) == said


def test_the_name_that_was_meant_is_offered_or_else_all_are() -> None:
    assert did_you_mean("knowlege_num", ["dim", "knowledge_num"]) == "; did you mean 'knowledge_num'?"
    assert did_you_mean("zzz", ["dim", 3]) == "; known are dim, 3"
    assert did_you_mean("zzz", range(100)).endswith("28, 29 ...")
    assert did_you_mean("zzz", []) == ""
    names = Named({"hook_embed": 1}, "hook")
    assert names["hook_embed"] == 1 and "hook_embde" not in names and names.get("hook_embde") is None
    with pytest.raises(InputError, match=r"there is no hook 'hook_embde'; did you mean 'hook_embed'\?"):
        names["hook_embde"]
