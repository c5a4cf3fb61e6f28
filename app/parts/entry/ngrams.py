"""The n-grams that an entry fires on: how much of its firing each is, and how surely each makes it fire."""

import streamlit as st

from app import state
from app.address import View
from app.components.chips import chip_table
from memscope.base.words import visible
from memscope.query.entry_cards import EntryCard
from memscope.query.recording import Recording

ORDERS = (2, 1, 3)
"""Tokens of an n-gram that a reader can choose; the first at first."""
_MOST_SHOWN = 12


def ngrams(view: View, recording: Recording, card: EntryCard, layer: int | None) -> None:
    """A table of n-grams, of an order that the reader chooses, in a layer (none: that which selects it most)."""
    if not card.usage["count"].any():
        return
    layer = int(card.usage.loc[card.usage["count"].idxmax(), "layer"]) if layer is None else layer
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("**The last tokens when it fires**", width="content")
        order = st.segmented_control(
            "Tokens", sorted(ORDERS), required=True, label_visibility="collapsed", **view.widget("ngrams")
        )
    table = state.answer(Recording.ngrams, card.entry, layer, order, 200)
    chip_table(
        ["tokens", "times", "of its firing", "fires on"],
        [
            [
                [visible(token) for token in row.tokens],
                f"{row.times:,}",
                f"{row.share:.1%}",
                f"{row.fires:.0%} of {row.occurrences:,}",
            ]
            for row in table.head(_MOST_SHOWN).rename(columns={"count": "times"}).itertuples()
        ],
        key="ngrams",
        label=f"The last {order} tokens where this {recording.info.word()} fires",
    )
    st.caption(
        f"In layer {layer}. Fires on: in what share of all places where these tokens stand. "
        "Where that is 100% throughout, these tokens alone decide."
    )
    state.download("N-grams as CSV", lambda: table, f"ngrams-{card.entry}")
