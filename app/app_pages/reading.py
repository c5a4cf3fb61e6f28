"""How the attention, or what else reads, weighs the selected entries."""

from functools import partial

import numpy as np
import streamlit as st

from app import address, outside, state
from app.address import choice
from app.parts import figures, tables
from memscope.base.words import first_upper, span
from memscope.query.read_sample import head_shares, unread_entries
from memscope.report.plots import bias as bias_plots
from memscope.report.plots import usage as plots
from memscope.report.words import a_word, reworded, rows_having, selections
from memscope.stats.usage import UNREAD_SHARE

SHARES, AGAINST, HEADS, UNREAD, CERTAINTY = PARTS = (
    "shares",
    "gate against read",
    "heads",
    "unread entries",
    "certainty",
)

recording = state.recording()
info = recording.info
word, many = info.word(), info.word(2)
say = partial(reworded, info)
st.title("Reading")
if not info.has("reads"):
    how = f": the layer adds what it selected, multiplied by the {info.score}s" if info.has("scores") else ""
    st.info(
        f"Nothing weighs the selected {info.word(2)} apart from the {info.selector}{how}. This page has nothing more."
    )
    st.stop()
having = tuple(site.layer for site in info.sites if "reads" in site.has)
reading = rows_having(recording, recording.reading_metrics(), "reads")
d = f"D = {selections(recording, having='reads')} selections a layer."
chosen = [site.selected for site in info.sites if "reads" in site.has]
selected, most, even = span(chosen, ","), max(chosen), span([1 / one for one in chosen], ".1%")
view = address.View("reading")
per_head = info.head_weights and max(info.site(one).read_heads for one in having) > 1
parts = [name for name in PARTS if name != HEADS or per_head]
part = view.field("part", choice(parts, name="part"))
layer = view.field("layer", choice(having, name="layer"))
view.write()
st.segmented_control(
    "Part",
    parts,
    required=True,
    format_func=lambda one: first_upper(say(one)),
    label_visibility="collapsed",
    **view.widget("part"),
)
if part in (AGAINST, HEADS, UNREAD):
    st.segmented_control("Layer", list(having), required=True, **view.widget("layer"))

if part == SHARES:
    left, right = st.columns([3, 2], gap="large", vertical_alignment="center")
    with left:
        state.show_figure(
            plots.read_share_histogram,
            lambda: (reading[["layer", "read_share_histogram"]], a_word(info)),
            alt="Distribution of read shares, per layer",
        )
    right.caption(
        f"Share of a token's read that each of its {selected} selected {many} gets. The first bin holds selected "
        f"{many} that are hardly read. An equal split puts every {word} at {even}; a token that reads one {word} "
        f"alone puts it at 100%. {d}"
    )
    st.subheader("Per layer")
    columns = tables.reading_columns(info)
    outside.table(
        reading,
        hide_index=True,
        height="content",
        column_order=["layer", *tables.READING],
        column_config=columns,
        alt=say("How the attention weighs what the gate selected, per layer"),
    )
    st.caption(
        say(
            "Effective entries is the exponential of the entropy of read shares. A selection is unread if it gets less "
            "than 1% of its token's read. By norm, read heads of different signs do not cancel. The read weight "
            "contains the gate score; "
        )
        + f"{columns['gate_attention_rank_correlation']['label']} divides by it. {d}"
    )
    state.download("Reading as CSV", lambda: reading[["layer", *tables.READING]], "reading")

elif part == AGAINST:
    sample = state.read_sample(layer)
    left, right = st.columns([3, 2], gap="large", vertical_alignment="center")
    with left:
        state.show_figure(
            figures.gate_against_read,
            lambda: (sample.gate, sample.read, info.site(layer).selected, tables.score_name(info)),
            layer,
            alt=say(f"Share of gate scores against read share of selections in layer {layer}"),
        )
    row = reading[reading["layer"] == layer].iloc[0]
    right.caption(
        say(
            "Selections by their share of the token's gate scores and their share of the token's read. On the diagonal "
            "the attention follows the gate. Selections below the orange line are unread. Shares under 0.1% lie on the "
            f"edges. The rank correlation of gate score and read weight is {row['gate_read_rank_correlation']:+z.2f}, "
            f"that of gate score and read weight / gate score {row['gate_attention_rank_correlation']:+z.2f}. The "
            f"sample has {sample.tokens:,} tokens spread through the recording, with {sample.gate.size:,} selections. "
        )
        + d
    )

elif part == HEADS:
    heads = state.answer(head_shares, layer)
    left, right = st.columns([3, 2], gap="large", vertical_alignment="center")
    with left:
        state.show_figure(
            figures.histograms_of,
            lambda: (
                {f"head {head}": row for head, row in enumerate(heads)},
                np.linspace(0, 1, heads.shape[1] + 1),
                f"share of the head's read that {a_word(info)} gets",
                "share of selections",
                "y",
            ),
            "heads",
            layer,
            alt=f"Distribution of read shares per head in layer {layer}",
        )
    right.caption(
        f"Share of a head's read that each of the {info.site(layer).selected} selected {many} gets, in layer {layer}. "
        f"A head whose line reaches far to the right reads few {many}. Each head has {int(heads[0].sum()):,} "
        "selections, spread through the recording."
    )

elif part == UNREAD:
    sample = state.read_sample(layer)
    table = unread_entries(recording, sample)
    share, by_norm = (float((shares < UNREAD_SHARE).mean()) for shares in (sample.read, sample.norm))
    st.markdown(f"**{share:.1%} of the selections in layer {layer} are unread, {by_norm:.1%} by norm.**")
    tables.entry_table(
        table,
        [{"entry": entry, "layer": layer} for entry in table["entry"].tolist()],
        key="unread",
        height="content" if len(table) <= 7 else 520,
        column_config=tables.entry_columns(info)
        | {
            "selections": st.column_config.NumberColumn(format="localized"),
            "unread": st.column_config.NumberColumn("of them unread", format="localized"),
            "unread_by_norm": st.column_config.NumberColumn("by norm", format="localized"),
            "unread_share": st.column_config.ProgressColumn("unread", format="percent", min_value=0, max_value=1),
        },
        alt=f"{first_upper(many)} that are selected but not read",
    )
    st.caption(
        say(
            "Entries whose selections most often get less than 1% of their token's read: the gate selects them and the "
            "attention passes over them. Where unread exceeds unread by norm, read heads of different signs cancel. "
            f"Counted on {sample.tokens:,} tokens spread through the recording, {sample.gate.size:,} selections of "
            f"layer {layer}. Select a row to open its entry."
        )
    )

else:
    margins = [site.layer for site in info.sites if "margin" in site.has and site.layer in having]
    left, right = st.columns(2, gap="medium")
    with left:
        st.subheader(say("Gate entropy"))
        state.show_figure(
            figures.histograms_of,
            lambda: (
                {f"layer {row.layer}": np.array(row.gate_entropy_histogram) for row in reading.itertuples()},
                np.linspace(0, 1, 51),
                say(f"gate entropy over its highest value, ln {most}"),
                "share of tokens",
                "",
            ),
            "entropy",
            alt=say("Distribution of gate entropy, per layer"),
        )
        st.caption(
            f"At the right the {info.selector} weighs all selected {many} alike; at the left one {word} has all the "
            f"weight. {info.rows:,} tokens a layer."
        )
    if margins:
        with right:
            st.subheader("Selection margin")
            state.show_figure(
                bias_plots.margin_lines,
                lambda: (reading.loc[reading["layer"].isin(margins), ["layer", "margin_histogram"]],),
                alt="Distribution of the margin, per layer",
            )
            st.caption(
                f"Score of the weakest selected {word} above that of the best rejected one, selection bias included. "
                f"At the left a small change of the query would swap {many}. {info.rows:,} tokens a layer and gate "
                "head."
            )
    left, right = st.columns([1, 1], gap="medium", vertical_alignment="center")
    with left:
        st.subheader(say("Gate score and read"))
        state.show_figure(
            bias_plots.entropy_dots,
            lambda: (
                reading,
                chosen[0] if len(set(chosen)) == 1 else chosen,
                (f"{tables.score_name(info)} shares", f"all selected {many} alike"),
            ),
            alt=say("Entropy of gate shares and read shares, per layer"),
        )
    right.caption(
        f"Where the orange square lies below the blue dot, the {info.reader} is more selective than the "
        f"{info.selector}. Bars are standard errors over documents. {d}"
    )
