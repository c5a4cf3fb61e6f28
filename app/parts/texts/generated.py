"""Let the recorded model go on from a text: how it samples, and its tokens while it writes."""

import time
from typing import TYPE_CHECKING, NamedTuple

import streamlit as st

from app import live, outside
from app.address import View, integer, words
from memscope.base.errors import InputError

if TYPE_CHECKING:
    from memscope.causal.what_if.change import Change
    from memscope.record.traced import Continued

MOST = 500
"""Most tokens that a page lets a model write."""
_SHOWN_EVERY = 0.1
"""Seconds between two looks at what was written so far: a page that is drawn for every token holds the model up."""
NOTE = (
    " The model wrote the underlined tokens. What fired at a token fired when the model read it, and helps to predict "
    "the next one."
)


class Asked(NamedTuple):
    """How a text shall be continued, as the reader typed it."""

    new: int
    temperature: str
    seed: int


def fields(view: View) -> Asked:
    """The fields of sampling."""
    return Asked(
        view.field("new", integer(1, MOST + 1, 40, "number of tokens")),
        view.field("temperature", words("0.8")),
        view.field("seed", integer(0, 2**31, 0, "seed")),
    )


def boxes(view: View) -> None:
    """Show boxes for the fields of sampling."""
    with st.container(horizontal=True):
        st.number_input("New tokens", 1, MOST, width=140, **view.widget("new"))
        said = "0 takes the likeliest token each time."
        st.text_input("Temperature", help=said, width=140, **view.widget("temperature"))
        st.number_input("Seed", 0, 2**31 - 1, help="Another seed draws other tokens.", width=140, **view.widget("seed"))


def continued(text: str, asked: Asked, change: "Change | None" = None) -> "Continued":
    """The text and what the model writes behind it; shows the tokens as they come.

    Raises:
        InputError: the temperature is not a number, or the text cannot be continued.
    """
    from memscope.record.traced import Sampling

    try:
        sampling = Sampling(asked.new, float(asked.temperature), asked.seed)
    except ValueError as error:
        raise InputError(f"the temperature is '{asked.temperature}'; give a number, such as 0.8") from error
    place, shown = st.empty(), 0.0

    def watch(written: str) -> None:
        nonlocal shown
        if time.monotonic() - shown < _SHOWN_EVERY:
            return
        shown = time.monotonic()
        with place:
            outside.text(f"{text[-200:]}{written} …")

    try:
        return live.continue_typed(text, sampling, change, watch)
    finally:
        place.empty()
