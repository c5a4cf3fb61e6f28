"""The bank in two dimensions: colours, search, a lasso, and the entries inside it."""

import numpy as np
import streamlit as st

from app import address, outside, state
from app.address import choice, corners, flag, integer, words
from app.components.scatter import legend, scatter, tip
from app.parts import filters, tables
from memscope.base.words import command_line, first_upper
from memscope.query.bank_table import entry_rows
from memscope.query.charts.map_points import DENSE, inside, known_colors, trust_in_words
from memscope.report.words import has_start, reworded

SHOWN = ("all", "used", "never selected")
NOT_TRUSTED = "Do not trust this map: near entries are not alike, and its groups mean nothing."
MOST = 200  # rows of the table under the map

recording = state.recording()
info = recording.info
word, many = info.word(), info.word(2)

st.title("Map")
places = state.map_places()
if places is None:
    st.write("This recording has no map yet. Make one, then reload this page:")
    outside.code(command_line("memscope", "map", info.run, recording.path), language="bash")
    st.stop()
assert places is not None

view = address.View("map")
said = recording.map_info
colors = [one for one in known_colors(info) if said["trusted"] or one != "cluster"]
by = view.field("by", choice(colors, name="colour"))
search = view.field("q", words())
shown = view.field("show", choice(SHOWN, name="kind"))
entry = view.field("entry", integer(0, info.knowledge_num, None, "entry"))
lasso = view.field("lasso", corners())
every = view.field("every", flag())
chosen = filters.fields(view, recording)
view.write()


def choice_in_words() -> str:
    """The spaces that were tried and where they were measured; empty where the space was named."""
    tried = [space["feature"] for space in said["chosen_among"] if "gain" in space]
    if not tried:
        return ""
    apart = said["measured_on"]["apart_from_trial"]
    measured = f"measured on {many} that did not take part in the choice" if apart else f"measured on the same {many}"
    return f"It is the best of {len(tried)} spaces ({', '.join(tried)}; {measured}). "


def start_of(one: int) -> str | None:
    """What an entry started from; none where that is not known."""
    if not has_start(info, one):
        return None
    return recording.sentences([one])[one] or "started from random numbers"


def hover() -> None:
    st.session_state["_hovered"] = int(st.session_state["map"].hovered)


def pick() -> None:
    view.put(entry=int(st.session_state["map"].clicked))
    st.rerun()


def draw_lasso() -> None:
    view.put(lasso=[(int(x), int(y)) for x, y in st.session_state["map"].lassoed])
    st.rerun()


if said["trusted"]:
    st.markdown(trust_in_words(said, many))
else:
    st.warning(reworded(info, " ".join([NOT_TRUSTED, *said["why_not"]])), icon=":material/warning:")

with st.container(horizontal=True, vertical_alignment="bottom"):
    st.text_input("Search", icon=":material/search:", placeholder="words, or a number", width=300, **view.widget("q"))
    st.selectbox("Colour by", colors, format_func=str.capitalize, width=210, **view.widget("by"))
    st.selectbox("Show", SHOWN, width=160, **view.widget("show"))
    tables.entry_box(view, info, first_upper(word), st.container(width=160))

listed = bool(search or chosen or lasso)
among = state.entry_order(search, "everything", shown, "count", True)
found = filters.leave(chosen, among)
dark = st.context.theme.type == "dark"
points = state.points_of_map(by, search, shown, entry, tuple(lasso), dark, every, tuple(sorted(chosen.items())))


@st.fragment
def show_map() -> None:
    """The map alone runs again when a point is hovered."""
    scatter(points, key="map", on_hover=hover, on_click=pick, on_lasso=draw_lasso)
    hovered = st.session_state.get("_hovered")
    if hovered is not None and hovered < info.knowledge_num:
        row = state.numbers().iloc[hovered]
        sentence = start_of(hovered) or ""
        most = f", most in layer {int(row['top_layer'])}" if row["count"] else ""
        tip(hovered, f"{info.label(hovered)} · {int(row['count']):,} selections{most}\n{sentence[:240]}", key="tip")


picture, side = st.columns([3, 1.15], gap="medium")
with picture:
    show_map()
with side:
    legend(state.map_colors(by, dark), key="legend")
    filters.show(view, recording, chosen, among, lambda: None)
if len(places) >= DENSE:
    st.toggle("Draw every point", **view.widget("every"))
    st.caption(
        f"A map of {DENSE:,} points or more shows density first: one point for every small square with {many}, "
        f"stronger where there are more. Search, lasso and table always cover all {many}. Drawing every point takes "
        "some seconds without a graphics card."
    )
st.caption(
    f"One point per {word}, {len(places):,} in all. {choice_in_words()}Drag to move, wheel to zoom, Lasso or Shift and "
    f"drag to select, click for one {word}. Usage is over D = {recording.total_selections():,} selections."
)

if entry is not None:
    with st.container(border=True):
        st.markdown(f"**{first_upper(info.label(entry))}**")
        if (start := start_of(entry)) is not None:
            outside.text(start if recording.sentences([entry])[entry] else "This entry started from random numbers.")
        with st.container(horizontal=True):
            if st.button(f"Open the {word}", icon=":material/open_in_new:"):
                address.go("entries", entry=entry)
            st.button("Clear", on_click=lambda: view.put(entry=None))

if not listed:
    st.caption(f"Draw a lasso, search or filter to list {many} in a table here.")
    st.stop()
if lasso:
    found = found[np.isin(found, inside(state.unit_places(), lasso))]
left, table_, save, clear = st.columns([4, 1.6, 1.6, 1.6], vertical_alignment="center")
what = {"found": search, "that the filter leaves": chosen, "inside the lasso": lasso}
left.markdown(f"**{len(found):,} {many}** " + " ".join(how for how, asked in what.items() if asked))
if (search or chosen) and table_.button("In the whole table", icon=":material/database:"):
    address.go("entries", q=search, **chosen)
numbers = state.numbers()  # the download runs outside of the session
with save:
    state.download("Save as CSV", lambda: entry_rows(recording, numbers, found.tolist()), "map-entries")
if lasso:
    clear.button("Drop the lasso", on_click=lambda: view.put(lasso=[]))
if not len(found):
    st.info(f"No {word} matches.", icon=":material/search_off:")
    st.stop()
table = entry_rows(recording, state.numbers(), found[:MOST].tolist())
tables.entry_table(
    table,
    [{"entry": entry} for entry in table["entry"].tolist()],
    key="inside",
    height=400,
    column_order=["entry", "count", "layers_used", "top_layer", "drift", "sentence", "decoded", "title"],
    column_config=tables.entry_columns(info),
    alt=f"{first_upper(many)} that were selected on the map",
)
st.caption(f"The {len(table):,} most selected of them; the CSV holds all. Select a row to open its {word}.")
