"""One token of a text: its numbers, what comes next, and how to read the entries that it selected."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import streamlit as st

from app import live, outside, state
from app.address import View
from memscope.base.words import first_upper, span, visible
from memscope.query.fired import predicted_token
from memscope.query.recording import Recording
from memscope.query.token_measures import measure_name
from memscope.recording.info import RecordingInfo
from memscope.recording.token_table import Trace, token_label


def token_facts(
    view: View, recording: Recording, trace: Trace, token: int, predictions: pd.DataFrame | None, doc: int | None
) -> None:
    """The token that was chosen, its loss, and what the model expects next.

    Args:
        view: of the page; its field ``next`` asks for predictions of recorded tokens.
        recording: whose token it is.
        trace: a stretch of text around the token.
        token: its position.
        predictions: ``TextTrace.predictions``, if there are any.
        doc: the recorded document, none of a typed text.
    """
    info = recording.info
    at = int(token - trace.tokens["pos"].iloc[0])
    chosen = trace.tokens.iloc[at]
    following = label(trace.tokens.iloc[at + 1]) if at + 1 < len(trace.tokens) else None
    here, then = st.columns(2) if doc is None else (st.container(), st.container())
    with here:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.subheader(f"Token {token}", width="content")
            outside.code(visible(label(chosen)), language=None, width="content")
        if chosen["bytes"]:
            st.caption(f"Bytes {chosen['bytes']}")
        st.caption("  \n".join(_numbers(info, chosen)))
    with then:
        st.markdown("**What comes next**")
        if following is not None:
            outside.text(f"In the text: {visible(following)}")
        if predictions is not None:
            likely_next(predictions, token)
            return
        assert doc is not None
        if info.predictions:
            outside.text(f"Likeliest: {visible(state.answer(predicted_token, doc, token))}")
        if live.can_type(info):
            st.button("Probabilities", help="Runs the recorded model.", on_click=lambda: view.put(next=True))


def _numbers(info: RecordingInfo, chosen: pd.Series) -> list[str]:
    """What is measured at a token, a line each."""
    lines = []
    if info.predictions:
        loss = "none" if np.isnan(chosen["loss"]) else f"{chosen['loss']:.2f} nats"
        lines.append(f"Loss of the next token: {loss}")
    if info.has("scores"):
        entropy, share = (first_upper(measure_name(info, name)) for name in ("gate entropy", "top gate share"))
        lines.append(f"{entropy}: {chosen['gate_entropy']:.2f} of at most {np.log(info.selected):.2f} nats")
        lines.append(f"{share}: {chosen['top_share']:.1%}")
    if info.has("reads"):
        reading = sum("reads" in site.has for site in info.sites)
        lines.append(f"Layers that read nothing: {chosen['silent_layers']} of {reading}")
    return lines


def likely_next(predictions: pd.DataFrame, token: int) -> None:
    """The most likely next tokens after a token, of ``TextTrace.predictions``."""
    likely = predictions[predictions["pos"] == token]
    outside.table(
        {"next token": likely["text"].map(visible), "probability": likely["probability"]},
        hide_index=True,
        height="content",
        row_height=29,
        column_config={"probability": st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1)},
        alt="Most likely next tokens",
    )


def label(row: pd.Series) -> str:
    """A row of ``Trace.tokens`` as the text of its token."""
    return token_label(row["whole"], int(row["part"]), int(row["parts"]))


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
