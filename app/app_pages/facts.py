"""The fact audit: does a question select, read and need the entries that started from its fact?"""

import streamlit as st

from app import address, outside, state
from app.address import choice
from memscope.base.words import command_line
from memscope.causal.fact_tables import load_audit
from memscope.report import facts as fact_report

PARTS = ("recall", "ablation", "predicates", "facts")
_NUMBER = st.column_config.NumberColumn
_FORMATS = {"%": "percent", "d": "localized"}

recording = state.recording()
info = recording.info

st.title("Facts")
if reading := [site.layer for site in info.sites if site.kind == "text"]:
    asked = fact_report.load_sentence_facts(recording.path)
    if asked is None:
        st.write(
            "Facts that sentences state were not asked yet: is the sentence selected, is it read, and does the answer "
            "need it? This command asks them; then reload the page."
        )
        outside.code(fact_report.ask_command(recording), language="bash")
        st.stop()
    assert asked is not None
    st.write(f"**{fact_report.sentence_finding(asked)}**")
    left, right = st.columns([3, 2], gap="large", vertical_alignment="center")
    with left:
        state.show_figure(
            fact_report.sentence_figure, lambda: (asked,), alt="Shares of facts that are found and answered"
        )
    right.caption(
        "Shares of facts, with 95% intervals over subjects. Held out: the sentences are in the bank, and training made "
        "no statements of them, so the model can only read the answer. Taught: training made statements of them."
    )
    outside.table(
        fact_report.sentence_table(asked),
        hide_index=True,
        height="content",
        column_config={"measure": "share of facts, or mean"},
        alt="Facts that were asked, with 95% intervals",
    )
    st.caption("Of the read, and falls: over facts whose sentence was selected. The search by words uses no training.")
    answers = fact_report.load_sentence_answers(recording.path)
    assert answers is not None
    st.subheader("Facts")
    questions = answers["question"].tolist()

    def read_it() -> None:
        rows = st.session_state["answers"].selection.rows
        if not rows:
            return
        question = questions[rows[0]]
        last = len(recording.tokenizer.prompt(question)) - 1
        address.go("prompts", source="your text", text=question, token=last, layer=reading[0])

    outside.table(
        answers,
        hide_index=True,
        key="answers",
        on_select=read_it,
        selection_mode="single-row",
        column_config={
            "question": st.column_config.TextColumn(width="large"),
            "rank": _NUMBER(format="localized", help="Of the answer's first token; 1 is the likeliest of all."),
            "rank_silent": _NUMBER("without reading", format="localized", help="The same where nothing is read."),
            "selected": st.column_config.CheckboxColumn("sentence selected"),
            "on_object": _NUMBER("read on answer", format="percent"),
            "fall": _NUMBER(format="%+.2f", help="Of the answer's logit without the stating sentences."),
        },
        alt="Every fact that was asked",
    )
    st.caption(f"{len(answers):,} facts. Select a row to read the question token by token.")
    state.download("Facts as CSV", lambda: answers, "facts")
    st.stop()
if info.kind != "memory" or not info.has("starts"):
    st.info(
        f"An audit of facts asks a run that memscope trained about what its entries started from. These {info.word(2)} "
        "have no such start."
    )
    st.stop()
view = address.View("facts")
part = view.field("part", choice(PARTS, name="part"))
view.write()
audit = load_audit(recording.path)
if audit is None:
    st.write(
        "There is no audit yet. A file of facts has one JSON object per line, with uuid, subject, predicate, object "
        "and a template such as “[X] was born in [Y] .”. Entries must have started from sentences that state facts."
    )
    outside.code(command_line("memscope", "facts", info.run, "FACTS", "--recording", recording.path), language="bash")
    st.stop()
assert audit is not None
summary, recall, facts = audit.summary, audit.recall, audit.facts
finding = fact_report.fact_finding(audit)
st.write(f"**{finding.short}** {finding.answer}")
st.segmented_control(
    "Part", PARTS, required=True, format_func=str.capitalize, label_visibility="collapsed", **view.widget("part")
)

if part == "recall":
    state.show_figure(
        fact_report.recall_figure, lambda: (recall,), summary["facts"], alt="Recall per layer beside chance"
    )
    st.caption(
        f"Share of {summary['stated']:,} facts whose question selects an entry that started from a sentence stating "
        "the fact. Even: as many selections, spread evenly over the bank. Shuffled: entries of another fact. Same "
        "predicate: entries of another fact with the same predicate. p: share of shuffles with at least this recall; "
        "many layers are tested, so one small p says little."
    )
    outside.table(
        recall.assign(layer=recall["layer"].map(lambda layer: "any" if layer < 0 else str(layer))),
        hide_index=True,
        height="content",
        column_config={name: _NUMBER(format="percent") for name in ("recall", "even", "shuffled", "same_predicate")},
        alt="Recall and chance per layer",
    )
elif part == "ablation":
    if not summary["ablated"]:
        st.write("No question selects an entry that states its fact, so there was nothing to ablate.")
        st.stop()
    state.show_figure(
        fact_report.drop_figure, lambda: (facts,), summary["facts"], alt="Drop of the answer's logit, two curves"
    )
    st.caption(
        f"{summary['ablated']:,} facts select an entry that states them somewhere in the question. It is ablated "
        "everywhere; the control is another entry of the same question, selected there and elsewhere about as often. "
        "Intervals are over groups of facts that share their entries."
    )
elif part == "predicates":
    outside.table(
        audit.predicates,
        hide_index=True,
        height="content",
        column_config={
            name: _NUMBER(column.label, format=_FORMATS.get(column.form[-1]))
            for name, column in fact_report.PREDICATES.items()
            if column.form
        },
        alt="Facts by predicate",
    )
    st.caption("Stated: facts that an entry started from. Drop: mean fall of the answer's logit without those entries.")
else:
    stated = st.toggle("Only facts whose entry was selected", value=True, key="facts.selected")
    shown = facts[facts["anywhere"]] if stated else facts
    outside.table(
        shown,
        hide_index=True,
        column_order=["subject", "predicate", "object", "rank", "asked", "read", "ablated", "drop_own", "drop_control"],
        alt="Facts",
    )
    st.caption(f"{len(shown):,} of {len(facts):,} facts. Rank is that of the object's first token among all tokens.")
    state.download("Facts as CSV", lambda: facts, "facts")
