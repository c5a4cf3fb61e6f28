"""Token by token: which entries the gate selected, and what the attention read of them."""

import numpy as np
import streamlit as st

from app import columns, state
from app.token_view import MEASURES, token_view, visible
from memscope.errors import InputError

WINDOW = 256  # tokens shown at once
TITLES = 2000  # documents offered by title
DOCUMENT, TYPED = "Recorded document", "Your own text"


def turn_page(key: str) -> None:
    st.session_state["token"] = (st.session_state[key] - 1) * WINDOW


def pick_token() -> None:
    st.session_state["token"] = st.session_state["tokens"].clicked


recording = state.recording()
info = recording.info

st.title("Prompts")
left, right = st.columns([3, 2], vertical_alignment="bottom")
source = left.segmented_control(
    "Text", [DOCUMENT, TYPED], default=DOCUMENT, required=True, key="source", bind="query-params"
)
measure = right.selectbox(
    "Colour tokens by",
    list(MEASURES),
    format_func=lambda name: name.replace("_", " "),
    key="measure",
    bind="query-params",
)

predictions = None
if source == TYPED:
    with st.form("typed", border=False):
        text = st.text_area("Text to read", key="text", bind="query-params", placeholder="Ada Lovelace was born in")
        st.form_submit_button("Read it", type="primary")
    if not text:
        st.caption("Type a text: the recorded model reads it, and you see the entries that fire on every token.")
        st.stop()
    try:
        traced = state.trace_typed(text)
    except InputError as error:
        st.warning("This text cannot be read.", icon=":material/warning:")
        st.code(str(error), language=None, wrap_lines=True)
        st.stop()
    trace, predictions, rows = traced.trace, traced.predictions, len(traced.trace.tokens)
    token = state.number("Token", "token", rows, st.columns([1, 5])[0])
else:
    documents = recording.documents
    left, middle, right = st.columns([3, 1, 3], vertical_alignment="bottom")
    doc = state.choose_document(left, TITLES)
    rows = int(documents["rows"][doc])
    token = state.number("Token", "token", rows, middle)
    part = token // WINDOW
    with right:
        st.pagination(
            -(-rows // WINDOW), default=part + 1, key=f"part{part}", on_change=turn_page, args=(f"part{part}",)
        )
    trace = state.trace_document(doc, part * WINDOW, WINDOW)

token_view(trace.tokens, measure, token, key="tokens", on_click=pick_token)
st.caption(
    f"Deeper blue is more, by the legend. Click a token, or focus the text and use the arrow keys and Enter. "
    f"Shown are {len(trace.tokens):,} of {rows:,} tokens, "
    f"{len(trace.tokens) * len(info.layers) * info.selected:,} selections (D)."
)

chosen = trace.tokens[trace.tokens["pos"] == token].iloc[0]
facts, following = (st.container(), None) if predictions is None else st.columns([3, 2])
with facts.container(horizontal=True, vertical_alignment="center"):
    st.subheader(f"Token {token}", width="content")
    st.code(visible(chosen["text"]), language=None, width="content")
    st.metric("Loss of the next token", "none" if np.isnan(chosen["loss"]) else f"{chosen['loss']:.2f} nats")
    st.metric("Gate entropy", f"{chosen['gate_entropy']:.2f} nats", help=f"At most {np.log(info.selected):.2f}.")
    st.metric("Top gate share", f"{chosen['top_share']:.1%}")
    st.metric("Silent layers", f"{chosen['silent_layers']} of {len(info.layers)}")
if predictions is not None and following is not None:
    likely = predictions[predictions["pos"] == token]
    following.dataframe(
        {"next token": likely["text"].map(visible), "probability": likely["probability"]},
        hide_index=True,
        column_config={"probability": st.column_config.ProgressColumn(format="percent", max_value=1)},
        alt="Most likely next tokens",
    )

fired = trace.selections[trace.selections["pos"] == token]
sentences = recording.sentences(fired["entry"])
for layer, entries in fired.groupby("layer"):
    top = int(entries["entry"].iloc[0])
    with st.container(horizontal=True, vertical_alignment="bottom", horizontal_alignment="distribute"):
        st.markdown(f"**Layer {layer}**", width="content")
        st.page_link(
            "app_pages/entries.py", label=f"Open entry {top}, the most read", query_params=state.link_params(entry=top)
        )
    st.dataframe(
        entries.assign(
            link=[state.entry_address(entry) for entry in entries["entry"]],
            sentence=[sentences[entry] or "(started random)" for entry in entries["entry"]],
        ),
        hide_index=True,
        height=213,
        column_order=["link", "gate", "read", "sentence"],
        column_config={
            "link": columns.ENTRY["link"],
            "gate": st.column_config.NumberColumn("gate score", format="%.3f", width=85),
            "read": st.column_config.NumberColumn("read weight", format="%.4f", width=90),
            "sentence": columns.ENTRY["sentence"],
        },
        alt=f"Entries selected in layer {layer}, most read first",
    )
st.caption(
    f"All {info.selected} entries that the gate selected in each layer, most read first. The gate score says how well "
    "the entry's key matched; the read weight, which may be negative, says how much of it the attention took."
)
