"""Tables and columns that several pages show, and the box in which a reader names an entry."""

from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import address, outside, state
from app.address import View
from memscope.base.errors import InputError
from memscope.base.words import first_upper
from memscope.recording.info import RecordingInfo
from memscope.recording.sites import read_entries
from memscope.report.words import entry_name, reworded, start_names

_NUMBER, _PLAIN = st.column_config.NumberColumn, "localized"

METRIC_COLUMNS = [
    "layer",
    "coverage",
    "even_coverage",
    "kl_to_uniform",
    "even_kl_to_uniform",
    "gini",
    "even_gini",
    "relative_perplexity",
    "top50",
    "top90",
    "top99",
    "max_violation",
    "dead",
    "hot",
    "by_score_share",
]
"""Columns of ``Recording.evenness()`` in the order that pages show them."""

METRICS = {
    "coverage": _NUMBER(format="percent", help="Share of entries used at least once."),
    "even_coverage": _NUMBER("even", format="percent", help="Coverage of even selection."),
    "kl_to_uniform": _NUMBER("KL", format="%.3f", help="KL divergence of usage from uniform, nats."),
    "even_kl_to_uniform": _NUMBER("even", format="%.3f", help="KL of even selection."),
    "gini": _NUMBER("Gini", format="%.3f", help="0 when all entries are used alike, near 1 when few take all."),
    "even_gini": _NUMBER("even", format="%.3f", help="Gini of even selection."),
    "relative_perplexity": _NUMBER(
        "in effective use",
        format="percent",
        help="exp(entropy of usage) / N: share that, used evenly, would be as mixed.",
    ),
    "top50": _NUMBER("top 50%", format=_PLAIN, help="Most used entries that hold half of the usage."),
    "top90": _NUMBER("top 90%", format=_PLAIN, help="Most used entries that hold 90% of the usage."),
    "top99": _NUMBER("top 99%", format=_PLAIN, help="Most used entries that hold 99% of the usage."),
    "max_violation": _NUMBER("MaxVio", format="%.1f", help="(largest load - mean load) / mean load."),
    "dead": _NUMBER(format=_PLAIN, help="Entries without any usage."),
    "hot": _NUMBER(format=_PLAIN, help="Entries with more than 10 times the even share."),
    "by_score_share": _NUMBER(
        "by scores alone", format="percent", help="Selections that raw scores, without the bias, would have made."
    ),
}

READING = {
    "gate_entropy": _NUMBER("gate entropy", format="%.3f", help="Entropy of a token's gate shares, nats."),
    "gate_top_share": _NUMBER("top gate share", format="percent", help="Largest gate share of a token."),
    "read_entropy": _NUMBER("read entropy", format="%.3f", help="Entropy of a token's read shares, nats."),
    "effective_entries_read": _NUMBER("effective entries", format="%.1f"),
    "read_top_share": _NUMBER("top read share", format="percent", help="Largest read share of a token."),
    "gate_read_rank_correlation": _NUMBER("gate ~ read", format="%.2f", help="Spearman, mean over tokens."),
    "gate_attention_rank_correlation": _NUMBER(
        "gate ~ attention", format="%.2f", help="Spearman of gate score and read weight / gate score."
    ),
    "unread_share": _NUMBER("unread", format="percent", help="Selections with under 1% of their token's read."),
    "unread_share_by_norm": _NUMBER(
        "unread, by norm", format="percent", help="The same, where read heads of different signs do not cancel."
    ),
    "margin": _NUMBER("selection margin", format="%.3f", help="Weakest selected above best rejected, bias included."),
    "score_margin": _NUMBER("in raw scores", format="%.3f", help="Below 0 where the bias passed over a better entry."),
    "silent_tokens": _NUMBER("tokens that read nothing", format="percent"),
}

ENTRY = {
    "entry": _NUMBER(format="%d", width=70),
    "count": _NUMBER("selections", format=_PLAIN),
    "layers_used": _NUMBER("layers", format="%d", width=60, help="Layers that selected it."),
    "top_layer": _NUMBER("most in", format="%d", width=65, help="Layer that selects it most; -1: none."),
    "share": _NUMBER(format="percent", help="Share of the layer's usage."),
    "times_even": _NUMBER("x even", format="%.1f", help="Times the share of even selection."),
    "gate_sum": _NUMBER("gate, sum", format="compact", help="Sum of gate scores."),
    "read_sum": _NUMBER("read, sum", format="compact", help="Sum of absolute read weights."),
    "read_per_selection": _NUMBER("read each", format="%.3f", help="Absolute read weight per selection."),
    "signed_per_selection": _NUMBER(
        "with sign", format="%+.3f", help="Read weight per selection; below 0 the entry is mostly subtracted."
    ),
    "drift": _NUMBER(format="%.4f", width=70, help="1 - cosine to its start."),
    "kept": _NUMBER(
        "still its sentence", format="percent", width=110, help="Nearest tokens that stand in the init sentence."
    ),
    "readability": _NUMBER(
        format="%.2f", width=85, help="How well its typical tokens tell where it fires in other documents: AUROC."
    ),
    "sentence": st.column_config.TextColumn("init sentence", width=400),
    "decoded": st.column_config.TextColumn("says now", help="Nearest tokens.", width=180),
    "title": st.column_config.TextColumn(
        "fires on", help="The tokens it fires on most often, in the layer where it fires most.", width=260
    ),
    "words": st.column_config.TextColumn("set apart by", help="Words of highest TF-IDF that it fires in.", width=150),
}
"""Columns of tables of entries of a memory."""
ROW_HEIGHT = 66
"""Height of rows whose texts wrap, in pixels; Streamlit wraps texts in rows of more than 4 rem."""
ENTRY_ORDER = [
    "entry",
    "count",
    "sentence",
    "title",
    "layers_used",
    "top_layer",
    "read_per_selection",
    "signed_per_selection",
    "drift",
    "kept",
    "readability",
    "decoded",
    "words",
    "predicate",
]
"""Columns of the table of entries, in its order."""


def entry_columns(info: RecordingInfo) -> dict[str, Any]:
    """``ENTRY`` in the words of what selects; entries have their label where layers have entries of their own."""
    score, name = info.score, st.column_config.TextColumn(info.word(), width=150)
    there = {"entry": name, "other": name} if info.private else {"entry": _NUMBER(info.word(), format="%d", width=70)}
    scores = {"gate_sum": _NUMBER(f"{score}, sum", format="compact", help=f"Sum of {score}s.")}
    text = {"sentence": st.column_config.TextColumn(start_names(info), width=400)}
    return ENTRY if info.kind == "memory" else columns_of(info, ENTRY) | scores | text | there


def reading_columns(info: RecordingInfo) -> dict[str, Any]:
    """``READING`` in the words of what selects and reads."""
    if info.kind == "memory":
        return READING
    score = score_name(info)
    against = f"{score} ~ {info.reader}" if info.reader != "read" else f"{score} ~ read / {score}"
    return columns_of(info, READING) | {
        "gate_entropy": _NUMBER(f"{score} entropy", format="%.3f", help=f"Entropy of a token's {score} shares, nats."),
        "gate_top_share": _NUMBER(f"top {score} share", format="percent", help=f"Largest {score} share of a token."),
        "effective_entries_read": _NUMBER(f"effective {info.word(2)}", format="%.1f"),
        "gate_read_rank_correlation": _NUMBER(f"{score} ~ read", format="%.2f", help="Spearman, mean over tokens."),
        "gate_attention_rank_correlation": _NUMBER(
            against, format="%.2f", help=f"Spearman of {score} and read weight / {score}."
        ),
    }


def columns_of(info: RecordingInfo, columns: dict[str, Any]) -> dict[str, Any]:
    """Columns with their help in the words of what selects."""
    said = {name: column.get("help") for name, column in columns.items()}
    return {
        name: column | ({"help": reworded(info, said[name])} if said[name] else {}) for name, column in columns.items()
    }


def named(info: RecordingInfo, table: pd.DataFrame) -> pd.DataFrame:
    """The table with labels for the numbers of entries where layers have entries of their own."""
    there = [column for column in ("entry", "other") if column in table]
    if not info.private:
        return table
    return table.assign(
        **{column: [None if pd.isna(e) or e < 0 else info.label(int(e)) for e in table[column]] for column in there}
    )


def score_name(info: RecordingInfo) -> str:
    """A score in a line of numbers."""
    return "gate" if info.kind == "memory" else info.score


def sides(info: RecordingInfo) -> dict[str, Any]:
    """``SIDES`` in the words of what selects."""
    score = "gate" if info.kind == "memory" else info.score
    return SIDES | {f"gate_{side}": _NUMBER(f"{score} {side.upper()}", format="%.3g") for side in ("a", "b")}


SIDES = {
    f"{kind}_{side}": _NUMBER(f"{kind} {side.upper()}", format="%.3g")
    for kind in ("gate", "read")
    for side in ("a", "b")
}
"""Columns of ``fired.shared_selections``."""

SORT_LABELS = {
    "entry": "number",
    "count": "selections",
    "gate_sum": "gate, sum",
    "read_sum": "read, sum",
    "read_per_selection": "read each",
    "drift": "drift",
    "kept": "still its sentence",
    "readability": "readability",
    "layers_used": "layers",
}
"""Names of ``bank_table.SORTS`` as the table of entries shows them."""


def sort_label(info: RecordingInfo, name: str) -> str:
    """``SORT_LABELS`` in the words of what selects."""
    return f"{info.score}, sum" if name == "gate_sum" and info.kind != "memory" else SORT_LABELS[name]


def entry_box(view: View, info: RecordingInfo, label: str, place: DeltaGenerator, field: str = "entry") -> None:
    """A box that takes an entry as pages write it, or by its number through all layers, and an error line below it.

    Args:
        view: of the page.
        info: of the recording.
        label: of the box.
        place: where to show it.
        field: of the view, which holds the entry.
    """
    key, wrong = f"{view.key(field)}.named", f"{view.key(field)}.wrong"
    entry = st.session_state[view.key(field)]

    def use() -> None:
        try:
            found = read_entries(info.sites, st.session_state[key])[:1]
            if found and found[0] >= info.knowledge_num:
                last = info.label(info.knowledge_num - 1)
                raise InputError(f"there is no {info.word()} {found[0]}; the last one is {last}")
        except InputError as error:
            st.session_state[wrong] = str(error)
            return
        view.put(**{field: found[0] if found else None})

    st.session_state[key] = "" if entry is None else entry_name(info, entry)
    last = info.knowledge_num - 1
    place.text_input(
        label,
        key=key,
        on_change=use,
        placeholder="number",
        help=f"{first_upper(info.label(last))}, or its number through all layers, {last}." if info.private else None,
    )
    if said := st.session_state.pop(wrong, ""):
        outside.code(said, language=None, wrap_lines=True)


def entry_table(table: pd.DataFrame, targets: list[dict[str, int]], *, key: str, **options: Any) -> None:
    """Show a table in which selecting a row opens an entry.

    Args:
        table: the rows.
        targets: values of the address on the page of entries for each row, such as ``{"entry": 3, "layer": 1}``; a row
            with none opens nothing.
        key: name of the widget.
        options: further options of ``st.dataframe``.
    """
    st.session_state[f"_{key}"] = targets

    def open_row() -> None:
        rows = st.session_state[key].selection.rows
        target = st.session_state[f"_{key}"][rows[0]] if rows else {}
        if target:
            address.go("entries", **target)

    shown = named(state.recording().info, table)
    options = {"row_height": ROW_HEIGHT} | options
    outside.table(shown, hide_index=True, key=key, on_select=open_row, selection_mode="single-row", **options)


def evenness_table(metrics: pd.DataFrame) -> None:
    """Show ``Recording.evenness()``, with the values of even selection beside it."""
    outside.table(
        metrics,
        hide_index=True,
        height="content",
        column_order=METRIC_COLUMNS,
        column_config=columns_of(state.recording().info, METRICS),
        alt="Evenness of usage per layer, beside that of even selection",
    )
