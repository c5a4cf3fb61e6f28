"""The page of one entry: the way through the table, what can be done with it, its card, another one beside it."""

import numpy as np
import streamlit as st

from app import address
from app.address import View
from app.parts import causal, tables
from app.parts.entry import card as cards
from app.parts.entry.ngrams import ngrams
from app.parts.entry.pins import Pin, note_box, pin_button
from memscope.base.words import first_upper
from memscope.query.entry_cards import EntryCard
from memscope.query.recording import Recording
from memscope.report.words import entry_name

ALL = "all"
FEW = 6
"""Contexts that are shown without a frame of their own that scrolls."""


def way(view: View, order: np.ndarray, entry: int, many: str) -> None:
    """Buttons to the table, and to the entries before and after in its order."""
    place = np.flatnonzero(order == entry)
    at = int(place[0]) if len(place) else None

    def step(by: int, label: str, icon: str, key: str, side: str) -> None:
        there = at is not None and 0 <= at + by < len(order)
        st.button(
            label,
            icon=icon,
            icon_position=side,
            shortcut=key,
            disabled=not there,
            on_click=lambda: view.put(entry=int(order[at + by])) if at is not None else None,
        )

    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(f"All {many}", icon=":material/list:", on_click=lambda: view.put(entry=None))
        step(-1, "Previous", ":material/chevron_left:", "P", "left")
        step(1, "Next", ":material/chevron_right:", "N", "right")
        where = f"{at + 1:,} of {len(order):,}" if at is not None else f"not among the {len(order):,}"
        st.caption(f"{where} in the order of the table", width="content")


def actions(view: View, recording: Recording, entry: int, kept: tuple[Pin, ...]) -> None:
    """What can be done with an entry: pin it, colour a text by it, ablate it, put another one beside it."""
    info = recording.info
    word = info.word()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        pin_button(view, entry, kept)
        if st.button("Colour the last text", icon=":material/format_color_fill:", help=f"By where this {word} fires."):
            address.go(
                "prompts", **{**st.session_state["_views"].get("prompts", {}), "by": "one entry", "entry": entry}
            )
        if causal.changes(info) and st.button(
            "Ablate",
            icon=":material/science:",
            help=f"What if this {word} were not selected? On a text where it fires.",
        ):
            address.go("what_if", entries=entry_name(info, entry), text=cards.example_text(recording, entry))
        tables.entry_box(view, info, f"Beside {word}", st.container(width=170), "beside")
    note_box(view, entry, kept)


def beside(view: View, recording: Recording, both: tuple[EntryCard, EntryCard], order: str) -> None:
    """Two entries beside one another: numbers, words, and where they fire."""
    info = recording.info
    st.button("One alone", icon=":material/close:", on_click=lambda: view.put(beside=None))
    for place, one in zip(st.columns(2, gap="large"), both, strict=True):
        with place:
            st.subheader(first_upper(info.label(one.entry)))
            cards.header(recording, one)
    for place, one, key in zip(st.columns(2, gap="large"), both, "ab", strict=True):
        with place:
            cards.decodings(recording, one, key)
    for place, one, key in zip(st.columns(2, gap="large"), both, "ab", strict=True):
        with place:
            st.markdown("**Where it fires**")
            with st.container(height=560 if one.usage["count"].any() else "content", border=False):
                cards.contexts(recording, one.entry, None, order, key)


def alone(view: View, recording: Recording, card: EntryCard, layer: object, order: str) -> None:
    """Everything known of one entry."""
    info, entry = recording.info, card.entry
    used = [int(one) for one in card.usage.loc[card.usage["count"] > 0, "layer"]]
    here = int(layer) if isinstance(layer, int) and layer in used else None
    left, right = st.columns([6, 5], gap="large")
    with left:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown("**Where it fires**", width="content")
            if len(used) > 1 or not info.private:
                options = [ALL, *used] if layer in (ALL, *used) else [ALL, layer, *used]
                st.segmented_control(
                    "Layer", options, required=True, label_visibility="collapsed", **view.widget("layer")
                )
            if info.has("reads"):
                orders = [cards.BY_SCORE, cards.BY_READ]
                st.segmented_control(
                    "Order of contexts", orders, required=True, label_visibility="collapsed", **view.widget("contexts")
                )
        rows = card.usage if here is None else card.usage[card.usage["layer"] == here]
        with st.container(height=640 if rows["count"].sum() > FEW else "content", border=False):
            cards.contexts(recording, entry, here, order)
    with right:
        cards.decodings(recording, card)
    if card.sentence is not None and causal.can_retype(info, entry):
        st.subheader("Read it otherwise")
        causal.retype(entry, card.sentence)
    st.subheader("Usage")
    cards.usage(recording, card)
    cards.firing(recording, entry)
    ngrams(view, recording, card, here)
    left, right = st.columns([3, 1.2], gap="large")
    with left:
        st.markdown("**Selected together with**")
        cards.neighbours(recording, entry, here)
    with right:
        cards.map_position(recording, entry)
