"""Two texts beside one another, and the entries that their chosen tokens share."""

from collections.abc import Callable
from functools import partial

import numpy as np
import streamlit as st

from app import outside
from app.address import View
from app.components.tokens import token_view
from app.parts import tables
from memscope.base.words import first_upper
from memscope.query.fired import shared_by_layer, shared_selections
from memscope.query.recording import Recording
from memscope.query.token_measures import known_measures, layer_measure, over_layers
from memscope.recording.token_table import Trace


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
    of = np.array([info.site(layer).selected for layer in counts.index])
    st.subheader("What the two tokens share")
    outside.table(
        {"layer": counts.index, "shared": counts.to_numpy(), "of": of, "share": counts.to_numpy() / of},
        hide_index=True,
        height="content",
        column_config={
            "shared": st.column_config.NumberColumn(f"shared {info.word(2)}"),
            "of": st.column_config.NumberColumn("of"),
            "share": st.column_config.ProgressColumn("share", format="percent", min_value=0, max_value=1),
        },
        alt=f"{first_upper(info.word(2))} that both tokens select, per layer",
    )
    st.caption(f"{first_upper(info.word(2))} that both tokens select, of those that a token selects in the layer.")
    sentences = recording.sentences(shared["entry"])
    outside.table(
        tables.named(info, shared.assign(sentence=[sentences[int(entry)] for entry in shared["entry"]])),
        hide_index=True,
        row_height=tables.ROW_HEIGHT,
        column_order=["layer", "entry", "gate_a", "gate_b", "read_a", "read_b", "sentence"],
        column_config=tables.entry_columns(info) | tables.sides(info),
        alt="Entries that either token selects",
    )
    said = "that either token selects, shared ones first. A dash: the token does not select it."
    st.caption(f"{first_upper(info.word(2))} {said}")
