"""The tables of the gate-bias report: their columns and captions."""

from collections.abc import Iterator

import pandas as pd

from memscope.base.words import first_upper, interval
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.report.anomalies import ERROR_RATE, anomalies_in_words, known_kinds
from memscope.report.document import Column, ReportTable, make_table
from memscope.report.words import entry_name, selections

_SHOWN_PREFERENCES = 20
_SHOWN_ANOMALIES = 5
"""Rows of each kind that the report shows; the file beside it has all."""

_EVENNESS = {
    "layer": Column("Layer", ",d"),
    "coverage": Column("Coverage", ".2%", "coverage_se"),
    "even_coverage": Column("even", ".1%"),
    "kl_to_uniform": Column("KL to uniform, nats", ".3f", "kl_to_uniform_se"),
    "even_kl_to_uniform": Column("even", ".3f"),
    "relative_perplexity": Column("Relative perplexity", ".4f"),
    "gini": Column("Gini", ".4f", "gini_se"),
    "even_gini": Column("even", ".3f"),
    "top50": Column("Top 50%", ",d", "top50_se"),
    "top90": Column("Top 90%", ",d"),
    "top99": Column("Top 99%", ",d"),
    "max_violation": Column("MaxVio", ",.1f"),
    "dead": Column("Dead", ",d"),
    "hot": Column("Hot", ",d"),
    "by_score_share": Column("By scores alone", ".1%", "by_score_share_se"),
}
_PREFERENCES = {
    "layer": Column("Layer", ",d"),
    "name": Column("Label", prose=True),
    "entries": Column("Entries", ",d"),
    "used": Column("used", ",d"),
    "top_share": Column("Top entry's share", ".0%"),
    "lift": Column("Lift", ".3g"),
    "documents": Column("Other documents, 95%"),
    "shuffled": Column("Shuffled labels, 95%"),
    "q": Column("q", ".2g"),
    "superiority": Column("Superiority", ".3f"),
    "rank_q": Column("Rank q", ".2g"),
    "decision": Column("Significant"),
}
_GROUPS = {
    "group": Column("Group"),
    "selections": Column("D, all layers", ",d"),
    "coverage": Column("Coverage", ".1%", "coverage_se"),
    "even_coverage": Column("even", ".1%"),
    "kl_to_uniform": Column("KL to uniform, nats", ".3f", "kl_to_uniform_se"),
    "even_kl_to_uniform": Column("even", ".3f"),
    "gini": Column("Gini", ".3f", "gini_se"),
    "top50": Column("Top 50%", ",d", "top50_se"),
    "loss": Column("Loss, nats", ".3f"),
}
_READING = {
    "layer": Column("Layer", ",d"),
    "gate_entropy": Column("Gate entropy, nats", ".3f", "gate_entropy_se"),
    "read_entropy": Column("Read entropy, nats", ".3f", "read_entropy_se"),
    "effective_entries_read": Column("Effective entries", ".2f", "effective_entries_read_se"),
    "unread_share": Column("Unread", ".2%", "unread_share_se"),
    "unread_share_by_norm": Column("by norm", ".2%", "unread_share_by_norm_se"),
    "silent_tokens": Column("Silent tokens", ".2%"),
    "gate_attention_rank_correlation": Column(
        "Rank corr. gate, attention", "+.3f", "gate_attention_rank_correlation_se"
    ),
    "gate_read_rank_correlation": Column("Rank corr. gate, read", "+.3f", "gate_read_rank_correlation_se"),
    "margin": Column("Selection margin", ".3f", "margin_se"),
    "score_margin": Column("in raw scores", "+.3f", "score_margin_se"),
}
_ANOMALIES = {
    "kind": Column("Kind"),
    "layer": Column("Layer", ",d"),
    "name": Column("Entry"),
    "text": Column("What stands out", prose=True),
    "tokens": Column("Tokens", ",d"),
    "p": Column("p, corrected", ".1g"),
}


def tables(recording: Recording) -> Iterator[ReportTable]:
    """The tables of the report, in order."""
    yield _evenness(recording)
    if any(recording.info.has(what) for what in ("scores", "reads", "margin")):
        yield _reading(recording)
    if len(preferences := recording.preferences()):
        yield _preferences(preferences, selections(recording))
    if recording.census.groups:
        yield _groups(recording)
    yield _anomalies(recording)


def _evenness(recording: Recording) -> ReportTable:
    by_scores = ""
    if recording.info.has("margin"):
        by_scores = "; the last is the share of selections that raw scores alone, without a bias, would have made"
    return make_table(
        "Evenness of selection",
        "Columns headed “even” give what selection at random with equal chances shows at the same D"
        f"{by_scores}. {_errors(recording)} D = {selections(recording)} selections a layer.",
        recording.evenness(),
        _EVENNESS,
    )


def _errors(recording: Recording) -> str:
    census = recording.census
    return f"± is one standard error over {census.folds} folds of {census.interval_unit}, where it is known."


def _reading(recording: Recording) -> ReportTable:
    info, title = recording.info, first_upper(f"{recording.info.selector} and read")
    means = f"Means over {info.rows:,} tokens."
    if info.has("reads"):
        means = (
            f"Means over the tokens that read anything, of {info.rows:,} tokens. The columns “by norm” and “in raw "
            "scores” are the same as those before them, without the signs of read heads and without the bias."
        )
    else:
        title = first_upper(f"{info.score}s of a token")
    return make_table(
        title, f"{means} {_errors(recording)}", recording.reading_metrics(), _READING | _score_columns(info)
    )


def _score_columns(info: RecordingInfo) -> dict[str, Column]:
    """Columns on scores in the words of what selects."""
    if info.kind == "memory":
        return {}
    named = {"gate_entropy": Column(f"Entropy of {info.score}s, nats", ".3f", "gate_entropy_se")}
    if not info.has("reads"):
        return named | {"gate_top_share": Column("Largest share", ".1%", "gate_top_share_se")}
    for name, against in (("gate_attention", info.reader), ("gate_read", "read")):
        correlation = f"{name}_rank_correlation"
        named[correlation] = Column(f"Rank corr. {info.score}, {against}", "+.3f", f"{correlation}_se")
    return named | {"effective_entries_read": Column(f"Effective {info.word(2)}", ".2f", "effective_entries_read_se")}


def _preferences(preferences: pd.DataFrame, d: str) -> ReportTable:
    by_p = preferences.loc[preferences[["p", "rank_p"]].min(axis=1).sort_values(kind="stable").index]
    table = make_table(
        "Preferences",
        f"The {min(_SHOWN_PREFERENCES, len(by_p))} labels and layers of {len(by_p):,} with the smallest p-values; "
        "preferences.csv has all. 95% over other documents; shuffled: 95% of the lifts that shuffled labels reach. "
        "Superiority: chance that an entry with the label is selected more often than one without. q: p adjusted "
        f"for all {2 * len(by_p):,} tests. D = {d} selections a layer.",
        _in_words(by_p.head(_SHOWN_PREFERENCES)),
        _PREFERENCES,
    )
    return table._replace(folded=not preferences[["significant", "rank_significant"]].to_numpy().any())


def _in_words(preferences: pd.DataFrame) -> pd.DataFrame:
    """Preferences with intervals, label and decision as text."""

    def ends(low: float, high: float) -> str | None:
        return None if pd.isna(low) else interval(low, high)

    return preferences.assign(
        name=[f"{row.attribute}: {row.label}" for row in preferences.itertuples()],
        documents=[ends(row.low, row.high) for row in preferences.itertuples()],
        shuffled=[ends(row.chance_low, row.chance_high) for row in preferences.itertuples()],
        decision=[
            " and ".join(name for name, shown in (("lift", row.significant), ("ranks", row.rank_significant)) if shown)
            or "no"
            for row in preferences.itertuples()
        ],
    )


def _groups(recording: Recording) -> ReportTable:
    rows = [
        {"group": name, **dict(group.all_layers.by_count)}
        | ({"loss": group.layers[0].reading.loss} if recording.info.predictions else {})
        for name, group in recording.census.groups.items()
    ]
    return make_table(
        "Groups of documents",
        "All layers together. Groups differ in D, and these metrics depend on it: compare with “even”. "
        f"{_errors(recording)}",
        pd.DataFrame(rows),
        _GROUPS,
    )


def _anomalies(recording: Recording) -> ReportTable:
    """The anomalies of a recording with the strongest evidence of every kind, in words."""
    anomalies = anomalies_in_words(recording)
    shown = anomalies.groupby("kind", sort=False).head(_SHOWN_ANOMALIES)
    info = recording.info
    shown = shown.assign(name=["–" if entry < 0 else entry_name(info, entry) for entry in shown["entry"]])
    counts = ", ".join(f"{count:,} {kind}" for kind, count in anomalies["kind"].value_counts(sort=False).items())
    listed = "None found."
    if counts:
        listed = f"Found: {counts}. Up to {_SHOWN_ANOMALIES} of a kind are shown; anomalies.csv has all."
    return make_table(
        "Anomalies",
        f"{listed} In a recording without any effect the chance of a single row is {ERROR_RATE:.0%}. Looked for: "
        f"{', '.join(known_kinds(info))}; {info.rows:,} tokens.",
        shown,
        _ANOMALIES | {"name": Column(first_upper(info.word()))},
    )
