"""The part of the gate-bias page that lists anomalies."""

import streamlit as st

from app import state
from app.address import View, choice
from app.parts import tables
from memscope.base.words import first_upper
from memscope.query.recording import Recording
from memscope.report.anomalies import ERROR_RATE, anomalies_in_words, known_kinds

_ALL = "all"
_LINE = 75
"""Characters that a row of one line shows."""


def anomalies(view: View, recording: Recording) -> None:
    """Every anomaly in words; a row opens its entry."""
    table = state.answer(anomalies_in_words)
    counts = table["kind"].value_counts(sort=False)
    kinds = [_ALL, *counts.index]
    kind = view.field("kind", choice(kinds, name="kind of anomaly"))
    view.write()
    st.caption(
        f"{first_upper(recording.info.word(2))} and layers that behave unusually, faults first. In a recording "
        "without any effect the probability of "
        f"even one row here is at most {ERROR_RATE:.0%}. {recording.info.rows:,} tokens."
    )
    if table.empty:
        st.success(
            f"No anomalies. Kinds tested: {', '.join(known_kinds(recording.info))}.", icon=":material/check_circle:"
        )
        return
    st.pills(
        "Kind",
        kinds,
        required=True,
        format_func=lambda name: f"{name} {len(table) if name == _ALL else counts[name]:,}",
        **view.widget("kind"),
    )
    shown = table if kind == _ALL else table[table["kind"] == kind]
    tables.entry_table(
        shown.assign(entry=shown["entry"].where(shown["entry"] >= 0)),
        [{} if row["entry"] < 0 else row for row in shown[["entry", "layer"]].to_dict("records")],
        key="anomalies",
        height="content" if len(shown) <= 15 else 560,
        row_height=tables.ROW_HEIGHT if shown["text"].str.len().max() > _LINE else None,
        column_order=["kind", "layer", "entry", "text", "tokens", "p"],
        column_config={
            "kind": st.column_config.TextColumn(width=90),
            "layer": st.column_config.NumberColumn(format="%d", width=60),
            "entry": tables.entry_columns(recording.info)["entry"],
            "text": st.column_config.TextColumn("what stands out", width=520),
            "tokens": st.column_config.NumberColumn(
                format="localized", help=f"Tokens that select the {recording.info.word()}."
            ),
            "p": st.column_config.NumberColumn(
                "p, corrected", format="%.2g", help="Corrected for all tests; 0 where chance cannot produce it."
            ),
        },
        alt="Anomalies of the recording",
    )
    st.caption(
        f"Select a row to open its {recording.info.word()}. docs/reference/metrics.md defines the kinds and their "
        "thresholds."
    )
    state.download("Anomalies as CSV", lambda: table, "anomalies")
