"""Ablate, force, swap, rewrite or scale what layers select: typed text before and after, and recorded text."""

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
kinds = causal.changes(info)
if not kinds:
    st.info(causal.refusal(info))
    st.stop()
view = address.View("what_if")
kind = view.field("change", choice(list(kinds), name="change"))
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
    list(kinds),
    required=True,
    format_func=lambda name: kinds[name].name,
    **view.widget("change"),
)
causal.change_form(view, kind, info)
st.caption(kinds[kind].meaning)
if not text:
    st.caption("Type a text and choose a change: the recorded model runs on it without and with the change.")
    st.stop()
try:
    change = causal.read_change(view, kind, info)
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
    windows = f"the windows that select the {info.word(2)} most often"
    if kind in ("force", "scale"):
        windows = "windows from all parts of the recording"
    loss = changed.loss
    spread = (
        "One text: no interval." if np.isnan(loss.low) else f"95% {loss.low:+.4f} to {loss.high:+.4f}, by document."
    )
    st.metric("Loss", f"{loss.estimate:+.4f} nats per token", help=spread)
    causal.context_table(changed.contexts)
    st.caption(
        f"The tokens whose next-token distribution changed most, of {changed.tokens:,} in {windows}. Loss is their "
        "mean change; 95% intervals are over documents. For controls, memscope ablate compares with "
        f"{info.word(2)} that are used about as often."
    )
