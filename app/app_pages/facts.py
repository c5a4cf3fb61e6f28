"""The fact audit: does a question select, read and need the entries that started from its fact?"""

import streamlit as st

from app import address, outside, state
from app.address import choice
from memscope.causal.fact_tables import load_audit
from memscope.report import facts as fact_report

PARTS = ("recall", "ablation", "predicates", "facts")
_NUMBER = st.column_config.NumberColumn
_FORMATS = {"%": "percent", "d": "localized"}

recording = state.recording()
info = recording.info

st.title("Facts")
if any(site.kind == "text" for site in info.sites):
    st.write(
        "Facts of a model that reads sentences are asked on the command line: is a sentence that states the fact "
        "selected, are the words of the answer read, and does the answer need them?"
    )
    outside.code(f"memscope facts {info.run} FACTS --recording {recording.path}", language="bash")
    asked = fact_report.load_sentence_facts(recording.path)
    if asked is not None:
        outside.table(asked, alt="Facts that were asked, with 95% intervals")
        st.caption(
            "Shares and means over facts, with 95% intervals. Selected: a stating sentence was. Answered: the answer "
            "is the likeliest next token. On object: share of the read on words of the answer, of answered facts. "
            "Fall: of the answer's logit without the stating sentences; control: without as many others."
        )
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
    outside.code(f"memscope facts {info.run} FACTS --recording {recording.path}", language="bash")
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
