"""Parts of the compare page: the two recordings, their metrics, likeness of usage, one prompt under both."""

import numpy as np
import pandas as pd
import streamlit as st

from app import live, outside, state
from app.address import View
from app.components.tokens import token_view
from app.parts import tables
from app.parts.texts.typed import EXAMPLE
from memscope.base.errors import InputError
from memscope.base.words import span, visible
from memscope.query.fired import shared_by_layer, shared_selections
from memscope.query.recording import Recording
from memscope.report.compare.findings import numbers_mean
from memscope.report.compare.pairs import changed_entries, likeness_by_layer, paired_metrics
from memscope.report.words import selections

_METRICS = {
    "coverage": ("coverage", "percent"),
    "kl_to_uniform": ("KL", "%.3f"),
    "gini": ("Gini", "%.3f"),
    "top50": ("top 50%", "localized"),
    "dead": ("dead", "localized"),
    "effective_entries_read": ("eff. entries", "%.2f"),
    "unread_share": ("unread", "percent"),
}
_MOST_READ = 3
METRIC_CONFIG = {
    f"{metric}_{side}": st.column_config.NumberColumn(
        f"{name} {side.upper()}" if side != "change" else "change", format=form
    )
    for metric, (name, form) in _METRICS.items()
    for side in ("a", "b", "change")
}
CHANGE_CONFIG = {
    "count_a": st.column_config.NumberColumn("selections A", format="localized"),
    "count_b": st.column_config.NumberColumn("selections B", format="localized"),
    "share_a": st.column_config.NumberColumn("share A", format="%.4f%%"),
    "share_b": st.column_config.NumberColumn("share B", format="%.4f%%"),
    "change": st.column_config.NumberColumn("B - A", format="%+.4f%%"),
    "drift_a": st.column_config.NumberColumn("drift A", format="%.4f"),
    "drift_b": st.column_config.NumberColumn("drift B", format="%.4f"),
}


def open_other(name: str) -> Recording:
    """The recording to compare with; stops the page where it cannot be opened."""
    try:
        return state.recording(name)
    except (InputError, OSError) as error:
        st.error("The other recording cannot be opened.", icon=":material/error:")
        outside.code(str(error), language=None, wrap_lines=True)
        st.stop()
        raise


def sides(a: Recording, b: Recording, name_a: str, name_b: str) -> None:
    """Show both recordings, and what limits their comparison."""
    many = a.info.word(2) if a.info.kind == b.info.kind else "entries"
    rows = [
        {
            "": letter,
            "recording": name,
            "run": r.info.run_name,
            "step": "newest" if r.info.step is None else f"{r.info.step:,}",
            "corpus": r.info.corpus_name,
            "tokens": r.info.rows,
            many: r.info.knowledge_num,
            "loss": r.census.loss,
        }
        for letter, name, r in (("A", name_a, a), ("B", name_b, b))
    ]
    outside.table(
        pd.DataFrame(rows).dropna(axis=1, how="all"),
        hide_index=True,
        height="content",
        column_config={name: st.column_config.NumberColumn(format="localized") for name in ("tokens", many)}
        | {"loss": st.column_config.NumberColumn("loss, nats", format="%.3f")},
        alt="The two recordings",
    )
    notes = []
    if a.info.fingerprint == b.info.fingerprint:
        notes.append("Both recordings come from the same model file.")
    if a.info.corpus_sha256 != b.info.corpus_sha256:
        notes.append("The corpora differ, so part of every difference comes from the text.")
    if a.info.rows != b.info.rows:
        notes.append("More tokens use more of a bank: compare recordings of equally many to see what a model changed.")
    if a.info.layers != b.info.layers:
        memory = "memory " * (a.info.kind == b.info.kind == "memory")
        notes.append(f"Their {memory}layers differ; only those in both are compared.")
    if a.info.kind != b.info.kind:
        notes.append(f"A selects {a.info.word(2)}, B {b.info.word(2)}: their numbers name different things.")
    elif a.info.kind != "memory" and a.info.fingerprint != b.info.fingerprint:
        notes.append(numbers_mean(a.info))
    if notes:
        st.caption(" ".join(notes))


def metric_table(a: Recording, b: Recording) -> None:
    """Metrics of both and their change."""
    outside.table(
        paired_metrics(a, b, list(_METRICS)),
        hide_index=True,
        height="content",
        column_config=METRIC_CONFIG,
        alt="Metrics of A and B, per layer",
    )


def likeness(a: Recording, b: Recording, name: str) -> None:
    """How alike both use the bank; measured on request."""
    st.subheader("How alike is usage?")
    if [(site.layer, site.kind, site.own) for site in a.info.sites] != [
        (site.layer, site.kind, site.own) for site in b.info.sites
    ]:
        memory = "Usage is compared only between banks with the same size, the same groups and the same memory layers."
        other = f"Usage is compared only between equally many {a.info.word(2)} in the same layers."
        st.info(memory if a.info.kind == "memory" else other)
        return
    kept = st.session_state.setdefault("_likeness", {})
    key = (*st.session_state["_open"], name, b.info.fingerprint)
    if key not in kept:
        st.caption("Divergence, overlap and rank correlation, each beside its value for two halves of one recording.")
        if not st.button("Measure it", icon=":material/play_arrow:"):
            return
        rows = []
        with st.status("Measuring layer by layer ...", expanded=True) as status:
            st.button("Stop", icon=":material/stop_circle:", key="stop")  # any click ends this run of the page
            bar = st.progress(0.0)
            for row in likeness_by_layer(a, b):
                rows.append(row)
                bar.progress(len(rows) / len(a.info.layers), text=f"layer {row['layer']}")
            status.update(label="Measured", state="complete", expanded=False)
        kept[key] = pd.DataFrame(rows)
    outside.table(
        kept[key],
        hide_index=True,
        height="content",
        column_config={
            column: st.column_config.NumberColumn(
                "two halves of one" if column.startswith("halves") else label, format="%.3f"
            )
            for column, label in {
                "jensen_shannon": "Jensen-Shannon, nats",
                "halves_jensen_shannon": "",
                "jaccard": "Jaccard",
                "halves_jaccard": "",
                "rank_correlation": "rank correlation",
                "halves_rank_correlation": "",
            }.items()
        },
        alt="Likeness of usage per layer",
    )
    st.caption(
        "Equal usage gives 0 nats, a Jaccard index of 1 and a correlation of 1. The columns named two halves compare "
        "the documents of one recording, A or B, whichever differ more: they show how far other text moves a number "
        "(each half has half the selections). Died: at least 10 selections in A, none in B. Woke: none in A, at least "
        f"10 in B. D = {selections(a)} and {selections(b)} selections a layer."
    )


def changed(a: Recording, b: Recording, name: str, layer: int | None) -> pd.DataFrame:
    """``changed_entries`` with shares in percent."""
    table = state.answer_two(changed_entries, name, layer)
    for column in ("share_a", "share_b", "change"):
        table[column] *= 100
    return table


def same_prompt(view: View, a: Recording, b: Recording, name: str, text: str, token: int | None) -> None:
    """One text under both models, and what they make of a token: the last one if none is chosen."""
    with st.form("prompt", border=False):
        st.text_area("Text to read under both", key=view.key("text"), height=80, placeholder=EXAMPLE)
        st.form_submit_button("Read it", type="primary", on_click=lambda: view.put(token=None))
    live.expect_text()
    if not text:
        st.caption("Type a text: both models read it, and you see where they differ.")
        return
    try:
        traces = [live.trace_typed(text), live.trace_typed(text, name)]
    except InputError as error:
        st.warning("The models cannot both read this text.", icon=":material/warning:")
        outside.code(str(error), language=None, wrap_lines=True)
        return
    losses = [traced.trace.tokens["loss"].to_numpy(np.float64) for traced in traces]
    for letter, traced, loss, column in zip("AB", traces, losses, st.columns(2, gap="medium"), strict=True):
        with column:
            at = _place(token, traced.trace.tokens)

            def pick(letter: str = letter) -> None:
                view.put(token=int(st.session_state[f"prompt_{letter}"].clicked))

            token_view(
                traced.trace.tokens,
                loss,
                f"{letter}: loss of predicting the next token, nats",
                at,
                key=f"prompt_{letter}",
                label=f"Tokens under {letter}",
                on_click=pick,
            )
            st.caption(f"Mean loss {np.nanmean(loss):.3f} nats over {np.isfinite(loss).sum():,} tokens.")
            likely = traced.predictions[traced.predictions["pos"] == at]
            outside.table(
                pd.DataFrame(
                    {f"{letter}: next token": likely["text"].map(visible), "probability": likely["probability"]}
                ),
                hide_index=True,
                height="content",
                column_config={
                    "probability": st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1)
                },
                alt=f"Most likely next tokens under {letter}",
            )
    places = [_place(token, traced.trace.tokens) for traced in traces]
    if a.info.knowledge_num == b.info.knowledge_num and a.info.layers == b.info.layers:
        _shared(a, b, shared_selections(traces[0].trace, traces[1].trace, *places))
        return
    st.caption(
        "The banks differ, so a number names different entries in A and B. The entries that each token reads most:"
    )
    for r, traced, pos, column in zip((a, b), traces, places, st.columns(2, gap="medium"), strict=True):
        fired = traced.trace.selections
        fired = fired[(fired["pos"] == pos) & (fired["rank"] < _MOST_READ)]
        sentences = r.sentences(fired["entry"])
        with column:
            outside.table(
                tables.named(r.info, fired.assign(sentence=[sentences[int(entry)] for entry in fired["entry"]])),
                hide_index=True,
                height=320,
                row_height=tables.ROW_HEIGHT,
                column_order=["layer", "entry", "gate", "read", "sentence"],
                column_config=tables.entry_columns(r.info)
                | {kind: st.column_config.NumberColumn(format="%.3g", width=60) for kind in ("gate", "read")},
                alt="Most read entries of this token",
            )


def _place(token: int | None, tokens: pd.DataFrame) -> int:
    last = len(tokens) - 1
    return last if token is None else min(token, last)


def _shared(a: Recording, b: Recording, shared: pd.DataFrame) -> None:
    counts = shared_by_layer(shared, a.info.layers)
    st.markdown("**Entries that both select on this token**")
    outside.table(
        pd.DataFrame({f"layer {layer}": [count] for layer, count in counts.items()}),
        hide_index=True,
        height="content",
        alt="Entries that both models select on this token, per layer",
    )
    sentences = a.sentences(shared["entry"])
    outside.table(
        tables.named(a.info, shared.assign(sentence=[sentences[int(entry)] for entry in shared["entry"]])),
        hide_index=True,
        height=320,
        row_height=tables.ROW_HEIGHT,
        column_order=["layer", "entry", "gate_a", "gate_b", "read_a", "read_b", "sentence"],
        column_config=tables.entry_columns(a.info) | tables.sides(a.info),
        alt="Entries that either model selects on this token",
    )
    st.caption(
        f"A dash: a model does not select the entry. A selects {_selected(a)} entries a layer, B {_selected(b)}. A "
        "number names the same entry only if both banks started alike. Sentences are those of A."
    )


def _selected(recording: Recording) -> str:
    return span([site.selected for site in recording.info.sites], ",")
