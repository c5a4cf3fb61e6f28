"""The whole bank: search and sort it, open one entry."""

from functools import partial

import streamlit as st

from app import address, outside, state
from app.address import choice, integer, words
from app.parts import causal, entry_view, tables
from memscope.base.words import first_upper
from memscope.query.bank_table import STATES, entry_rows, known_fields, known_sorts
from memscope.report.words import reworded
from memscope.stats.usage import HOT_FACTOR

PAGE = 50  # rows of one page of the table
ORDERS = ("largest first", "smallest first")
ALL = "all"

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
page = view.field("page", integer(1, 1 + -(-info.knowledge_num // PAGE), 1, "page"))
entry = view.field("entry", integer(0, info.knowledge_num, None, "entry"))
layer = view.field("layer", choice([ALL, *info.layers], name="layer"))


def show_table() -> None:
    view.put(page=1, entry=None)


def open_row() -> None:
    rows = st.session_state["table"].selection.rows
    if rows:
        view.put(entry=int(st.session_state["_entries"][rows[0]]))


box, where, by, direction, which, number = st.columns([3.0, 1.9, 1.9, 1.6, 1.6, 2.0], vertical_alignment="bottom")
box.text_input("Search", icon=":material/search:", placeholder="words, or a number", **view.widget("q", show_table))
where.selectbox("In", fields, **view.widget("in", show_table))
by.selectbox("Sort by", sorts, format_func=partial(tables.sort_label, info), **view.widget("sort", show_table))
direction.selectbox("Order", ORDERS, **view.widget("order", show_table))
which.selectbox("Show", STATES, **view.widget("show", show_table))
tables.entry_box(view, info, f"Open {word}", number)

if entry is None:
    found = state.entry_order(search, field, kind, sort, order == ORDERS[0])
    pages = max(1, -(-len(found) // PAGE))
    page = min(page, pages)
    view.write()
    bar, note = st.columns([3, 2], vertical_alignment="center")
    with bar:
        st.pagination(
            pages, default=page, key=f"page{page}", on_change=lambda: view.put(page=st.session_state[f"page{page}"])
        )
    note.caption(f"{len(found):,} of {info.knowledge_num:,} {many}; select a row to open its {word}.")
    if not len(found):
        st.info(f"No {word} holds all of these words.", icon=":material/search_off:")
        st.stop()
    table = entry_rows(recording, state.numbers(), found[(page - 1) * PAGE : page * PAGE].tolist())
    st.session_state["_entries"] = table["entry"].tolist()
    outside.table(
        tables.named(info, table),
        hide_index=True,
        height=610,
        key="table",
        on_select=open_row,
        selection_mode="single-row",
        column_order=[
            "entry",
            "count",
            "layers_used",
            "top_layer",
            "read_per_selection",
            "signed_per_selection",
            "drift",
            "kept",
            "readability",
            "sentence",
            "decoded",
            "title",
            "words",
            "predicate",
        ],
        column_config=tables.entry_columns(info),
        alt=reworded(info, "Entries of the bank"),
    )
    drift = (
        "Drift is 1 - cosine to the initial entry; kept is the share of its nearest tokens that stand in the init "
        "sentence. "
    )
    st.caption(
        f"Selections are sums over all layers, of D = {d:,}. {drift * info.has('drift')}Hot {many} have more than "
        f"{HOT_FACTOR} times the even share, {d / info.knowledge_num:,.1f} selections."
    )
    st.stop()

view.write()
card = state.answer(type(recording).entry, entry)
back, light, _ = st.columns([1.5, 2.2, 6], vertical_alignment="center")
back.button(f"All {many}", icon=":material/arrow_back:", on_click=lambda: view.put(entry=None))
if light.button("Light up in a text", icon=":material/lightbulb:", help=f"Colour the last text by this {word}."):
    address.go("prompts", **{**st.session_state["_views"].get("prompts", {}), "by": "one entry", "entry": entry})
st.subheader(first_upper(info.label(entry)))
entry_view.header(recording, card)

used = [int(one) for one in card.usage.loc[card.usage["count"] > 0, "layer"]]
left, right = st.columns([6, 5], gap="large")
with left:
    st.markdown("**Where it fires**")
    options = [ALL, *used] if layer in (ALL, *used) else [ALL, layer, *used]
    if len(used) > 1 or not info.private:
        st.segmented_control("Layer", options, required=True, label_visibility="collapsed", **view.widget("layer"))
    with st.container(height=640, border=False):
        entry_view.contexts(recording, entry, layer if layer in used else None)
with right:
    entry_view.decodings(recording, card)
if card.sentence is not None and causal.can_retype(info, entry):
    st.subheader("Read it otherwise")
    causal.retype(entry, card.sentence)
st.subheader("Usage")
entry_view.usage(recording, card)
entry_view.firing(recording, entry)
left, right = st.columns([3, 1.2], gap="large")
with left:
    st.markdown("**Selected together with**")
    entry_view.neighbours(recording, entry, layer if layer in used else None)
with right:
    entry_view.map_position(recording, entry)
