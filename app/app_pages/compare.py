"""Two recordings side by side: metrics, the entries that changed most, the same prompt under both."""

import streamlit as st

from app import address, outside, state
from app.address import choice, integer, words
from app.live import can_type, record_again
from app.parts import compare, figures, tables
from app.parts.texts import typed
from memscope.base.words import first_upper
from memscope.report.compare.pairs import paired_metrics
from memscope.report.words import reworded, selections

PARTS = ("metrics", "entries", "prompt")
ALL = "all"
SHOWN = {
    "coverage": "share of entries used",
    "kl_to_uniform": "KL to uniform, nats",
    "top50": "entries that hold half",
    "unread_share": "unread selections",
}

a = state.recording()
info = a.info
parts = PARTS if can_type(info) else PARTS[:-1]
names = [name for name in state.usable_first() if name != st.session_state["_recording"]]

many = info.word(2)

st.title("Compare")
if not names:
    st.write("There is only one recording here. Record another model or checkpoint into the same folder, then reload.")
    if command := record_again(info, f"{state.root()}/OTHER"):
        outside.code(command, language="bash")
    st.stop()
view = address.View("compare")
part = view.field("part", choice(parts, name="part"))
name = view.field("with", choice(names, name="recording"))
layer = view.field("layer", choice([ALL, *info.layers], name="layer"))
text = view.field("text", words())
token = view.field("token", integer(0, max(1, typed.token_count(a, text)), None, "token"))
view.write()

left, right = st.columns([3, 2], vertical_alignment="bottom")
left.segmented_control(
    "Part",
    parts,
    required=True,
    format_func=lambda one: first_upper(reworded(info, one)),
    label_visibility="collapsed",
    **view.widget("part"),
)
right.selectbox("B: compare with", names, **view.widget("with"))
b = compare.open_other(name)
compare.sides(a, b, st.session_state["_recording"], name)

if part == "metrics":
    state.show_figure(
        figures.paired_metrics,
        lambda: (paired_metrics(a, b, list(SHOWN)), {name: reworded(info, said) for name, said in SHOWN.items()}),
        alt="Coverage, KL to uniform, concentration"
        + f"{' and unread selections' if info.has('reads') else ''} of A and B, per layer",
        of=name,
    )
    d = " and ".join(selections(r) for r in (a, b))
    st.caption(f"Blue dots A, orange squares B, per layer; D = {d} selections a layer.")
    compare.metric_table(a, b)
    st.caption(f"Each metric of A and B, with the change B - A. D = {d} selections a layer.")
    compare.likeness(a, b, name)

elif part == "entries":
    if a.info.knowledge_num != b.info.knowledge_num:
        sizes = "The banks have different sizes" if info.kind == "memory" else f"A and B have not equally many {many}"
        st.info(f"{sizes}, so their {many} cannot be compared one by one.")
        st.stop()
    st.segmented_control("Layer", [ALL, *info.layers], required=True, **view.widget("layer"))
    table = compare.changed(a, b, name, None if layer == ALL else layer)
    tables.entry_table(
        table,
        [{"entry": entry} for entry in table["entry"].tolist()],
        key="changed",
        height=560,
        column_order=["entry", "count_a", "count_b", "share_a", "share_b", "change", "drift_a", "drift_b", "sentence"],
        column_config=tables.entry_columns(info) | compare.CHANGE_CONFIG,
        alt=f"{first_upper(many)} whose share of selections differs most",
    )
    st.caption(
        f"{first_upper(many)} whose share of selections differs most between A and B, largest difference first. "
        f"{'Sentences are those of A. ' * info.has('starts')}D = {selections(a)} and {selections(b)} selections a "
        f"layer. Select a row to open the {info.word()} in A."
    )

else:
    compare.same_prompt(view, a, b, name, text, token)
