"""Two recordings against one another: two checkpoints, two seeds, two runs.

    memscope report recordings/early --against recordings/late --out reports/change

writes ``compare.html`` and ``compare.md`` (``report/document.py``), ``compare.json`` with its schema
(``report/schema.py``), tables as CSV and Parquet, and the figures. A is the first recording, B the one that
``--against`` names; a change is B - A.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from memscope.base.files import make_folder, write_json
from memscope.base.words import first_upper
from memscope.query.needs import known_columns
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.report.compare.changes import SEED, Changes, find_changes
from memscope.report.compare.findings import describe
from memscope.report.compare.schema import Comparison, Side
from memscope.report.document import (
    Column,
    Document,
    ReportFigure,
    ReportTable,
    make_table,
    write_document,
    write_table,
)
from memscope.report.findings import Finding
from memscope.report.plots import compare as compare_plots
from memscope.report.schema import describe_source, json_schema
from memscope.report.words import a_word, entry_name, model_name, place, selections
from memscope.stats.stability import DRAWS, LIVELY

_SHOWN_SWITCHES = 30
"""Entries of each kind in the page; the files have all of them."""

_LIKENESS = {
    "layer": Column("Layer"),
    "jensen_shannon": Column("Jensen-Shannon, nats", ".4f"),
    "halves_jensen_shannon_a": Column("halves of A", ".4f"),
    "halves_jensen_shannon_b": Column("halves of B", ".4f"),
    "sampled_jensen_shannon": Column("sampling", ".5f"),
    "rank_correlation": Column("Rank corr.", "+.3f"),
    "halves_rank_correlation": Column("halves", "+.3f"),
    "jaccard": Column("Jaccard", ".3f"),
    "independent_jaccard": Column("independent", ".3f"),
    "halves_jaccard": Column("halves", ".3f"),
    "died": Column("Died", ",d"),
    "died_by_sampling": Column("sampling", ",.1f"),
    "woke": Column("Woke", ",d"),
    "woke_by_sampling": Column("sampling", ",.1f"),
    "halves_switched": Column("halves, each way", ",.1f"),
}
_EVENNESS = {
    "layer": Column("Layer"),
    "coverage_a": Column("Coverage A", ".2%"),
    "coverage_b": Column("B", ".2%"),
    "coverage_change": Column("change", "+.2%", "coverage_change_se"),
    "kl_to_uniform_a": Column("KL to uniform A", ".3f"),
    "kl_to_uniform_b": Column("B", ".3f"),
    "kl_to_uniform_change": Column("change", "+.3f", "kl_to_uniform_change_se"),
    "gini_a": Column("Gini A", ".4f"),
    "gini_b": Column("B", ".4f"),
    "gini_change": Column("change", "+.4f", "gini_change_se"),
    "top50_a": Column("Top 50% A", ",d"),
    "top50_b": Column("B", ",d"),
    "dead_a": Column("Dead A", ",d"),
    "dead_b": Column("B", ",d"),
}
_SWITCHED = {
    "layer": Column("Layer"),
    "name": Column("Entry"),
    "selections": Column("Selections", ",d"),
    "sentence": Column("Sentence", prose=True),
}
_PREDICATES = {
    "predicate": Column("Relation"),
    "entries_a": Column("Entries", ",d"),
    "bank_share_a": Column("Share of bank", ".1%"),
    "selection_share_a": Column("Share of selections, A", ".1%"),
    "selection_share_b": Column("B", ".1%"),
    "change": Column("Change", "+.1%"),
}


def write_comparison(a: Recording, b: Recording, out: Path) -> Iterator[Path]:
    """Write a comparison of two recordings into the folder ``out``; yields each path when written.

    Raises:
        InputError: banks of different sizes, other memory layers, or the folder cannot be written.
    """
    changes = find_changes(a, b)
    make_folder(out)
    findings = describe(a, b, changes)
    command = f"memscope report {place(a.path)} --against {place(b.path)} --out {place(out)}"
    yield from write_document(make_document(a, b, changes, findings, command), out, "compare")
    for name, frame in tables(a, b, changes).items():
        yield from write_table(out / name, frame)
    write_json(out / "compare.json", comparison(a, b, changes, findings).model_dump(mode="json"))
    yield out / "compare.json"
    write_json(out / "compare.schema.json", json_schema(Comparison))
    yield out / "compare.schema.json"


def comparison(a: Recording, b: Recording, changes: Changes, findings: list[Finding]) -> Comparison:
    """Every number of the comparison for machines."""
    return Comparison.model_validate(
        {
            "a": Side(recording=describe_source(a), step=a.info.step),
            "b": Side(recording=describe_source(b), step=b.info.step),
            "same_model": a.info.fingerprint == b.info.fingerprint,
            "same_corpus": a.info.corpus_sha256 == b.info.corpus_sha256,
            "same_bank": not changes.different_entries,
            "different_entries": changes.different_entries,
            "lively": LIVELY,
            "draws": DRAWS,
            "seed": SEED,
            "layers": changes.layers,
            "evenness": changes.evenness,
            "loss": changes.loss,
            "predicates": changes.predicates,
            "findings": [finding.in_words() for finding in findings],
        }
    )


def tables(a: Recording, b: Recording, changes: Changes) -> dict[str, pd.DataFrame]:
    """The tables beside the page, by file name."""
    shown = {
        "evenness": pd.DataFrame([change.model_dump() for change in changes.evenness]),
        "predicates": pd.DataFrame([change.model_dump() for change in changes.predicates]),
    }
    if not changes.different_entries:
        keys = ["layer", "entry"]
        usage = a.usage_table()[[*keys, "count"]].merge(
            b.usage_table()[[*keys, "count"]], on=keys, how="outer", suffixes=("_a", "_b")
        )
        counts = ["count_a", "count_b"]
        shown["usage"] = usage.assign(**{name: usage[name].fillna(0).astype("int64") for name in counts})
        shown["layers"] = pd.DataFrame([row.model_dump() for row in changes.layers])
        shown["switched"] = known_columns(a.info, changes.switched)
    return {name: table for name, table in shown.items() if name != "predicates" or a.info.has("starts")}


def make_document(a: Recording, b: Recording, changes: Changes, findings: list[Finding], command: str) -> Document:
    """The comparison before it is put on paper."""
    word, words, starts = a.info.word(), a.info.word(2), a.info.has("starts") or b.info.has("starts")
    alike = " (if the banks started alike)" if starts else ""
    return Document(
        title="Two recordings compared",
        subtitle=f"{model_name(a)} (A) against {model_name(b)} (B): what {_who(a.info)}. A change is B − A.",
        facts={**_facts("A", a), **_facts("B", b), "Comparable": _comparable(a, b, changes)},
        findings=findings,
        figures=list(_figures(a, b, changes)),
        tables=list(_tables(a, b, changes)),
        method=_method(a.info),
        files={
            "compare.json": "every number of this page; compare.schema.json describes its fields",
            "layers.csv, .parquet": f"likeness per layer{alike}",
            "usage.csv, .parquet": f"selections of every used (layer, {word}) in A and B{alike}",
            "switched.csv, .parquet": f"all {words} that died or woke{alike}",
            **(
                {"evenness.csv, predicates.csv, .parquet": "changes of evenness and of relations"}
                if starts
                else {"evenness.csv, .parquet": "changes of evenness"}
            ),
            "figures/": "the figures as PNG and SVG",
        },
        command=command,
    )


def _facts(side: str, recording: Recording) -> dict[str, str]:
    info = recording.info
    return {
        side: f"model {model_name(recording)} (SHA-256 {info.fingerprint[:12]}), corpus {info.corpus_name} "
        f"(SHA-256 {info.corpus_sha256[:12]}), {info.rows:,} tokens: D = {selections(recording)} selections a layer, "
        f"{info.knowledge_num:,} {info.word(2)}"
    }


def _who(info: RecordingInfo) -> str:
    return "their layers select" if info.selector == "selection" else f"their {info.selector}s select"


def _comparable(a: Recording, b: Recording, changes: Changes) -> str:
    model = "the same model file" if a.info.fingerprint == b.info.fingerprint else "two model files"
    corpus = "the same corpus" if a.info.corpus_sha256 == b.info.corpus_sha256 else "two corpora"
    if not (a.info.has("starts") or b.info.has("starts")):
        return f"{model}, {corpus}; {a.info.word(2)} are matched by their numbers"
    bank = (
        f"{changes.different_entries:,} entries started differently, so only distributions are compared"
        if changes.different_entries
        else "every entry started alike"
    )
    return f"{model}, {corpus}; {bank}"


def _figures(a: Recording, b: Recording, changes: Changes) -> Iterator[ReportFigure]:
    usage_a, usage_b, layers = a.usage(), b.usage(), a.info.layers
    d = f"D = {selections(a)} (A) and {selections(b)} (B) selections a layer"
    word, words = a.info.word(), a.info.word(2)
    if changes.layers:
        rows = pd.DataFrame([row.model_dump() for row in changes.layers if row.layer is not None])
        yield ReportFigure(
            "divergence",
            "Divergence of usage",
            "Jensen-Shannon divergence between the usage of A and B; orange lines are what two halves of the "
            f"documents of A show under one {a.info.selector}, dark ones those of B, D/2 each; the dotted one is no "
            f"{word} in common. {d}.",
            compare_plots.divergence_dots(rows, word),
        )
        yield ReportFigure(
            "overlap",
            f"Overlap of used {words}",
            f"Jaccard index of the sets of {words} that A and B use; lines show independent sets of these sizes and "
            f"two halves of the documents of one recording. {d}.",
            compare_plots.overlap_bars(rows, words),
        )
        yield ReportFigure(
            "usage",
            f"Selections per {word}",
            f"Every {word} used by A or B; {words} on an axis are used by one of them only, {words} on the diagonal "
            f"equally often. {d}.",
            compare_plots.usage_scatter(usage_a, usage_b, layers),
            wide=True,
        )
    yield ReportFigure(
        "evenness",
        "Evenness",
        f"Coverage and KL to uniform of each layer in A and B. {d}.",
        compare_plots.evenness_changes(pd.DataFrame([row.model_dump() for row in changes.evenness]), words),
        wide=True,
    )
    if changes.predicates:
        yield ReportFigure(
            "predicates",
            "Relations",
            "Share of selections per relation of the sentence in A and B, all layers, among entries with "
            "triples, largest changes first; the bar is the relation's share of the bank. "
            f"D = {selections(a, all_layers=True)} and {selections(b, all_layers=True)}.",
            compare_plots.predicate_changes(pd.DataFrame([row.model_dump() for row in changes.predicates])),
            wide=True,
        )


def _tables(a: Recording, b: Recording, changes: Changes) -> Iterator[ReportTable]:
    d, selector = f"D = {selections(a)} (A) and {selections(b)} (B) selections a layer", a.info.selector
    if changes.layers:
        rows = pd.DataFrame([row.model_dump() for row in changes.layers])
        rows["layer"] = ["all" if row.layer is None else str(row.layer) for row in changes.layers]
        yield make_table(
            "Likeness",
            f"Columns headed “halves” give what two halves of one recording's documents show under one {selector}, "
            "D/2 each: A and B differ where they lie further apart. “Sampling” is what two samples of independent "
            f"selections from the pooled distribution show, a lower bound. {d}.",
            rows,
            _LIKENESS,
        )
    yield make_table(
        "Evenness",
        "± is the root of the sum of both squared standard errors, where they are known; for the same text that is "
        f"too large, if anything. {d}.",
        _wide_evenness(changes),
        _EVENNESS,
    )
    for change, side, other in (("died", "A", "B"), ("woke", "B", "A")):
        rows = changes.switched[(changes.switched["change"] == change) & (changes.switched["layer"] != "all")]
        rows = rows.assign(selections=rows[["selections_a", "selections_b"]].max(axis=1))
        rows = rows.sort_values("selections", ascending=False, kind="stable")
        if len(rows):
            shown = f"; the {_SHOWN_SWITCHES} most used of {len(rows):,}" if len(rows) > _SHOWN_SWITCHES else ""
            yield make_table(
                f"{first_upper(a.info.word(2))} that {change}",
                f"At least {LIVELY} selections in a layer of {side}, none in that of {other}{shown}. {d}.",
                _named(a.info, rows.head(_SHOWN_SWITCHES)),
                _SWITCHED | {"name": Column(first_upper(a.info.word()), "" if a.info.private else "d")},
            )
    if changes.predicates:
        yield make_table(
            "Relations",
            "Shares among entries with triples, all layers together; an entry with several relations counts for each.",
            pd.DataFrame([row.model_dump() for row in changes.predicates]),
            _PREDICATES,
        )


def _named(info: RecordingInfo, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a column ``name`` for their entry, and with sentences where entries started from some."""
    named = rows.assign(name=[entry_name(info, int(entry)) for entry in rows["entry"]])
    return known_columns(info, named)


def _wide_evenness(changes: Changes) -> pd.DataFrame:
    """One row per layer with ``<metric>_a <metric>_b <metric>_change <metric>_change_se``."""
    rows: dict[str, dict[str, float | str | None]] = {}
    for change in changes.evenness:
        name = "all" if change.layer is None else str(change.layer)
        row = rows.setdefault(name, {"layer": name})
        row |= {
            f"{change.metric}_a": change.a,
            f"{change.metric}_b": change.b,
            f"{change.metric}_change": change.change,
            f"{change.metric}_change_se": change.change_se,
        }
    return pd.DataFrame(list(rows.values()))


def _method(info: RecordingInfo) -> list[str]:
    """How the numbers of a comparison are made."""
    word, words, selector = info.word(), info.word(2), info.selector
    selected = "selected and read" if info.has("reads") else "selected"
    return [
        f"A and B are two recordings: what every token of a corpus {selected} in one model. Usage is the number of "
        f"selections of {a_word(info)}; p and q are its shares among the D selections of A and B. Jensen-Shannon "
        "divergence = (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2, natural logarithm: 0 to ln 2 nats. Jaccard "
        f"index = {words} used by both / {words} used by either. Rank correlation is Spearman's, ties at their mean "
        f"rank; over all {words} it counts the unused ones as tied, over those that both use it leaves them out.",
        f"Sampling: {DRAWS} pairs of multinomial samples as large as A and B are drawn from the pooled distribution "
        f"(seed {SEED}) and compared like the recordings; their mean is shown. The tokens of a document resemble each "
        f"other, so recordings of different text differ by several times that even when the {selector} is the same. "
        f"Halves: one recording's folds of documents are split in two at random, {DRAWS} times, and the halves (D/2 "
        "each) compared alike; two whole texts would lie closer. Where A and B recorded the same text, differences "
        "of text play no part.",
        f"Died: at least {LIVELY} selections in A and none in B; woke: the other way round. The expected number by "
        f"sampling is the sum over {words} of P(X ≥ {LIVELY}) P(Y = 0), X and Y binomial with the {word}'s share of "
        "the pooled selections. Independent sets: the Jaccard index that two random sets of these sizes would have.",
    ]
