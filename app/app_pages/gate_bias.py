"""How far selection is from even, and how the attention weighs what was selected."""

import numpy as np
import streamlit as st

from app import columns, state
from memscope import plots

WEIGHTINGS = {"count": "by_count", "gate score": "by_gate_score", "read weight": "by_read_weight"}

recording = state.recording()
info = recording.info

st.title("Gate bias")
left, right = st.columns([2, 3])
name = left.segmented_control(
    "Weigh each selection by", list(WEIGHTINGS), default="count", required=True, key="by", bind="query-params"
)
picked = right.pills(
    "Layers", list(info.layers), selection_mode="multi", default=list(info.layers), key="layers", bind="query-params"
)
layers = tuple(layer for layer in info.layers if layer in picked) or info.layers
axes = [info.layers.index(layer) for layer in layers]

usage = recording.usage(WEIGHTINGS[name])[axes]
metrics = recording.layer_metrics(WEIGHTINGS[name])
metrics = metrics[metrics["layer"].isin(layers)]
reading = recording.reading_metrics()
reading = reading[reading["layer"].isin(layers)]
d = f"D = {info.rows * info.selected:,} selections a layer over N = {info.knowledge_num:,} entries."

left, right = st.columns(2, gap="medium")
with left:
    st.subheader("Usage by rank")
    state.show_figure(plots.usage_histogram, usage, layers, alt="Usage of every entry by rank, per layer")
    st.caption(f"Entries sorted from most to least used; a flat line would be even. The dot ends the used ones. {d}")
with right:
    st.subheader("Lorenz curve")
    state.show_figure(plots.lorenz_curve, usage, layers, alt="Lorenz curve of usage, per layer")
    st.caption(f"How much of all usage the least used entries hold; the further below the diagonal, the less even. {d}")

left, right = st.columns(2, gap="medium")
with left:
    st.subheader("Coverage")
    state.show_figure(plots.coverage_bars, metrics, alt="Share of entries used, beside even selection, per layer")
    st.caption(f"Filled: entries used at least once. Outlined: what even selection would have used by now. {d}")
with right:
    st.subheader("Concentration")
    state.show_figure(plots.top_mass, metrics, alt="Most used entries that hold 50, 90 and 99 percent of usage")
    st.caption(f"How few entries carry half, 90% and 99% of a layer's usage, beside the whole bank. {d}")

st.subheader("Evenness per layer")
st.dataframe(
    metrics,
    hide_index=True,
    column_order=columns.METRIC_COLUMNS,
    column_config=columns.METRICS,
    alt="Evenness of usage per layer",
)
st.caption(
    f"KL to uniform is 0 when even and at most {np.log(info.knowledge_num):.2f} nats; Gini runs from 0 to 1. The even "
    f"columns are what chance alone gives. {d}"
)
state.download("Evenness as CSV", lambda: metrics, "evenness")

st.subheader("What the attention reads")
left, right = st.columns(2, gap="medium", vertical_alignment="center")
with left:
    histogram = reading[["layer", "read_share_histogram"]]
    state.show_figure(plots.read_share_histogram, histogram, alt="Distribution of read shares, per layer")
right.caption(
    f"How a token's read divides over its {info.selected} selected entries. The first bin holds entries that were "
    f"selected but hardly read; an equal split would put all of them at {1 / info.selected:.1%}, and a token that "
    f"reads one entry alone puts it at 100%. {d}"
)
st.dataframe(
    reading,
    hide_index=True,
    column_order=[column for column in reading.columns if column != "read_share_histogram"],
    column_config=columns.READING,
    alt="How the attention weighs what the gate selected, per layer",
)
st.caption(
    "Effective entries is the exponential of the entropy of read shares. A selection is unread below 1% of its token's "
    f"read. The read weight contains the gate score, so the last correlation takes it out. {d}"
)
state.download("Reading as CSV", lambda: reading.drop(columns="read_share_histogram"), "reading")

st.subheader("Most used entries")
layer = st.segmented_control("Layer", layers, default=layers[0], required=True, key="top_layer", bind="query-params")
most = recording.most_used(layer, WEIGHTINGS[name])
st.dataframe(
    most.assign(link=[state.entry_address(entry) for entry in most["entry"]]),
    hide_index=True,
    column_order=["link", "count", "share", "gate_sum", "read_sum", "sentence"],
    column_config=columns.ENTRY,
    alt="Most used entries of one layer",
)
st.caption(
    f"The 20 entries with most of the layer's usage, by {name}; even selection would give each a share of "
    f"{1 / info.knowledge_num:.3%}. {d}"
)
with st.container(horizontal=True):
    state.download("Most used as CSV", lambda: most, f"most-used-layer-{layer}")
    state.download("Usage of every entry as CSV", recording.usage_table, "usage")
