"""The bank in two dimensions: colours, search, a lasso, and the entries inside it."""

import numpy as np
import streamlit as st

from app import address, outside, state
from app.address import choice, corners, flag, integer, words
from app.components.scatter import scatter, tip
from app.parts import tables
from memscope.base.words import first_upper
from memscope.query.bank_table import entry_rows
from memscope.query.map_points import DENSE, inside, known_colors
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
    outside.code(f"memscope map {info.run} {recording.path}", language="bash")
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
view.write()


def choice_in_words() -> str:
    """The spaces that were tried and where they were measured; empty where the space was named."""
    tried = [space["feature"] for space in said["chosen_among"] if "gain" in space]
    if not tried:
        return ""
    apart = said["measured_on"]["apart_from_trial"]
    measured = f"measured on {many} that did not take part in the choice" if apart else f"measured on the same {many}"
    return f", the best of {len(tried)} spaces ({', '.join(tried)}; {measured})"


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


if not said["trusted"]:
    st.warning(reworded(info, " ".join([NOT_TRUSTED, *said["why_not"]])), icon=":material/warning:")

box, color, which, number = st.columns([3, 2, 1.7, 1.9], vertical_alignment="bottom")
box.text_input("Search", icon=":material/search:", placeholder="words, or a number", **view.widget("q"))
color.selectbox("Colour by", colors, format_func=str.capitalize, **view.widget("by"))
which.selectbox("Show", SHOWN, **view.widget("show"))
tables.entry_box(view, info, first_upper(word), number)

found = state.found_entries(search) if search else None
dark = st.context.theme.type == "dark"
points = state.points_of_map(by, search, shown, entry, tuple(lasso), dark, every)


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


show_map()
if len(places) >= DENSE:
    st.toggle("Draw every point", **view.widget("every"))
    st.caption(
        f"A map of {DENSE:,} points or more shows density first: one point for every small square with {many}, "
        f"stronger where there are more. Search, lasso and table always cover all {many}. Drawing every point takes "
        "some seconds without a graphics card."
    )
pca = said["yardstick"]["pca"]
st.caption(
    f"One point per {word}, {len(places):,} in all; near points are alike in {said['feature']}{choice_in_words()}. "
    f"Trustworthiness {said['trustworthiness']:.2f} (a PCA plane has {pca['trustworthiness']:.2f}, a random map 0.50). "
    f"It keeps {said['neighbours_kept']:.1%} of nearest neighbours (PCA plane {pca['neighbours_kept']:.1%}). "
    "Distances between far groups mean nothing. Drag to move, wheel to zoom, Lasso or Shift and drag to select, "
    f"click for one {word}. Usage is over D = {recording.total_selections():,} selections."
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

if not lasso and found is None:
    st.caption(f"Draw a lasso or search to list {many} in a table here.")
    st.stop()
chosen = found if found is not None else places["entry"].to_numpy().astype(np.int64)
if lasso:
    chosen = np.intersect1d(chosen, inside(state.unit_places(), lasso))
chosen = chosen[np.argsort(-state.numbers()["count"].to_numpy()[chosen], kind="stable")]
left, right, clear = st.columns([5, 2, 1.6], vertical_alignment="center")
left.markdown(
    f"**{len(chosen):,} {many}** " + " ".join(["found"] * (found is not None) + ["inside the lasso"] * bool(lasso))
)
numbers = state.numbers()  # the download runs outside of the session
with right:
    state.download("Save as CSV", lambda: entry_rows(recording, numbers, chosen[:10_000].tolist()), "map-entries")
if lasso:
    clear.button("Drop the lasso", on_click=lambda: view.put(lasso=[]))
if not len(chosen):
    st.info(f"No {word} matches.", icon=":material/search_off:")
    st.stop()
table = entry_rows(recording, state.numbers(), chosen[:MOST].tolist())
tables.entry_table(
    table,
    [{"entry": entry} for entry in table["entry"].tolist()],
    key="inside",
    height=400,
    column_order=["entry", "count", "layers_used", "top_layer", "drift", "sentence", "decoded", "title"],
    column_config=tables.entry_columns(info),
    alt=f"{first_upper(many)} that were selected on the map",
)
st.caption(
    f"The {len(table):,} most selected of them; the CSV holds the first 10,000. Select a row to open its {word}."
)
