"""Boxes for texts that a reader types, with the number of their tokens before they are sent."""

from functools import partial

import streamlit as st

from app import state
from app.address import MAX_TEXT, View
from memscope.query.recording import Recording

EXAMPLE = "Apollo was the god of"
"""A text to begin with. The demo's model reads the answer in a sentence of its bank."""


def token_count(recording: Recording, text: str) -> int:
    """Tokens of a text as the model reads it: those that open a text, and its own; 0 of an empty text."""
    return len(recording.tokenizer.prompt(text)) if text else 0


@st.fragment
def text_boxes(view: View, labels: dict[str, str], button: str = "Read it", height: int = 80) -> None:
    """Show a box for each text; the fields of the view change only when the button is pressed.

    Args:
        view: of the page.
        labels: of the boxes, by their fields. Their tokens are counted when the reader leaves a box.
        button: its label. When it is pressed the fields ``token`` and ``token_b`` go to their defaults.
        height: of the boxes, in pixels.
    """
    for place, (name, label) in zip(st.columns(len(labels), gap="medium"), labels.items(), strict=True):
        text, draft, shown = st.session_state[view.key(name)], f"{view.key(name)}.draft", f"{view.key(name)}.shown"
        if st.session_state.get(shown) != text or draft not in st.session_state:
            st.session_state[draft] = st.session_state[shown] = text  # the address or a link brought another text
        place.text_area(label, key=draft, placeholder=EXAMPLE, height=height)
    send, *counts = st.columns([1, *[6 / len(labels)] * len(labels)], vertical_alignment="center")
    for place, name in zip(counts, labels, strict=True):
        place.caption(_counted(state.recording(), st.session_state[f"{view.key(name)}.draft"]))
    if send.button(button, type="primary", on_click=partial(_send, view, tuple(labels))):
        st.rerun()


def _send(view: View, names: tuple[str, ...]) -> None:
    view.put(**{name: st.session_state[f"{view.key(name)}.draft"] for name in names}, token=None, token_b=None)


def _counted(recording: Recording, text: str) -> str:
    """How long a text is, and how the model reads it."""
    count, window = token_count(recording, text), recording.info.window
    said = f"{count:,} tokens; a window of the model holds {window:,}."
    if count > window:
        said += f" This text takes {-(-count // window):,} windows, each without the text before it."
    if len(text) > MAX_TEXT:
        said += f" It is too long for the address, which holds {MAX_TEXT:,} characters: a link to it opens no text."
    return said
