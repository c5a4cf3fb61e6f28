"""Parts of the gate-bias page: preferences, profiles of the reading token, overlap of layers."""

from functools import partial

import pandas as pd
import streamlit as st

from app import outside, state
from app.address import View, choice
from app.parts import figures, tables
from memscope.query.recording import Recording
from memscope.recording.census_file import ClassProfile
from memscope.recording.info import RecordingInfo
from memscope.recording.sites import in_common
from memscope.report.plots import bias as bias_plots
from memscope.report.words import layer_name, reworded

_PROFILES = {"position": "position in the window", "frequency": "frequency of the token"}
_INFORMATION = ("token", "previous", "frequency", "position")
VALUES = {
    "coverage": "share of entries used",
    "gate_entropy": "gate entropy, nats",
    "effective_entries_read": "entries effectively read",
    "unread_share": "unread selections",
    "by_score_share": "selections by scores alone",
    "loss": "loss, nats",
}
"""Values that are drawn along position and frequency."""


def most_used(view: View, recording: Recording, layer: int, weighting: str, name: str, d: str) -> None:
    """The entries with the largest share of a layer."""
    info = recording.info
    st.subheader(f"Most used {info.word(2)}")
    st.segmented_control(
        "Layer", list(info.layers), required=True, label_visibility="collapsed", **view.widget("layer")
    )
    most = recording.most_used(layer, weighting)
    tables.entry_table(
        most,
        [{"entry": entry, "layer": layer} for entry in most["entry"].tolist()],
        key="most",
        height=330,
        column_order=["entry", "count", "share", "sentence"],
        column_config=tables.entry_columns(info),
        alt=f"Most used {info.word(2)} of one layer",
    )
    st.caption(
        f"The 20 most used {info.word(2)} of layer {layer}, by {name}. Even selection would give each "
        f"{1 / info.site(layer).entries:.4%}. Select a row to open its {info.word()}. {d}"
    )
    with st.container(horizontal=True):
        state.download("These as CSV", lambda: most, f"most-used-layer-{layer}")
        state.download(f"Usage of every {info.word()}", recording.usage_table, "usage")


def preferences(view: View, recording: Recording, layer: int, d: str) -> None:
    """Lift of selection by labels of the entries' init sentences."""
    table = state.answer(Recording.preferences)
    if table.empty:
        st.info("Entries of this bank started from random numbers, so they have no labels to prefer.")
        return
    attributes = table["attribute"].unique().tolist()
    attribute = view.field("attribute", choice(attributes, name="attribute"))
    view.write()
    left, right = st.columns([3, 2])
    left.segmented_control("Preferred by", attributes, required=True, **view.widget("attribute"))
    right.segmented_control("Layer", list(recording.info.layers), required=True, **view.widget("layer"))
    rows = table[(table["layer"] == layer) & (table["attribute"] == attribute)]
    state.show_figure(
        bias_plots.preference_forest, lambda: (rows,), layer, attribute, alt=f"Lift of selection by {attribute}"
    )
    st.caption(
        "Right of 1: the label takes more than its share of the bank. Grey: the range of shuffled labels, which is "
        f"wide where few entries take most selections. Shown are the {min(24, len(rows))} labels of layer {layer} with "
        f"the strongest evidence. {d}"
    )
    with st.container():
        outside.table(
            rows,
            hide_index=True,
            height="content" if len(rows) <= 12 else 460,
            column_order=[
                "label",
                "entries",
                "bank_share",
                "selection_share",
                "lift",
                "low",
                "high",
                "q",
                "significant",
            ],
            column_config={
                "entries": st.column_config.NumberColumn(format="localized"),
                "bank_share": st.column_config.NumberColumn("of bank", format="percent"),
                "selection_share": st.column_config.NumberColumn("of selections", format="percent"),
                **{name: st.column_config.NumberColumn(format="%.2f") for name in ("lift", "low", "high")},
                "q": st.column_config.NumberColumn(format="%.3f", help="p, corrected for the number of labels."),
            },
            alt=f"Preference by {attribute}",
        )
        beyond = int(table["significant"].sum())
        st.caption(
            f"{beyond} of {len(table)} lifts over all layers are significant at a false discovery rate of 5%"
            + (
                f"; in the control, labels shuffled once, {int(table['control_significant'].sum())} are."
                if "control_significant" in table
                else "."
            )
        )
        state.download("All preferences as CSV", lambda: table, "preferences")


def profiles(view: View, recording: Recording, value: str, values: list[str], d: str) -> None:
    """How selection depends on position and frequency of the reading token."""
    layers, word = recording.census.layers, recording.info.word()
    for column, (kind, axis) in zip(st.columns(2, gap="medium"), _PROFILES.items(), strict=True):
        with column:
            st.subheader(f"By {axis}")
            _divergence(recording, [getattr(layer.profiles, kind) for layer in layers], kind, axis, d)
    st.selectbox("Value to draw", values, format_func=partial(value_name, recording.info), **view.widget("value"))
    for column, (kind, axis) in zip(st.columns(2, gap="medium"), _PROFILES.items(), strict=True):
        with column:
            rows = {layer.layer: pd.DataFrame(map(dict, getattr(layer.profiles, kind))) for layer in layers}
            rows = {layer: frame for layer, frame in rows.items() if frame[value].notna().any()}
            _along(rows, kind, axis, value, value_name(recording.info, value))
    st.caption(f"Means over the tokens of each group. {d}")
    information = pd.DataFrame([{"layer": layer.layer, **dict(layer.profiles.information)} for layer in layers])
    st.subheader(f"Information about the selected {word}")
    outside.table(
        information,
        hide_index=True,
        height="content",
        column_order=["layer", *(f"{kind}_held_out{end}" for kind in _INFORMATION for end in ("", "_se"))],
        column_config={
            f"{kind}_held_out{end}": st.column_config.NumberColumn("± error" if end else kind, format="%.4f")
            for kind in _INFORMATION
            for end in ("", "_se")
        },
        alt=f"Mutual information of the selected {word} and the token, per layer",
    )
    st.caption(
        f"Mutual information in nats between the selected {word} and one of these: the reading token, the token before "
        "it, its frequency class, its position. It is a lower bound, measured by predicting held-out documents, with "
        f"its standard error. {d}"
    )


def _divergence(recording: Recording, rows: list[tuple[ClassProfile, ...]], kind: str, axis: str, d: str) -> None:
    state.show_figure(
        bias_plots.class_divergence,
        lambda: (rows, recording.info.layers, axis),
        kind,
        alt=f"How far selection differs by {axis}, per layer",
    )
    tokens = [row.tokens for row in rows[0]]
    st.caption(
        f"KL divergence of the {recording.info.word(2)} that a group of tokens selects from those of the whole layer. "
        f"Dotted: as many tokens at random. A group has {min(tokens):,} to {max(tokens):,} tokens. {d}"
    )


def value_name(info: RecordingInfo, value: str) -> str:
    """``VALUES`` in the words of what selects."""
    if value == "gate_entropy" and info.kind != "memory":
        return f"entropy of {info.score}s, nats"
    return reworded(info, VALUES[value])


def _along(rows: dict[int, pd.DataFrame], kind: str, axis: str, value: str, name: str) -> None:
    state.show_figure(
        figures.profile, lambda: (rows, value, name, axis), kind, value, alt=f"{name} by {axis}, per layer"
    )


def overlap(recording: Recording, d: str) -> None:
    """How alike the layers use the bank."""
    overlaps = recording.census.overlap
    layers, together = recording.info.layers, in_common(recording.info.sites)
    if len(layers) == 1:
        st.info(f"There is one {layer_name(recording.info)}, so there is nothing to compare.")
        return
    apart = "Layers of different banks have no entry in common: their cells are empty. "
    state.show_figure(
        bias_plots.overlap_heatmap,
        lambda: (overlaps, layers, together),
        "overlap",
        alt=f"Which layers use the same {recording.info.word(2)}",
    )
    st.caption(
        "Left: entries used by both layers over entries used by either. Orange pairs share more than independent sets "
        "of their sizes, purple pairs less. Right: Jensen-Shannon divergence of usage, 0 for equal usage and "
        f"ln 2 = 0.69 for no entry in common. {apart * (not together.all())}{d}"
    )
    names = [f"layer {layer}" for layer in layers]
    outside.table(
        pd.DataFrame(overlaps.rank_correlation, columns=names).where(together).assign(layer=names).set_index("layer"),
        height="content",
        column_config={name: st.column_config.NumberColumn(format="%.2f") for name in names},
        alt="Rank correlation of usage between layers",
    )
    st.caption(f"Spearman correlation of usage over the entries that both layers can select; 0 if unrelated. {d}")
