"""The gate-bias report as a document: facts, findings, figures, tables, method and the most used entries.

write_document(make_document(recording, find(recording), "memscope report REC --out DIR"), out, "gate_bias")
"""

import pandas as pd

from memscope.base.words import first_upper, plural, span
from memscope.query.recording import Recording
from memscope.recording.info import RecordingInfo
from memscope.report.document import Column, Context, Document, EntryNote, ReportTable, make_table
from memscope.report.facts import fact_figures, fact_findings, fact_tables
from memscope.report.findings import Finding
from memscope.report.gate_bias.figures import figures
from memscope.report.gate_bias.method import method
from memscope.report.gate_bias.opening import STEPS, make_opening
from memscope.report.gate_bias.tables import tables
from memscope.report.gate_findings import choice
from memscope.report.health import Flag, health
from memscope.report.routing import routing_figures, routing_tables
from memscope.report.words import has_start, listed, model_name, selections, shared_by, start_name, start_names

_SHOWN_ENTRIES, _SHOWN_CONTEXTS = 20, 3


def make_document(recording: Recording, findings: list[Finding], command: str) -> Document:
    """The report before it is put on paper."""
    info, flags = recording.info, health(recording)
    return Document(
        title=f"{first_upper(info.selector)}-bias report: {model_name(recording)} on {info.corpus_name}",
        subtitle=_subtitle(info),
        facts=_facts(recording),
        findings=[*findings, *fact_findings(recording.path)],
        figures=[*figures(recording), *routing_figures(recording), *fact_figures(recording.path)],
        tables=[_checks(flags), *tables(recording), *routing_tables(recording), *fact_tables(recording.path)],
        method=method(recording),
        files=_files(recording),
        command=command,
        opening=make_opening(recording, findings, flags),
        entries=_entry_notes(recording),
        entries_caption=_entries_caption(info),
        entries_title=f"Most used {info.word(2)}",
    )


def _subtitle(info: RecordingInfo) -> str:
    what = f"Which {info.word(2)} the {info.selector} selects, how evenly"
    if info.selector == "selection":
        what = f"Which {info.word(2)} are selected, how evenly"
    if not info.has("reads"):
        return f"{what}, and what the choice goes by."
    reads = "the attention reads" if info.reader == "attention" else f"the {info.reader} makes"
    return f"{what}, toward what, and what {reads} of them."


def _checks(flags: list[Flag]) -> ReportTable:
    """Every check of the verdict; folded where the opening has named all that are not good."""
    columns = {"level": Column("Level"), "text": Column("Check", prose=True)}
    table = make_table("Checks", "What the verdict is made of.", pd.DataFrame(flags), columns)
    return table._replace(folded=sum(flag.level != "good" for flag in flags) <= STEPS)


def _files(recording: Recording) -> dict[str, str]:
    """Files beside the report, with what they hold."""
    info, weightings = recording.info, len(recording.weightings)
    counted = ["selections", *[f"summed {info.score}s"] * info.has("scores"), *["read weights"] * info.has("reads")]
    known = [*[start_names(info), "triples"] * info.has("starts"), *["drift"] * info.has("drift"), "usage"]
    layers = "the evenness and reading metrics of each layer" if info.has("reads") else "the evenness of each layer"
    by = {1: "", 2: ", for two weightings of usage", 3: ", for three weightings of usage"}[weightings]
    preferences = {"preferences.csv, .parquet": "lift of every label in every layer, with intervals, chance and tests"}
    return {
        "metrics.json": "every number of this report; metrics.schema.json describes its fields",
        "layers.csv, .parquet": layers + by,
        **(preferences if info.has("starts") else {}),
        "anomalies.csv, .parquet": "what stands out, each with its effect, its chance and the tokens it is over",
        "usage.csv, .parquet": f"{listed(counted)} of every used (layer, {info.word()})",
        "entries.csv, .parquet": f"every {info.word()} with its {listed(known)}",
        "figures/": "the figures as PNG and SVG",
    }


def _entries_caption(info: RecordingInfo) -> str:
    said = ["In contexts the firing token is marked."]
    if info.has("scores"):
        said = [f"In contexts the firing token is marked; {info.score}s are of that selection."]
    if info.has("drift"):
        nearest = "Nearest tokens are measured in the space that the bank started in; marked ones stand in the init "
        said.insert(0, nearest + "sentence.")
    return " ".join(said)


def _facts(recording: Recording) -> dict[str, str]:
    info, run = recording.info, recording.run_summary
    most = " at most" if any(site.varies for site in info.sites) else ""
    facts = {
        "Corpus": f"{info.corpus_name}, {len(recording.documents):,} documents (SHA-256 {info.corpus_sha256[:12]})",
        "Model": f"{info.run_name} (SHA-256 {info.fingerprint[:12]})",
        "Recorded": f"{info.rows:,} tokens, {len(info.layers)} {plural(len(info.layers), 'layer', 'layers')}, "
        f"{span([site.selected for site in info.sites], ',')} selections a token and layer{most}: "
        f"D = {selections(recording)} selections a layer",
        **({"Choice": choice(recording).short} if info.has("margin") else {}),
        **(
            {
                "Bank": f"{info.knowledge_num:,} {info.word(info.knowledge_num)} of {info.slots} "
                f"{plural(info.slots, 'slot', 'slots')}, {shared_by(info)}"
            }
            if info.kind == "memory"
            else {first_upper(info.word(2)): f"{info.knowledge_num:,}, {shared_by(info)}"}
        ),
        **({"Loss": f"{_loss(recording)} nats per token on the recorded text"} if info.predictions else {}),
    }
    if run:
        facts["Training"] = (
            f"{run['steps']:,} steps, {run['tokens']:,} tokens; validation loss went from "
            f"{run['untrained_valid_loss']:.4f} to {run['valid_loss']:.4f} nats per token"
        )
    return facts


def _loss(recording: Recording) -> str:
    error = recording.census.layers[0].reading.loss_se
    return f"{recording.census.loss:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _entry_notes(recording: Recording) -> list[EntryNote]:
    """The most used entries with what they decode to and where they fire."""
    notes, info = [], recording.info
    gate = "gate" if info.kind == "memory" else info.score
    for number in recording.entries(limit=_SHOWN_ENTRIES)["entry"]:
        card = recording.entry(int(number))
        most = card.usage.loc[card.usage["count"].idxmax()]
        contexts = [
            Context(
                ", ".join(
                    part
                    for part in (
                        f"layer {c['layer']}",
                        "" if pd.isna(c.get("gate")) else f"{gate} {c['gate']:.3f}",
                        c["title"],
                    )
                    if part
                ),
                *(c[part] for part in ("before", "token", "after")),
            )
            for c in recording.contexts(card.entry).head(_SHOWN_CONTEXTS).to_dict("records")
        ]
        owner = next(site for site in info.sites if site.own.start <= card.entry < site.own.stop)
        notes.append(
            EntryNote(
                title=first_upper(recording.info.label(card.entry)),
                about=f"{int(card.usage['count'].sum()):,} selections, most in layer {int(most['layer'])} "
                f"({most['share']:.1%} of its selections)"
                + ("" if card.drift is None else f"; drift {max(0.0, card.drift):.3f}"),
                fires_on=card.title,
                words=card.words,
                start=first_upper(start_name(owner)),
                sentence=card.sentence,
                random=card.sentence is None and has_start(info, card.entry),
                nearest=list(zip(card.nearest["token"], card.nearest["in_sentence"], strict=True)),
                contexts=contexts,
            )
        )
    return notes
