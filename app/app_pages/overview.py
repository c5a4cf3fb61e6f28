"""The overview: the recording, its training, and how healthy the memory is."""

import streamlit as st

from app import address, live, outside, recordings, state
from app.address import choice
from app.parts import overview, tables, training
from app.parts.report import page as report
from memscope.report.findings import find
from memscope.report.health import health
from memscope.report.plots import usage as plots
from memscope.report.words import selections, shared_by

RUNS = "runs not recorded"
PARTS = ("health", "model", "training", "recordings", RUNS)
LEVELS = {
    "good": (st.success, ":material/check_circle:"),
    "watch": (st.info, ":material/info:"),
    "bad": (st.warning, ":material/warning:"),
}

recording = state.recording()
info, run = recording.info, recording.run_summary
memory, words = info.kind == "memory", info.word(2)
waiting = training.runs()
there = {"training": "config.yaml" in info.files, RUNS: bool(waiting)}
parts = [name for name in PARTS if there.get(name, True)]

st.title("Overview")
view = address.View("overview")
part = view.field("part", choice(parts, name="part"))
view.write()

if live.can_type(info):
    overview.text_box(info)
with st.container(horizontal=True):
    overview.number("Recorded tokens", f"{info.rows:,}", "Tokens of the corpus that went through the model.")
    overview.number("Selections (D)", f"{recording.total_selections():,}", f"One token, layer and {info.word()} each.")
    if memory:
        overview.number("Bank entries (N)", f"{info.knowledge_num:,}", f"Rows of the memory, {shared_by(info)}.")
    else:
        overview.number(f"{words.capitalize()} (N)", f"{info.knowledge_num:,}", f"{shared_by(info).capitalize()}.")
    if memory or "parameters" in run:
        overview.number("Parameters", f"{run['parameters']:,}" if run else "unknown")
    if info.predictions:
        overview.number("Loss on this corpus", f"{recording.census.loss:.3f}", "Nats per token.")

with st.container(horizontal=True, horizontal_alignment="distribute"):
    st.segmented_control(
        "Part", parts, required=True, format_func=str.capitalize, label_visibility="collapsed", **view.widget("part")
    )
    report.to_report(recording)
if part == "health":
    st.subheader("Is the memory healthy?" if memory else f"Are the {words} in use?")
    left, right = st.columns(2, gap="medium")
    for number, flag in enumerate(state.answer(health)):
        show, icon = LEVELS[flag.level]
        with (left, right)[number % 2]:
            show(flag.text, icon=icon)
    st.caption(
        "A tick: healthy. A circle with i: worth a look. A triangle: much of "
        f"{'the memory' if memory else 'it'} is unused. Each line gives the number of selections behind it; "
        "docs/reference/metrics.md defines every number."
    )
    overview.example(recording)
    st.subheader("Findings")
    for finding in state.answer(find):
        with st.expander(finding.question):
            outside.text(finding.answer)
    st.subheader("Usage per layer")
    tables.evenness_table(recording.evenness())
    st.caption(
        f"Each layer made {selections(recording)} selections. The columns named even hold the values of even "
        f"selection, which chooses every {info.word()} with equal probability. The further a layer is from them, the "
        f"more its {info.selector} is biased."
    )

elif part == "model":
    overview.model_card(recording)

elif part == "training":
    curve = recording.training_curve()
    if curve.empty:
        st.info("This run has no training log (metrics.jsonl). Runs trained with memscope have one:")
        outside.code("memscope train demo --out runs/NAME", language="bash")
        st.stop()
    state.show_figure(plots.training_curve, lambda: (curve,), alt="Loss and entries used over training steps")
    st.caption(
        "Left: loss on training batches and on validation documents. Right: how many entries the validation tokens "
        "selected at least once; a falling line means that the gate stops selecting entries."
    )
    overview.gate_over_time(curve)
    overview.checkpoints(recording)

elif part == "recordings":
    recordings.all_recordings()

else:
    training.follow(waiting)
