"""Ablate, force, swap or rewrite entries: typed text before and after, and recorded text."""

from functools import partial

import numpy as np
import streamlit as st

from app import address, outside, state
from app.address import choice, integer, several, words
from app.components.tokens import token_view
from app.live import changed_contexts, compare_typed, expect_text
from app.parts import causal
from memscope.base.errors import InputError

recording = state.recording()
info = recording.info

st.title("What if")
if info.kind != "memory":
    st.info(
        "This page changes the memory of a run that memscope trained, and runs it. It cannot change the "
        f"{info.word(2)} of other models."
    )
    st.stop()
view = address.View("what_if")
kind = view.field("change", choice(list(causal.KINDS), name="change"))
view.field("entries", words())
layers = view.field("layers", several(info.layers, name="layer"))
view.field("amount", words("1"))
view.field("sentence", words())
text = view.field("text", words())
token = view.field("token", integer(0, info.window, 0, "token"))
view.write()
expect_text()

st.segmented_control(
    "Change",
    list(causal.KINDS),
    required=True,
    format_func=causal.KINDS.__getitem__,
    **view.widget("change"),
)
causal.change_form(view, kind, info.layers)
st.caption(causal.MEANINGS[kind])
if not text:
    st.caption("Type a text and choose a change: the recorded model reads the text without and with the change.")
    st.stop()
try:
    change = causal.read_change(view, kind, info.layers)
    compared = compare_typed(text, change)
except InputError as error:
    st.warning("This cannot be done.", icon=":material/warning:")
    outside.code(str(error), language=None, wrap_lines=True)
    st.stop()

token = min(token, len(compared) - 1)


def pick(widget: str) -> None:
    view.put(token=st.session_state[widget].clicked)


for place, name in zip(st.columns(2, gap="medium"), ("before", "after"), strict=True):
    with place:
        st.subheader(name.capitalize())
        token_view(
            compared,
            compared[f"loss_{name}"].to_numpy(np.float64),
            "loss of predicting the next token, nats",
            token,
            key=f"tokens_{name}",
            label=f"Tokens {name}",
            on_click=partial(pick, f"tokens_{name}"),
        )
causal.token_change(compared, token)
causal.token_table(compared)
st.caption(
    "Deeper blue is a larger loss; before and after have separate scales. Loss is that of predicting the next token. "
    "KL is how far the next-token distribution moved. Both are in nats."
)

st.subheader("Recorded text that changes most")
if st.toggle("Read recorded text with this change", key="what_if.contexts", help="Takes some seconds to a minute."):
    try:
        changed = changed_contexts(change)
    except InputError as error:
        st.warning("There is nothing to show.", icon=":material/warning:")
        outside.code(str(error), language=None, wrap_lines=True)
        st.stop()
    loss = changed.loss
    spread = (
        "One text: no interval." if np.isnan(loss.low) else f"95% {loss.low:+.4f} to {loss.high:+.4f}, by document."
    )
    st.metric("Loss", f"{loss.estimate:+.4f} nats per token", help=spread)
    causal.context_table(changed.contexts)
    st.caption(
        f"The tokens whose next-token distribution changed most, of {changed.tokens:,} in the windows that select the "
        "entries most often. Loss is their mean change; 95% intervals are over documents. For controls, memscope "
        "ablate compares with entries that are used about as often."
    )
