"""The whole bank: search and sort it, open one entry."""

import pandas as pd
import streamlit as st

from app import columns, state
from app.token_view import context_view, visible
from memscope.query import SORT_COLUMNS

PAGE = 50  # rows of one page of the table


def open_row() -> None:
    rows = st.session_state["table"].selection.rows
    if rows:
        st.session_state["entry"] = int(st.session_state["_entries"][rows[0]])


def close_entry() -> None:
    st.session_state["entry"] = None


def show_table() -> None:
    st.session_state["page"] = 1
    close_entry()


recording = state.recording()
info = recording.info
selections = info.rows * len(info.layers) * info.selected

st.title("Entries")
state.check_number("entry", info.knowledge_num)
search_box, sort_box, order_box, open_box = st.columns([4, 2, 2, 2], vertical_alignment="bottom")
search = search_box.text_input(
    "Search",
    key="q",
    bind="query-params",
    icon=":material/search:",
    placeholder="a number, or words of the sentence or its triples",
    on_change=show_table,
)
sort = sort_box.selectbox(
    "Sort by",
    SORT_COLUMNS,
    index=SORT_COLUMNS.index("count"),
    format_func=lambda name: columns.SORT_LABELS[name],
    key="sort",
    bind="query-params",
    on_change=show_table,
)
order = order_box.selectbox(
    "Order", ["largest first", "smallest first"], key="order", bind="query-params", on_change=show_table
)
entry = open_box.number_input(
    "Open entry", 0, info.knowledge_num - 1, value=None, step=1, key="entry", bind="query-params", placeholder="number"
)

if entry is None:
    found = recording.count_entries(search)
    pages = max(1, -(-found // PAGE))
    if st.session_state.get("page", 1) > pages:
        st.session_state["page"] = 1
    bar, note = st.columns([3, 2], vertical_alignment="center")
    with bar:
        page = st.pagination(pages, key="page", bind="query-params")
    note.caption(f"{found:,} of {info.knowledge_num:,} entries; select a row to open its entry.")
    if not found:
        st.info("No entry holds all of these words.", icon=":material/search_off:")
        st.stop()
    table = recording.entries(search, sort, order == "largest first", PAGE, (page - 1) * PAGE)
    st.session_state["_entries"] = table["entry"].tolist()
    st.dataframe(
        table,
        hide_index=True,
        height=560,
        key="table",
        on_select=open_row,
        selection_mode="single-row",
        column_order=["entry", "count", "layers_used", "gate_sum", "read_sum", "drift", "kept", "sentence"],
        column_config=columns.ENTRY,
        alt="Entries of the bank",
    )
    st.caption(
        f"Selections, gate and read are sums over all layers, of D = {selections:,} selections. Drift is 1 - cosine "
        "to the initial entry; kept is the share of its nearest tokens that stand in the init sentence."
    )
    st.stop()

card = recording.entry(entry)
st.button("All entries", icon=":material/arrow_back:", on_click=close_entry)
st.subheader(f"Entry {entry}")
if card.sentence is None:
    st.caption("This entry started from random numbers, so it has no sentence.")
else:
    st.text(card.sentence)
with st.container(horizontal=True):
    st.metric("Selections", f"{int(card.usage['count'].sum()):,}", border=True, height="stretch")
    st.metric(
        "Layers that select it",
        f"{int((card.usage['count'] > 0).sum())} of {len(info.layers)}",
        border=True,
        height="stretch",
    )
    st.metric(
        "Drift",
        f"{card.drift:.4f}",
        border=True,
        height="stretch",
        help="1 - cosine between the entry at the start and now.",
    )
    if card.kept is not None and card.kept_at_init is not None:
        st.metric(
            "Kept",
            f"{card.kept:.0%}",
            f"{card.kept_at_init:.0%} at the start",
            delta_color="off",
            delta_arrow="off",
            border=True,
            height="stretch",
            help="Share of the nearest tokens that stand in the init sentence.",
        )

left, right = st.columns(2)
with left:
    st.markdown("**Usage per layer**")
    st.dataframe(
        card.usage.assign(times_even=card.usage["share"] * info.knowledge_num),
        hide_index=True,
        column_order=["layer", "count", "share", "times_even", "gate_sum", "read_sum"],
        column_config=columns.ENTRY,
        alt="Usage of this entry per layer",
    )
    st.caption(
        f"Of {info.rows * info.selected:,} selections (D) a layer; even selection gives every entry "
        f"{info.rows * info.selected / info.knowledge_num:,.1f}."
    )
    if not card.triples.empty:
        st.markdown("**Triples of the sentence**")
        st.dataframe(card.triples, hide_index=True, alt="Triples that came with the init sentence")
with right:
    st.markdown("**Nearest tokens now**")
    st.dataframe(
        card.nearest.assign(token=card.nearest["token"].map(visible)),
        hide_index=True,
        height=280,
        column_config={
            "cosine": st.column_config.ProgressColumn(format="%.3f", min_value=0, max_value=1),
            "in_sentence": st.column_config.CheckboxColumn("in the init sentence"),
        },
        alt="Tokens nearest to this entry",
    )
    st.caption("By cosine in the space that sentences were initialised in: what the entry says today, as words.")

st.markdown("**Logit lens**")
if card.lens.empty:
    st.caption("No layer selected this entry on this corpus, so there is no lens to show.")
else:
    lens = pd.DataFrame(
        {
            "layer": card.lens["layer"],
            "raised": card.lens["top"].map(lambda tokens: [visible(token) for token in tokens]),
            "lowered": card.lens["bottom"].map(lambda tokens: [visible(token) for token in tokens]),
        }
    )
    st.dataframe(lens, hide_index=True, alt="Tokens that reading this entry raises and lowers, per layer")
    st.caption("Next tokens that become more and less likely when a layer reads this entry alone.")

st.markdown("**Where it fires**")
contexts = recording.contexts(entry)
if contexts.empty:
    st.caption("Nowhere: no token of this corpus selected it.")
else:
    layers = ["all", *(int(layer) for layer in sorted(contexts["layer"].unique()))]
    layer = st.segmented_control("Layer", layers, default="all", required=True, key="layer", bind="query-params")
    shown = contexts if layer == "all" else contexts[contexts["layer"] == layer]
    clicked = context_view(shown, key="contexts")
    st.caption(
        "Tokens with the highest gate scores for this entry, at most 8 a layer. Click one to see all it selected."
    )
    if clicked is not None and 0 <= clicked < len(shown):
        place = shown.iloc[clicked]
        target = state.link_params(doc=int(place["doc"]), token=int(place["pos"]))
        st.switch_page("app_pages/prompts.py", query_params=target)
