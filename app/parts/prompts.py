"""Parts of the prompts page: choosing a text, facts of a token, two texts beside one another."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd
import streamlit as st

from app import outside, state
from app.address import View
from app.components.tokens import token_view
from app.parts import tables
from memscope.base.words import first_upper, span, visible
from memscope.query.catalog import find_documents
from memscope.query.fired import predicted_token, shared_by_layer, shared_selections
from memscope.query.recording import Recording
from memscope.query.token_measures import known_measures, layer_measure, measure_name, over_layers
from memscope.recording.info import RecordingInfo
from memscope.recording.token_table import Trace

TITLES = 300
"""Documents that the box of titles offers at once."""


def document_controls(
    view: View, recording: Recording, doc: int, token: int, window: int, start_over: Callable[[], None]
) -> int:
    """Boxes to choose a document, a token and a stretch of it; returns the token."""
    titles = recording.documents["title"]
    many = len(titles) > TITLES
    *name, number, box, pages = st.columns([2, 3, 1.2, 3.3] if many else [3.5, 1.2, 3.5], vertical_alignment="bottom")
    if many:
        wanted = st.session_state.get("title", "")
        known = sorted({doc, *find_documents(titles, wanted, TITLES)})
        name[0].text_input(
            "Find a document",
            key="title",
            icon=":material/search:",
            placeholder=f"title, or number below {len(titles):,}",
        )
    else:
        known = list(range(len(titles)))
    number.selectbox(
        "Document",
        known,
        format_func=lambda one: f"{one}: {titles[one] or 'untitled'}",
        **view.widget("doc", start_over),
    )
    rows = int(recording.documents["rows"][doc])
    box.number_input("Token", 0, rows - 1, **view.widget("token"))
    part, parts = token // window, -(-rows // window)
    if parts > 1:

        def turn() -> None:
            view.put(token=(st.session_state[f"part{part}"] - 1) * window)

        with pages:
            st.pagination(parts, default=part + 1, key=f"part{part}", on_change=turn)
    return token


def text_form(view: View, two: bool) -> list[str]:
    """A form for one text or two; returns them as they were when last sent."""
    with st.form("texts", border=False):
        places = st.columns(2 if two else 1)
        for column, name, label in zip(places, ("text", "other"), ("Text to read", "Second text"), strict=False):
            column.text_area(label, key=view.key(name), placeholder="Ada Lovelace was born in", height=100)
        st.form_submit_button("Read it", type="primary", on_click=lambda: view.put(token=0, token_b=0))
    return [st.session_state[view.key(name)] for name in ("text", "other")[: len(places)]]


def token_facts(
    recording: Recording, trace: Trace, token: int, predictions: pd.DataFrame | None, doc: int | None
) -> None:
    """The token that was chosen, its loss, and what the model expects next."""
    info = recording.info
    at = int(token - trace.tokens["pos"].iloc[0])
    chosen = trace.tokens.iloc[at]
    following = trace.tokens["text"].iloc[at + 1] if at + 1 < len(trace.tokens) else None
    facts, next_ = st.columns([3, 2], vertical_alignment="top")
    with facts:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.subheader(f"Token {token}", width="content")
            outside.code(visible(chosen["text"]), language=None, width="content")
        with st.container(horizontal=True):
            if info.predictions:
                loss = chosen["loss"]
                st.metric("Loss of the next token", "none" if np.isnan(loss) else f"{loss:.2f} nats")
            if info.has("scores"):
                st.metric(
                    first_upper(measure_name(info, "gate entropy")),
                    f"{chosen['gate_entropy']:.2f}",
                    help=f"Nats, at most {np.log(info.selected):.2f}.",
                )
                st.metric(first_upper(measure_name(info, "top gate share")), f"{chosen['top_share']:.1%}")
            if info.has("reads"):
                reading = sum("reads" in site.has for site in info.sites)
                st.metric("Silent layers", f"{chosen['silent_layers']} of {reading}")
    with next_:
        st.markdown("**What comes next**")
        if predictions is not None:
            likely = predictions[predictions["pos"] == token]
            table = pd.DataFrame({"next token": likely["text"].map(visible), "probability": likely["probability"]})
            outside.table(
                table,
                hide_index=True,
                height="content",
                column_config={
                    "probability": st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1)
                },
                alt="Most likely next tokens",
            )
        else:
            assert doc is not None
            predicted = {"predicted": visible(state.answer(predicted_token, doc, token))} if info.predictions else {}
            rows = predicted | {
                "in the text": "the end" if following is None else visible(following),
            }
            outside.table(
                pd.DataFrame({"": list(rows), "next token": list(rows.values())}),
                hide_index=True,
                height="content",
                alt="The next token that the model finds most likely, and the one that follows"
                if info.predictions
                else "The token that follows",
            )


def two_texts(
    view: View,
    recording: Recording,
    traces: list[Trace],
    tokens: tuple[int, int],
    measure: str,
    drift: np.ndarray | None,
    pick: Callable[[str, str], None],
) -> None:
    """Two texts side by side, and the entries that their chosen tokens share."""
    info = recording.info
    chosen = [min(token, len(trace.tokens) - 1) for token, trace in zip(tokens, traces, strict=True)]
    for column, trace, token, name, letter in zip(
        st.columns(2, gap="medium"), traces, chosen, ("token", "token_b"), "AB", strict=True
    ):
        with column:
            if measure == "loss":
                values = trace.tokens["loss"].to_numpy(np.float64)
            else:
                lit = st.session_state.get(view.key("entry"))
                values = over_layers(layer_measure(trace, info.layers, measure, drift, lit), measure)
            token_view(
                trace.tokens,
                values,
                known_measures(info)[measure].split(":")[0],
                token,
                key=f"tokens_{letter}",
                label=f"Tokens of text {letter}",
                on_click=partial(pick, name, f"tokens_{letter}"),
            )
            st.caption(
                f"Text {letter}: token {token} is chosen. Deeper blue is a larger value; each text has its own scale."
            )
    shared = shared_selections(traces[0], traces[1], chosen[0], chosen[1])
    counts = shared_by_layer(shared, info.layers)
    st.subheader("What the two tokens share")
    outside.table(
        pd.DataFrame({"layer": counts.index, "shared": counts.to_numpy(), "share": counts.to_numpy() / info.selected}),
        hide_index=True,
        height="content",
        column_config={
            "shared": st.column_config.NumberColumn(f"shared entries, of {info.selected}"),
            "share": st.column_config.ProgressColumn("share", format="percent", min_value=0, max_value=1),
        },
        alt="Entries that both tokens select, per layer",
    )
    st.caption(f"Entries that both tokens select, of {info.selected} selections a layer and token.")
    sentences = recording.sentences(shared["entry"])
    outside.table(
        tables.named(info, shared.assign(sentence=[sentences[int(entry)] for entry in shared["entry"]])),
        hide_index=True,
        column_order=["layer", "entry", "gate_a", "gate_b", "read_a", "read_b", "sentence"],
        column_config=tables.entry_columns(info) | tables.sides(info),
        alt="Entries that either token selects",
    )
    st.caption(
        "Entries that either token selects, shared ones first; a cell is empty where a token does not select one."
    )


def fired_note(info: RecordingInfo, token: int) -> str:
    """How to read the entries that a token selected."""
    chosen, most = span([site.selected for site in info.sites], ","), "at most " * any(s.varies for s in info.sites)
    order = "most read first" if info.has("reads") else f"largest {info.score} first" if info.has("scores") else ""
    said = f"The {info.word(2)} that token {token} selected in each layer"
    said += f"{f', {order}' * bool(order)}: {most}{chosen} a layer."
    if info.has("reads"):
        said += (
            f" Orange bars compare {info.score}s and blue bars read weights, each with the largest of the layer; a "
            "read weight may be negative."
        )
    elif info.has("scores"):
        said += f" Orange bars compare {info.score}s with the largest of the layer."
    if info.has("drift"):
        said += " Filled tokens are in the init sentence, outlined ones are new."
    return said


def slots_note(info: RecordingInfo, slots: Mapping[int, np.ndarray] | None) -> str:
    """How to read the shading of sentences, or how to get it; nothing for entries of one slot."""
    if info.slots == 1:
        return ""
    if slots is None:
        return " Record with --per-slot to see which words of a sentence were read; typed texts always show it."
    return (
        " The deeper the shade of a word, the more it was read, among all words of its layer; an even read shades all "
        "words alike."
    )
