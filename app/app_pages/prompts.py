"""Token by token: the entries that the gate selected, and how strongly the attention read them."""

import numpy as np
import streamlit as st

from app import address, live, outside, state
from app.address import choice, integer, words
from app.components.fired import fired_view
from app.components.grid import layer_grid
from app.components.tokens import token_view
from app.parts import prompts, tables
from memscope.base.errors import InputError
from memscope.base.words import first_upper
from memscope.query.fired import fired_entries, recorded_slots
from memscope.query.token_measures import known_measures, layer_measure, measure_name, over_layers

WINDOW = 256  # tokens shown at once
DOCUMENT, TYPED, TWO = "document", "your text", "two texts"

recording = state.recording()
info, documents = recording.info, recording.documents

st.title("Prompts")
view = address.View("prompts")
measures = known_measures(info)
sources = [DOCUMENT, TYPED, TWO] if live.can_type(info) else [DOCUMENT]
source = view.field("source", choice(sources, name="source"))
doc = view.field("doc", integer(0, len(documents), 0, "doc"))
text, other = view.field("text", words()), view.field("other", words())
measure = view.field("by", choice(list(measures), name="measure"))
lit = view.field("entry", integer(0, info.knowledge_num, None, "entry"))
layer = view.field("layer", choice(info.layers, name="layer"))
length = int(documents["rows"][doc]) if source == DOCUMENT else info.window
token = view.field("token", integer(0, length, 0, "token"))
token_b = view.field("token_b", integer(0, info.window, 0, "token"))


def start_over() -> None:
    view.put(token=0, token_b=0)


def pick(field: str, widget: str) -> None:
    view.put(**{field: st.session_state[widget].clicked})


def pick_cell() -> None:
    cell = st.session_state["grid"].clicked
    view.put(token=int(cell["pos"]), layer=info.layers[int(cell["row"])])


def act() -> None:
    clicked = st.session_state["fired"].acted
    entry, at = int(clicked["entry"]), int(clicked["layer"])
    if clicked["act"] != "light":
        address.go("entries", entry=entry, layer=at)
    view.put(by=next(iter(measures)) if entry < 0 else "one entry", entry=None if entry < 0 else entry)


left, right, extra = st.columns([4, 3, 2], vertical_alignment="bottom")
left.segmented_control("Text", sources, required=True, format_func=str.capitalize, **view.widget("source", start_over))
right.selectbox(
    "Colour by", list(measures), format_func=lambda one: first_upper(measure_name(info, one)), **view.widget("by")
)
if measure == "one entry":
    tables.entry_box(view, info, first_upper(info.word()), extra)

predictions, slots = None, None
if source == DOCUMENT:
    token = prompts.document_controls(view, recording, doc, token, WINDOW, start_over)
    part = token // WINDOW
    trace = state.trace_document(doc, part * WINDOW, WINDOW)
    slots = recorded_slots(recording, doc, token)
else:
    live.expect_text()
    texts = prompts.text_form(view, two=source == TWO)
    view.write()
    if not all(texts):
        said = f"Type a text: the recorded model reads it, and you see the {info.word(2)} that fire on every token."
        st.caption(said)
        st.stop()
    try:
        traces = [live.trace_typed(one) for one in texts]
    except InputError as error:
        st.warning("This text cannot be read.", icon=":material/warning:")
        outside.code(str(error), language=None, wrap_lines=True)
        st.stop()
    trace, predictions = traces[0].trace, traces[0].predictions
    token = min(token, len(trace.tokens) - 1)
    slots = {layer: weights[token] for layer, weights in traces[0].slots.items()}
view.write()

drift = state.numbers()["drift"].to_numpy() if info.has("drift") else None
if source == TWO:
    prompts.two_texts(view, recording, [t.trace for t in traces], (token, token_b), measure, drift, pick)
    st.stop()

shown = measure if measure != "loss" else "gate entropy"
gridded = shown in measures  # the loss alone where selections have no scores
values = layer_measure(trace, info.layers, shown, drift, lit)
per_token = trace.tokens["loss"].to_numpy(np.float64) if measure == "loss" else over_layers(values, measure)
token_view(
    trace.tokens,
    per_token,
    measures[measure] + ("" if measure in ("loss", "one entry") else ", mean over layers"),
    token,
    key="tokens",
    on_click=lambda: pick("token", "tokens"),
)
st.caption(
    "Deeper blue is a larger value. Click a token, or use the arrow keys and Enter. The page shows "
    f"{len(trace.tokens):,} of {length if source == DOCUMENT else len(trace.tokens):,} tokens: D = "
    f"{len(trace.selections):,} selections."
)
if gridded:
    layer_grid(
        trace.tokens, values, info.layers, measures[shown].split(":")[0], token, layer, key="grid", on_click=pick_cell
    )
    st.caption(
        "One column per token, one row per layer; brighter is a larger value. Click a cell to go to its token and "
        "layer."
    )

prompts.token_facts(recording, trace, token, predictions, doc if source == DOCUMENT else None)
fired = fired_entries(recording, trace, token, slots)
fired_view(fired, layer, lit if measure == "one entry" else None, info, key="fired", on_act=act)
st.caption(prompts.fired_note(info, token) + prompts.slots_note(info, slots))
