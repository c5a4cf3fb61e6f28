"""Ablate, force, swap, rewrite or scale what layers select: typed text before and after, and recorded text."""

import numpy as np
import streamlit as st

from app import address, live, state
from app.address import choice, flag, integer, several, words
from app.components.tokens import token_view
from app.parts import causal, what_if
from app.parts.texts import generated, typed
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
by = view.field("by", choice(list(what_if.MEASURES), name="measure"))
going = view.field("go", flag())
asked = generated.fields(view)
live.expect_text()

typed.text_boxes(view, {"text": "Text to read"})
st.segmented_control(
    "Change",
    list(kinds),
    required=True,
    format_func=lambda name: kinds[name].name,
    **view.widget("change", lambda: view.put(token=None)),
)
try:
    trace = live.trace_typed(text).trace if text else None
except InputError as error:
    view.write()
    causal.cannot(error)
if trace is not None and kind != "scale":
    what_if.choices(view, recording, trace, layers)
causal.change_form(view, kind, info)
st.caption(kinds[kind].meaning)
if trace is None:
    view.write()
    st.caption("Type a text and choose a change: the recorded model runs on it without and with the change.")
    st.stop()
assert trace is not None
if causal.unnamed(view, kind):
    view.write()
    st.caption(f"Name {info.word(2)} or select rows of the table, and you see what changes.")
    st.stop()
try:
    change = causal.read_change(view, kind, info)
    compared = live.compare_typed(text, change)
except InputError as error:
    view.write()
    causal.cannot(error)
if what_if.nowhere(trace, change):
    st.info(
        f"No token of this text selects any of these {info.word(2)} in these layers. The table above has those that it "
        "selects.",
        icon=":material/search_off:",
    )
# The page opens on the token whose prediction moved most.
token = view.field("token", integer(0, len(compared), what_if.most_moved(compared), "token"))
view.write()

title, colour = st.columns([2, 3], vertical_alignment="bottom")
title.subheader("What changes")
colour.segmented_control(
    "Colour by",
    list(what_if.MEASURES),
    required=True,
    label_visibility="collapsed",
    format_func=lambda name: what_if.MEASURES[name].name,
    **view.widget("by"),
)
token_view(
    compared,
    what_if.values(compared, by),
    what_if.MEASURES[by].meaning,
    token,
    key="tokens",
    signed=what_if.MEASURES[by].signed,
    on_click=lambda: view.put(token=st.session_state["tokens"].clicked),
)
st.caption(what_if.MEASURES[by].legend)
st.markdown(f"**Token {token}**")
causal.token_change(compared, token)
causal.token_table(compared)
st.caption("Loss is that of predicting the next token. KL is how far the next-token distribution moved. Both in nats.")

st.subheader("Let the model go on")
st.toggle("Write on from this text without and with the change", **view.widget("go"))
if going:
    generated.boxes(view)
    try:
        what_if.two_continuations(view, recording, text, asked, change)
    except InputError as error:
        causal.cannot(error)

st.subheader("Recorded text that changes most")
if st.toggle("Read recorded text with this change", key="what_if.contexts"):
    try:
        with what_if.progress() as watch:
            changed = live.changed_contexts(change, watch)
    except InputError as error:
        causal.cannot(error, "There is nothing to show.")
    windows = f"the windows that select the {info.word(2)} most often"
    if kind in ("force", "scale"):
        windows = "windows from all parts of the recording"
    loss = changed.loss
    spread = (
        "One text: no interval." if np.isnan(loss.low) else f"95% {loss.low:+z.4f} to {loss.high:+z.4f}, by document."
    )
    st.metric("Loss", f"{loss.estimate:+z.4f} nats per token", help=spread)
    causal.context_table(changed.contexts)
    st.caption(
        f"The tokens whose next-token distribution changed most, of {changed.tokens:,} in {windows}. Loss is their "
        "mean change; 95% intervals are over documents. For controls, memscope ablate compares with "
        f"{info.word(2)} that are used about as often."
    )
