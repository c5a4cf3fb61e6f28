"""The fact audit as figures, tables and one finding: what a report or a page shows of ``fact_tables.FactAudit``.

audit = load_audit(recording.path)
recall_figure(audit.recall), drop_figure(audit.facts)
sentence_finding(load_sentence_facts(recording.path))        # of a model that reads sentences
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from memscope.base.files import read_json
from memscope.base.parquet import read_parquet
from memscope.base.words import command_line, short_percent
from memscope.causal.fact_tables import ANY, FactAudit, load_audit
from memscope.query.recording import Recording
from memscope.report.document import Column, ReportFigure, ReportTable, make_table
from memscope.report.findings import Finding
from memscope.report.plots.style import GREEN, ORANGE, PERCENT, blue, ink, legend, panel, panels
from memscope.run.folder import CLOZES
from memscope.text.fact_files import Fact

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
        interval = f"95% {low:+z.4f} to {high:+z.4f}"
    return (
        f"{ranks}Ablating the stating entries ({summary['ablated']:,} facts that select them somewhere) lowers the "
        f"answer's logit {word} ablating other entries of the question: by {summary['drop_own'][0]:+z.4f}, "
        f"difference {estimate:+z.4f} ({interval})."
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


SENTENCE_MEASURES = {
    "selected": "a stating sentence is selected",
    "searched": "the search by words alone finds one",
    "answered": "the answer is the likeliest next token",
    "silent": "the same without reading any sentence",
    "on_object": "of the read falls on words of the answer",
    "fall": "fall of the answer's logit without the stating sentences",
    "control": "fall without as many other sentences",
    "logprob": "log-probability of the answer, nats",
}
"""Measures of ``causal/sentences/facts.py``; those before ``fall`` are shares."""
_SHARES = tuple(SENTENCE_MEASURES)[:5]
_DRAWN = {"selected": "sentence selected", "answered": "answered", "silent": "answered without reading"}


def ask_command(recording: Recording) -> str:
    """The command that asks facts of a recorded run: those that it keeps for it, if it does."""
    run, info = Path(recording.info.run), recording.info
    facts = run / CLOZES if (run / CLOZES).is_file() else "FACTS"
    return command_line("memscope", "facts", info.run, facts, "--recording", recording.path)


def load_sentence_facts(folder: Path) -> pd.DataFrame | None:
    """The summary that ``memscope facts`` wrote of a model that reads sentences; none if it did not.

    Columns ``group measure mean low high facts``; a group is ``taught`` or ``held out``.
    """
    if not (folder / "sentence_facts.json").is_file():
        return None
    groups = read_json(folder / "sentence_facts.json")
    rows = [
        {"group": group, "measure": measure} | {name: np.nan if value is None else value for name, value in row.items()}
        for group, measures in groups.items()
        for measure, row in measures.items()
    ]
    return pd.DataFrame(rows)


def sentence_finding(summary: pd.DataFrame) -> str:
    """What became of the facts that say most, the held-out ones where there are some, in one sentence."""
    group = "held out" if (summary["group"] == "held out").any() else "taught"
    rows = summary[summary["group"] == group].set_index("measure")
    told = "training asked nothing about" if group == "held out" else "training asked about, too"
    share = rows["mean"].map(short_percent)
    return (
        f"Of {int(rows.loc['selected', 'facts']):,} facts whose sentences {told}, {share['answered']} are answered "
        f"when the model may read, {share['silent']} when it may not; {share['selected']} select a sentence that "
        "states them."
    )


def sentence_table(summary: pd.DataFrame) -> pd.DataFrame:
    """``load_sentence_facts`` in words: one row per measure, one column per group, with 95% intervals."""

    def said(row: Any) -> str:
        if not row.facts:
            return "–"
        form = "{:.1%}" if row.measure in _SHARES else "{:+z.2f}"
        mean, low, high = (form.format(value).replace("-0.00", "+0.00") for value in (row.mean, row.low, row.high))
        return f"{mean}  ({low} to {high})"

    texts = [said(row) for row in summary.rename(columns=str).itertuples()]
    table = summary.assign(said=texts).pivot(index="measure", columns="group", values="said")
    groups = [group for group in ("held out", "taught") if group in table]
    table = table.reindex(SENTENCE_MEASURES)[groups].reset_index()
    return table.assign(measure=table["measure"].map(SENTENCE_MEASURES)).rename_axis(columns=None)


def sentence_figure(summary: pd.DataFrame, *, dark: bool = False) -> Figure:
    """Shares of facts that are found and answered, with 95% intervals, of each group."""
    figure, axes = panel(dark)
    for shift, group, color in ((0.12, "held out", blue(dark)), (-0.12, "taught", ORANGE)):
        rows = summary[summary["group"] == group].set_index("measure").reindex(_DRAWN)
        if rows["mean"].isna().all():
            continue
        at = np.arange(len(rows))[::-1] + shift
        apart = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        axes.errorbar(rows["mean"], at, xerr=apart, fmt="o", color=color, label=group, capsize=3)
    axes.set_yticks(np.arange(len(_DRAWN))[::-1], list(_DRAWN.values()))
    axes.set(xlabel="share of facts", xlim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter(PERCENT)
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def load_sentence_answers(folder: Path) -> pd.DataFrame | None:
    """Every fact that was asked of a model that reads sentences, those of held-out sentences first; none if none was.

    Columns ``question answer group rank rank_silent selected on_object fall``.
    """
    if not (folder / "sentence_facts.parquet").is_file():
        return None
    table = read_parquet(folder / "sentence_facts.parquet").to_pandas()
    asked = [
        Fact(*row) for row in table[["uuid", "subject", "predicate", "object", "template"]].itertuples(index=False)
    ]
    answers = pd.DataFrame(
        {
            "question": [fact.question for fact in asked],
            "answer": table["object"],
            "group": np.where(table["taught"], "taught", "held out"),
            **{name: table[name] for name in ("rank", "rank_silent", "selected", "on_object")},
            "fall": table["logit"] - table["logit_without"],
        }
    )
    return answers.sort_values(["group", "rank"], kind="stable", ignore_index=True)
