"""The fact audit as figures, tables and one finding: what a report or a page shows of ``fact_tables.FactAudit``.

audit = load_audit(recording.path)
recall_figure(audit.recall), drop_figure(audit.facts)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from memscope.base.files import read_json
from memscope.causal.fact_tables import ANY, FactAudit, load_audit
from memscope.report.document import Column, ReportFigure, ReportTable, make_table
from memscope.report.findings import Finding
from memscope.report.plots.style import GREEN, ORANGE, PERCENT, blue, ink, legend, panel, panels

PLACES = {"asked": "at the asked token", "anywhere": "anywhere in the question"}
PREDICATES = {
    "predicate": Column("Predicate"),
    "facts": Column("Facts", ",d"),
    "stated": Column("stated", ",d"),
    "recall_asked": Column("Recall, asked token", ".2%"),
    "recall_anywhere": Column("in the question", ".2%"),
    "median_rank": Column("Median rank", ",.0f"),
    "top10": Column("Top 10", ".1%"),
    "ablated": Column("Ablated", ",d"),
    "drop_own": Column("Drop", "+.4f"),
    "drop_control": Column("control", "+.4f"),
}


def recall_figure(recall: pd.DataFrame, *, dark: bool = False) -> Figure:
    """Recall per layer beside three kinds of chance, at the asked token and in the question."""
    figure, every = panels(2, dark)
    marks = (("even", ink(dark), "_"), ("shuffled", ORANGE, "s"), ("same_predicate", GREEN, "D"))
    for axes, (place, words) in zip(every, PLACES.items(), strict=True):
        rows = recall[recall["place"] == place]
        at = np.arange(len(rows))
        axes.bar(at, rows["recall"], 0.6, color=blue(dark), alpha=0.7, label="recall")
        for name, color, marker in marks:
            axes.plot(at, rows[name], marker, color=color, markersize=7, label=f"chance: {name.replace('_', ' ')}")
        axes.set_xticks(at, ["any" if layer == ANY else str(layer) for layer in rows["layer"]])
        axes.set(xlabel="layer", ylabel="facts", title=words)
        axes.title.set(color=ink(dark), fontsize=10)
        axes.yaxis.set_major_formatter("{x:.2%}" if rows["recall"].max() < 0.1 else PERCENT)
    legend(every[1], loc="best")
    return figure


def drop_figure(facts: pd.DataFrame, *, dark: bool = False) -> Figure:
    """How far the answer's logit drops without the entries that state the fact, against the control: both, sorted."""
    figure, axes = panel(dark)
    both = facts.dropna(subset=["drop_own", "drop_control"])
    share = np.linspace(0, 1, len(both))
    for name, color, words in (("own", blue(dark), "entries of the fact"), ("control", ORANGE, "control entries")):
        axes.plot(np.sort(both[f"drop_{name}"]), share, color=color, drawstyle="steps-post", label=words)
    axes.axvline(0, color=ink(dark), linewidth=1, linestyle="--")
    axes.set_xscale("symlog", linthresh=1e-3)
    axes.set(xlabel="drop of the answer's logit without them", ylabel=f"share of {len(both):,} facts")
    axes.yaxis.set_major_formatter(PERCENT)
    legend(axes, loc="upper left")
    return figure


def fact_finding(audit: FactAudit) -> Finding:
    """Whether facts are found and needed, in words."""
    any_layer = audit.recall[audit.recall["layer"] == ANY].set_index("place").loc["asked"]
    summary = audit.summary
    short = (
        f"{any_layer['recall']:.2%} of {summary['stated']:,} facts select an entry that states them when they are "
        f"asked{_against_chance(any_layer)}"
    )
    return Finding("Are facts found where they are stated?", short, _effect(summary["drop_difference"], summary))


def _against_chance(recall: pd.Series) -> str:
    if not recall["facts_same"]:
        return "; no predicate has two facts, so that there is no chance level to compare with."
    verdict = "more than chance" if recall["p_same"] < 0.05 else "no more than chance"
    return (
        f". Of the {int(recall['facts_same']):,} that share a predicate with others {recall['recall_same']:.2%} do, "
        f"and {recall['same_predicate']:.2%} would for another fact of it: {verdict}."
    )


def fact_findings(recording: Path) -> Iterator[Finding]:
    """That finding, where the recording was audited."""
    if (audit := load_audit(recording)) is not None:
        yield fact_finding(audit)


def _effect(difference: list[Any] | None, summary: dict[str, Any]) -> str:
    ranks = (
        f"Of the {summary['asked']:,} facts found so, {summary['asked_and_read']:,} read what they found. "
        f"The answer's median rank is {summary['median_rank']:,.0f}. "
    )
    if difference is None:
        return f"{ranks}No question selects an entry that states its fact, so none was ablated."
    estimate, low, high = difference
    if low is None or high is None:
        word, interval = "(how surely is not known) against", "all of them ablate the same entries"
    else:
        # Above a control that raises the logit is not yet needed: the drop itself must be clear as well.
        needed = low > 0 and summary["drop_own"][1] > 0
        word = "more than" if needed else "less than" if high < 0 else "not clearly more or less than"
        interval = f"95% {low:+.4f} to {high:+.4f}"
    return (
        f"{ranks}Ablating the stating entries ({summary['ablated']:,} facts that select them somewhere) lowers the "
        f"answer's logit {word} ablating other entries of the question: by {summary['drop_own'][0]:+.4f}, "
        f"difference {estimate:+.4f} ({interval})."
    )


def fact_figures(folder: Path) -> Iterator[ReportFigure]:
    """Figures of the audit in a folder; none where there is none."""
    if (audit := load_audit(folder)) is None:
        return
    yield ReportFigure(
        "facts_recall",
        "Facts found",
        f"Share of {audit.summary['stated']:,} facts whose question selects an entry that states the fact, beside "
        "chance: selections spread evenly over the bank, entries of another fact, entries of another fact of the same "
        "predicate.",
        recall_figure(audit.recall),
        wide=True,
    )
    if audit.summary["ablated"]:
        yield ReportFigure(
            "facts_drop",
            "Facts needed",
            "Facts sorted by how far their answer's logit drops when the entries that state them are ablated, and when "
            "as many others of the same question are. Curves on one another: the entries do not carry the fact. The "
            "axis is linear up to 0.001 and logarithmic beyond.",
            drop_figure(audit.facts),
        )


def fact_tables(folder: Path) -> Iterator[ReportTable]:
    """The table of predicates of the audit in a folder; none where there is none."""
    if (audit := load_audit(folder)) is None:
        return
    yield make_table(
        "Facts by predicate",
        "stated: facts that some entry started from. Drop: mean fall of the answer's logit without those entries, over "
        "the facts that select one somewhere in the question.",
        audit.predicates,
        PREDICATES,
    )


def load_sentence_facts(folder: Path) -> pd.DataFrame | None:
    """The summary that ``memscope facts`` wrote of a model that reads sentences; none if it did not.

    Columns ``mean low high facts``, one row per measure (``causal/sentences/facts.py``).
    """
    if not (folder / "sentence_facts.json").is_file():
        return None
    return pd.DataFrame(read_json(folder / "sentence_facts.json")).T.astype(float)
