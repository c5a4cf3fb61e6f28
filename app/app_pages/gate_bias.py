"""The gate's bias: evenness of selection, preferences, anomalies, and the full report."""

import numpy as np
import streamlit as st

from app import address, state
from app.address import choice, several
from app.parts import anomalies, bias, figures, tables
from app.parts.report import page as report
from memscope.base.words import first_upper, span
from memscope.query.needs import is_known
from memscope.report.plots import usage as plots
from memscope.report.words import a_word, bias_name, selections

DRAWN = ("by rank", "histogram, log", "histogram, linear")
PARTS = ("evenness", "concentration", "preferences", "profiles", "layers", "anomalies", "report")

recording = state.recording()
info = recording.info
sizes = [site.entries for site in info.sites]
d = f"D = {selections(recording)} selections a layer over N = {span(sizes, ',')} {info.word(2)}."

word, words = info.word(), info.word(2)
named = {"by_count": "count", "by_gate_score": info.score, "by_read_weight": "read weight"}
weightings = {named[name]: name for name in recording.weightings}
parts = [
    name
    for name in PARTS
    if (name != "preferences" or info.has("starts")) and (name != "layers" or max(map(len, info.banks)) > 1)
]
if info.kind == "memory":
    parts = list(PARTS)
values = [name for name in bias.VALUES if is_known(info, name)]

st.title(first_upper(bias_name(info)))
view = address.View("gate_bias")
part = view.field("part", choice(parts, name="part"))
name = view.field("by", choice(list(weightings), name="weighting"))
layers = view.field("layers", several(info.layers, "layer"))
layer = view.field("layer", choice(info.layers, name="layer"))
drawn = view.field("drawn", choice(DRAWN, name="way to draw"))
value = view.field("value", choice(values, name="value"))
view.write()
weighting = weightings[name]
having = recording.layer_metrics(weighting)["layer"].tolist()
layers = [layer for layer in layers or info.layers if layer in having] or having

st.segmented_control(
    "Part", parts, required=True, format_func=str.capitalize, label_visibility="collapsed", **view.widget("part")
)

if part in ("evenness", "concentration"):
    left, right = st.columns([2, 3])
    left.segmented_control("Weigh each selection by", list(weightings), required=True, **view.widget("by"))
    right.pills("Layers", list(info.layers), selection_mode="multi", **view.widget("layers"))
    axes = [info.layers.index(one) for one in layers]
    metrics = recording.evenness(weighting)
    metrics = metrics[metrics["layer"].isin(layers)]
    by = (weighting, tuple(layers))

if part == "evenness":
    left, right = st.columns(2, gap="medium")
    with left:
        st.subheader("Lorenz curve")
        state.show_figure(
            plots.lorenz_curve,
            lambda: ([recording.reachable_usage(weighting)[axis] for axis in axes], layers, (word, words)),
            by,
            alt="Lorenz curve per layer",
        )
        st.caption(
            f"Share of usage that the least used {words} hold. The further a curve lies below the diagonal, the less "
            f"even is usage. {d}"
        )
    with right:
        st.subheader("Coverage")
        state.show_figure(
            plots.coverage_bars,
            lambda: (metrics, (word, words)),
            by,
            alt=f"Share of {words} used, beside even selection, per layer",
        )
        st.caption(f"Filled: {words} used at least once. Outlined: the same for even selection. {d}")
    st.subheader("Evenness per layer")
    tables.evenness_table(metrics)
    by_scores = ""
    if info.has("margin"):
        by_scores = (
            "By scores alone is the share of selections that raw scores would have made without the selection bias, "
            "under any weighting. "
        )
    st.caption(
        f"KL to uniform is 0 for even usage and at most {np.log(max(sizes)):.2f} nats; Gini runs from 0 to 1. The "
        f"columns named even hold the values of even selection. {by_scores}{d}"
    )
    state.download("Evenness as CSV", lambda: metrics, "evenness")

if part == "concentration":
    left, right = st.columns(2, gap="medium")
    with left:
        st.subheader(f"Usage of {words}")
        st.segmented_control("Drawn as", DRAWN, required=True, label_visibility="collapsed", **view.widget("drawn"))
        if drawn == DRAWN[0]:
            state.show_figure(
                plots.usage_histogram,
                lambda: ([recording.reachable_usage(weighting)[axis] for axis in axes], layers, (word, words)),
                by,
                alt="Usage by rank",
            )
            st.caption(
                f"{first_upper(words)} from most to least used, both axes logarithmic. Even usage is a flat line. {d}"
            )
        else:
            log = drawn == DRAWN[1]
            state.show_figure(
                figures.count_histogram,
                lambda: (
                    [recording.reachable_usage(weighting)[axis] for axis in axes],
                    layers,
                    log,
                    (a_word(info), words),
                ),
                by,
                log,
                alt=f"Histogram of usage over {words}, per layer",
            )
            st.caption(f"Number of {words} by their usage. Even usage is a narrow peak at the dashed line. {d}")
    with right:
        st.subheader(f"{first_upper(words)} that hold 50, 90 and 99%")
        state.show_figure(
            plots.top_mass,
            lambda: (metrics, (word, words)),
            by,
            alt=f"{first_upper(words)} that hold 50, 90 and 99% of usage",
        )
        st.caption(f"Number of {words} that hold half, 90% and 99% of a layer's usage, beside all it can select. {d}")
    bias.most_used(view, recording, layer, weighting, name, d)

if part == "preferences":
    bias.preferences(view, recording, layer, d)

if part == "profiles":
    bias.profiles(view, recording, value, values, d)

if part == "layers":
    bias.overlap(recording, d)

if part == "anomalies":
    anomalies.anomalies(view, recording)

if part == "report":
    report.report(recording)
