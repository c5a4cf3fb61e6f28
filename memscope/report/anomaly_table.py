"""Anomalies as a table of the report, and how they are found in words.

anomaly_table(recording)
"""

from memscope.query.recording import Recording
from memscope.report.anomalies import ERROR_RATE, KINDS, anomalies_in_words
from memscope.report.document import Column, ReportTable, make_table

SHOWN = 5
"""Rows of each kind that the report shows; the file beside it has all."""
_COLUMNS = {
    "kind": Column("Kind"),
    "layer": Column("Layer", ",d"),
    "name": Column("Entry"),
    "text": Column("What stands out", prose=True),
    "tokens": Column("Tokens", ",d"),
    "p": Column("p, corrected", ".1g"),
}

METHOD = (
    "Anomalies need an effect worth naming and a chance that survives correction for everything looked at: in a "
    f"recording without any effect, the chance of a single row is {ERROR_RATE:.0%} at most. Tokens count, however "
    "often one selects an entry. Selections come in bursts, so chance is taken at looks only: one token of an entry in "
    "each stretch of text, twice as long as selection repeats itself, against what is usual in the same document. "
    "Kinds that no chance makes have p = 0. docs/reference/metrics.md defines each kind."
)


def anomaly_table(recording: Recording) -> ReportTable:
    """The anomalies of a recording with the strongest evidence of every kind, in words."""
    found = anomalies_in_words(recording)
    shown = found.groupby("kind", sort=False).head(SHOWN)
    shown = shown.assign(name=["–" if entry < 0 else str(entry) for entry in shown["entry"]])
    counts = ", ".join(f"{count:,} {kind}" for kind, count in found["kind"].value_counts(sort=False).items())
    listed = f"Found: {counts}. Up to {SHOWN} of a kind are shown; anomalies.csv has all." if counts else "None found."
    return make_table(
        "Anomalies",
        f"{listed} In a recording without any effect the chance of a single row is {ERROR_RATE:.0%}. Looked for: "
        f"{', '.join(KINDS)}; {recording.info.rows:,} tokens.",
        shown,
        _COLUMNS,
    )
