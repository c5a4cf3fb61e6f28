"""Token by token: the entries that the gate selected, and how strongly the attention read them."""

import numpy as np
import streamlit as st

from app import address, live, outside, state
from app.address import choice, flag, integer, words
from app.components.fired import fired_view
from app.components.grid import layer_grid
from app.components.tokens import token_view
from app.parts import causal, tables
from app.parts.texts import document, generated, token, two, typed
from memscope.base.errors import InputError
from memscope.base.words import first_upper
from memscope.query.fired import fired_entries, recorded_slots
from memscope.query.token_measures import default_measure, known_measures, layer_measure, measure_name, over_layers
from memscope.report.words import entry_name

WINDOW = 256  # tokens shown at once
DOCUMENT, TYPED, GOING, TWO = "document", "your text", "your text, continued", "two texts"

recording = state.recording()
info, documents = recording.info, recording.documents

st.title("Prompts")
view = address.View("prompts")
measures = known_measures(info)
sources = [DOCUMENT, TYPED, GOING, TWO] if live.can_type(info) else [DOCUMENT]
source = view.field("source", choice(sources, name="source"))
doc = view.field("doc", integer(0, len(documents), 0, "doc"))
text, other = view.field("text", words()), view.field("other", words())
measure = view.field("by", choice(list(measures), default_measure(info), name="measure"))
lit = view.field("entry", integer(0, info.knowledge_num, None, "entry"))
layer = view.field("layer", choice(info.layers, name="layer"))
length = int(documents["rows"][doc]) if source == DOCUMENT else max(1, typed.token_count(recording, text))
opening = min(len(recording.tokenizer.opening), length - 1)
# A text opens on its last token, a document behind the tokens that open it: these look alike in every text.
first = opening if source == DOCUMENT else length - 1
room = length + generated.MOST if source == GOING else length
at = view.field("token", integer(0, room, first, "token"))
length_b = max(1, typed.token_count(recording, other))
at_b = view.field("token_b", integer(0, length_b, length_b - 1, "token"))
sampling = generated.fields(view) if source == GOING else None
likely = view.field("next", flag())


def start_over() -> None:
    view.put(token=None, token_b=None)


def pick(field: str, widget: str) -> None:
    view.put(**{field: st.session_state[widget].clicked})


def pick_cell() -> None:
    cell = st.session_state["grid"].clicked
    view.put(token=int(cell["pos"]), layer=info.layers[int(cell["row"])])


def act() -> None:
    clicked = st.session_state["fired"].acted
    entry, where = int(clicked["entry"]), int(clicked["layer"])
    if clicked["act"] == "ablate":
        read = text if source != DOCUMENT else document.text_until(recording, doc, at)
        address.go("what_if", entries=entry_name(info, entry), text=read)
    if clicked["act"] != "light":
        address.go("entries", entry=entry, layer=where)
    view.put(by=default_measure(info) if entry < 0 else "one entry", entry=None if entry < 0 else entry)


left, right, extra = st.columns([5, 3, 2], vertical_alignment="bottom")
left.segmented_control(
    "Text",
    sources,
    required=True,
    format_func=first_upper,
    label_visibility="collapsed",
    **view.widget("source", start_over),
)
right.selectbox(
    "Colour by",
    list(measures),
    format_func=lambda one: f"Colour by {measure_name(info, one)}",
    label_visibility="collapsed",
    **view.widget("by"),
)
if measure == "one entry":
    tables.entry_box(view, info, first_upper(info.word()), extra)

predictions, slots, new = None, None, None
try:
    if source == DOCUMENT:
        document.document_controls(view, recording, doc, at, WINDOW, start_over)
        trace = state.trace_document(doc, at // WINDOW * WINDOW, WINDOW)
        slots = recorded_slots(recording, doc, at)
        if likely and live.can_type(info):
            predictions = live.document_predictions(doc, at)
    else:
        live.expect_text()
        if sampling is not None:
            generated.boxes(view)
        typed.text_boxes(view, {"text": "Text to read"} | ({"other": "Second text"} if source == TWO else {}))
        view.write()
        if not text or (source == TWO and not other):
            said = f"Type a text: the recorded model reads it, and you see the {info.word(2)} that fire on every token."
            st.caption(said)
            st.stop()
        if sampling is None:
            traces = [live.trace_typed(one) for one in ([text, other] if source == TWO else [text])]
        else:
            continued = generated.continued(text, sampling)
            traces, new = [continued.traced], continued.prompt
        at = min(at, len(traces[0].trace.tokens) - 1)
        slots = {layer: weights[at] for layer, weights in traces[0].slots.items()}
        trace, predictions = traces[0].trace.stretch(at // WINDOW * WINDOW, WINDOW), traces[0].predictions
        length = len(traces[0].trace.tokens)
except InputError as error:
    st.warning("This text cannot be read.", icon=":material/warning:")
    outside.code(str(error), language=None, wrap_lines=True)
    st.stop()
view.write()

drift = state.numbers()["drift"].to_numpy() if info.has("drift") else None
if source == TWO:
    two.two_texts(view, recording, [t.trace for t in traces], (at, at_b), measure, drift, pick)
    st.stop()

if measure == "loss":
    values, per_token = None, trace.tokens["loss"].to_numpy(np.float64)
else:
    values = layer_measure(trace, info.layers, measure, drift, lit)
    per_token = over_layers(values, measure)
# What a typed text reads is to be seen without scrolling.
text_side, token_side = st.columns([3, 1.05] if source == DOCUMENT else [1, 1], gap="medium")
with text_side:
    token_view(
        trace.tokens,
        per_token,
        measures[measure] + ("" if measure in ("loss", "one entry") else ", mean over layers"),
        at,
        key="tokens",
        new=None if new is None else trace.tokens["pos"].to_numpy() >= new,
        on_click=lambda: pick("token", "tokens"),
    )
    if source != DOCUMENT:
        document.pager(view, at, length, WINDOW)
    if values is not None:
        meaning = measures[measure].split(":")[0]
        layer_grid(trace.tokens, values, info.layers, meaning, at, layer, key="grid", on_click=pick_cell)
with token_side:
    token.token_facts(view, recording, trace, at, predictions, doc if source == DOCUMENT else None)
fired = fired_entries(recording, trace, at, slots)
fired_view(
    fired,
    layer,
    lit if measure == "one entry" else None,
    info,
    key="fired",
    on_act=act,
    changes=bool(causal.changes(info)),
)
st.caption(token.fired_note(info, at) + token.slots_note(info, slots))
st.caption(
    "Deeper blue is a larger value. Click a token, or use the arrow keys and Enter. "
    + "The grid has the same per layer, brighter for larger values. " * (values is not None)
    + f"The page shows {len(trace.tokens):,} of {length:,} tokens: D = {len(trace.selections):,} selections."
    + generated.NOTE * (new is not None)
)
state.download(
    "Selections on this page as CSV",
    lambda: trace.tokens[["pos", "whole", "bytes"]].merge(trace.selections, on="pos"),
    f"document-{doc}" if source == DOCUMENT else "typed-text",
)
