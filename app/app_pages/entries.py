"""The whole bank: search and sort it, open one entry."""

from functools import partial

import streamlit as st

from app import address, outside, state
from app.address import choice, integer, words
from app.parts import filters, tables
from app.parts.entry import card, ngrams, page, pins
from memscope.base.words import first_upper
from memscope.query.bank_table import STATES, entry_rows, known_fields, known_sorts
from memscope.report.words import reworded
from memscope.stats.usage import HOT_FACTOR

PAGE = 50  # rows of one page of the table
ORDERS = ("largest first", "smallest first")

recording = state.recording()
info = recording.info
d = recording.total_selections()
word, many = info.word(), info.word(2)
fields, sorts = known_fields(info), known_sorts(info)

st.title(first_upper(many))
view = address.View("entries")
search = view.field("q", words())
field = view.field("in", choice(fields, name="field"))
kind = view.field("show", choice(STATES, name="kind"))
sort = view.field("sort", choice(sorts, name="column"))
order = view.field("order", choice(ORDERS, name="order"))
leaf = view.field("page", integer(1, 1 + -(-info.knowledge_num // PAGE), 1, "page"))
entry = view.field("entry", integer(0, info.knowledge_num, None, "entry"))
layer = view.field("layer", choice([page.ALL, *info.layers], name="layer"))
beside = view.field("beside", integer(0, info.knowledge_num, None, "entry"))
contexts = view.field("contexts", choice([card.BY_SCORE, *[card.BY_READ] * info.has("reads")], name="order"))
view.field("ngrams", choice(ngrams.ORDERS, name="tokens"))
kept = view.field("pins", pins.pins(info.knowledge_num))
chosen = filters.fields(view, recording)
among = state.entry_order(search, field, kind, sort, order == ORDERS[0])
found = filters.leave(chosen, among)


def show_table() -> None:
    view.put(page=1, entry=None)


def open_row() -> None:
    rows = st.session_state["table"].selection.rows
    if rows:
        view.put(entry=int(st.session_state["_entries"][rows[0]]))


with st.container(horizontal=True, vertical_alignment="bottom"):
    st.text_input(
        "Search",
        icon=":material/search:",
        placeholder="words, or a number",
        width=190,
        **view.widget("q", show_table),
    )
    st.selectbox("In", fields, width=135, **view.widget("in", show_table))
    names = partial(tables.sort_label, info)
    st.selectbox("Sort by", sorts, format_func=names, width=135, **view.widget("sort", show_table))
    st.selectbox("Order", ORDERS, width=125, **view.widget("order", show_table))
    st.selectbox("Show", STATES, width=115, **view.widget("show", show_table))
    tables.entry_box(view, info, f"Open {word}", st.container(width=170 if info.private else 115))

if entry is None:
    filters.show(view, recording, chosen, among, show_table)
    pages = max(1, -(-len(found) // PAGE))
    leaf = min(leaf, pages)
    view.write()
    numbers = state.numbers()  # the download runs outside of the session
    with st.container(horizontal=True, vertical_alignment="center"):
        st.pagination(
            pages,
            default=leaf,
            key=f"page{leaf}",
            width="content",
            on_change=lambda: view.put(page=st.session_state[f"page{leaf}"]),
        )
        st.caption(f"{len(found):,} of {info.knowledge_num:,} {many}; select a row to open its {word}.")
        state.download("These as CSV", lambda: entry_rows(recording, numbers, found.tolist()), many)
        if recording.map_info and st.button("On the map", icon=":material/scatter_plot:"):
            address.go("map", **({"q": search} if search else {}), **chosen)
    if not len(found):
        st.info(f"No {word} is left by this search and filter.", icon=":material/search_off:")
        st.stop()
    table = entry_rows(recording, numbers, found[(leaf - 1) * PAGE : leaf * PAGE].tolist())
    st.session_state["_entries"] = table["entry"].tolist()
    outside.table(
        tables.named(info, table),
        hide_index=True,
        height=640,
        row_height=tables.ROW_HEIGHT,
        key="table",
        on_select=open_row,
        selection_mode="single-row",
        column_order=tables.ENTRY_ORDER,
        column_config=tables.entry_columns(info),
        alt=reworded(info, "Entries of the bank"),
    )
    drift = (
        "Drift is 1 - cosine to the initial entry. Still its sentence is the share of its nearest tokens that stand in "
        "the init sentence. "
    )
    st.caption(
        f"Selections are sums over all layers, of D = {d:,}. {drift * info.has('drift')}Hot {many} have more than "
        f"{HOT_FACTOR} times the even share, {d / info.knowledge_num:,.1f} selections."
    )
    pins.pin_list(view, recording, kept)
    st.stop()

view.write()
shown = state.answer(type(recording).entry, entry)
page.way(view, found, entry, many)
if beside is not None:
    page.actions(view, recording, entry, kept)
    page.beside(view, recording, (shown, state.answer(type(recording).entry, beside)), contexts)
    st.stop()
st.subheader(first_upper(info.label(entry)))
page.actions(view, recording, entry, kept)
card.header(recording, shown)
page.alone(view, recording, shown, layer, contexts)
